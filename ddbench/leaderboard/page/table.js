// The table: one row a method, its other settings folded under it, the whole dataset below.

const COLUMNS = [
  { key: "method", name: "Method", up: true, value: (row) => `${row.name} ${row.setting}`, cell: null },
  { key: "accuracy", name: "Accuracy, %", value: (row) => row.mean, cell: accuracyCell },
  { key: "group", name: "Group", fixed: true, cell: groupCell },
  { key: "sets", name: "Sets × students", value: (row) => row.sets * 1e6 + row.students_max, right: true, cell: setsCell },
  { key: "random", name: "−\u00a0random", value: (row) => row.gap, right: true, cell: gapCell },
  { key: "size", name: "Size, images + labels", up: true, value: total, right: true, cell: sizeCell },
  { key: "seen", name: "Images seen", up: true, value: (row) => row.forwards, right: true, cell: (row) => row.seen },
  { key: "time", name: "Time", up: true, value: (row) => row.seconds, right: true, cell: timeCell },
  { key: "published", name: "Published, %", value: (row) => row.published[0]?.value, cell: publishedCell, wide: true },
];

function compare(a, b, column, down) {
  const [x, y] = [column.value(a), column.value(b)];
  // What is not known stands last, whichever way the column is sorted.
  if (known(x) !== known(y)) return known(x) ? -1 : 1;
  const order = !known(x) ? 0 : typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
  return (down ? -order : order) || (b.mean ?? -1) - (a.mean ?? -1) || a.id.localeCompare(b.id, "en");
}

function drawTable() {
  const key = state.sort.replace(/^-/, ""), down = state.sort.startsWith("-");
  const column = COLUMNS.find((candidate) => candidate.key === key && !candidate.fixed) ?? COLUMNS[1];
  const order = (a, b) => compare(a, b, column, down);
  const shown = families().sort((a, b) => order(a.head, b.head));
  const { table } = state;
  document.getElementById("view").textContent =
    table ? `${table.data}, ${table.ipc ? `${table.ipc} ${table.ipc === 1 ? "image" : "images"} per class` : "whole dataset"}` : "No results yet";
  document.getElementById("data").textContent = table
    ? `Protocol ${table.recipe}, learned from ${TRACKS[table.track]}, judged by ${state.judge}${table.common ? `; all ${table.common}` : ""}. ` +
      `${table.train} training and ${table.test} test images, data ${table.fingerprint}${table.original ? "" : ", not the original"}; ` +
      `protocol digest ${table.digest}.` : "";
  const scale = whiskerScale(shown);
  const body = shown.flatMap(({ head, others, fits, asked }) => {
    // What an address opens, and what a search finds, is not hidden under its method.
    const open = unfolded.has(head.id) || !fits || others.some((row) => row.id === state.open);
    const folded = open ? others.sort(order) : [];
    return [...(fits || asked ? [head] : []), ...folded].flatMap((row) => tableRows(row, scale, column, row === head ? others.length : null, open));
  });
  document.getElementById("board").replaceChildren(
    el("thead", {}, el("tr", {}, COLUMNS.map((each) => headCell(each, column, down)))),
    el("tbody", {}, body),
    el("tfoot", {}, ceilings().map((row) => ceilingRow(row, scale))));
  document.getElementById("nothing").textContent = shown.length || !table ? "" : "No method fits this search.";
  document.getElementById("controls").replaceChildren(
    ...(table?.controls[state.judge] ?? []).map((said) => el("li", {}, said)));
  drawMarks(shown);
}

function headCell(column, sorted, down) {
  const attributes = { scope: "col", class: column.right ? "right" : null };
  if (column.fixed) return el("th", attributes, column.name);
  const now = column === sorted;
  if (now) attributes["aria-sort"] = down ? "descending" : "ascending";
  const next = now ? !down : !column.up;
  return el("th", attributes, el("button", { type: "button", class: "sort", "data-key": column.key,
    onclick: () => { show({ sort: (next ? "-" : "") + column.key }); refocus(`.sort[data-key=${column.key}]`); } }, column.name));
}

const refocus = (selector) => document.querySelector(selector)?.focus();

function tableRows(row, scale, sorted, others, unfoldedNow) {
  const open = state.open === row.id;
  const folds = others === null;
  const opener = el("button", { type: "button", class: "opener", id: `row-${row.id}`, "aria-expanded": String(open),
    "aria-controls": open ? `details-${row.id}` : null,
    onclick: () => { show({ open: open ? "" : row.id, set: "" }); document.getElementById(`row-${row.id}`)?.focus(); } },
    el("span", {}, el("span", { class: "name" }, folds ? breakable(row.setting) || "as published" : row.name + marks(row)),
      folds || !row.setting ? null : small(breakable(row.setting))));
  const fold = others ? el("button", { type: "button", class: "fold", "aria-expanded": String(unfoldedNow),
    "data-fold": row.id, onclick: () => {
      if (unfoldedNow) unfolded.delete(row.id);
      else unfolded.add(row.id);
      // A setting that is folded away is closed.
      show(unfoldedNow && state.open !== row.id ? { open: "", set: "" } : {});
      refocus(`[data-fold="${CSS.escape(row.id)}"]`);
    } }, `${unfoldedNow ? "hide" : "show"} ${others} other ${others === 1 ? "setting" : "settings"}`) : null;
  const cells = COLUMNS.slice(1).map((column) => el("td", {
    class: [column.right ? "right num" : "", column.wide ? "wide" : ""].join(" ").trim() || null,
    "data-column": column.key, "data-value": column.value?.(row) }, column.cell(row, scale)));
  const line = el("tr", { class: [folds ? "folded" : "head", open ? "open" : ""].join(" ").trim(), "data-method": row.name,
    "data-row": row.id }, el("th", { scope: "row", "data-column": "method", "data-value": COLUMNS[0].value(row) }, opener, fold), cells);
  return open ? [line, el("tr", { class: "details", id: `details-${row.id}` },
    el("td", { colspan: COLUMNS.length }, details(row)))] : [line];
}

// Options, which may go on in the next line after "=" too, so that no number is taken apart.
function breakable(setting) {
  return setting && setting.split(/(?<==)/).flatMap((part, place) => place ? [el("wbr"), part] : [part]);
}

function ceilingRow(row, scale) {
  return el("tr", {}, el("th", { scope: "row" }, row.title, small(`all ${row.of.train} images, ${row.of.recipe}`)),
    COLUMNS.slice(1).map((column) => el("td", { class: column.right ? "right num" : null },
      ["accuracy", "sets", "size", "seen", "published"].includes(column.key) ? column.cell(row, null) : "–")));
}

// From the lowest to the highest end of an interval, so that all whiskers of a view share one scale.
function whiskerScale(shown) {
  const rows = shown.flatMap(({ head, others }) => [head, ...others]).filter((row) => known(row.mean));
  const low = Math.min(...rows.map((row) => row.mean - (row.ci95 ?? 0)), 1);
  const high = Math.max(...rows.map((row) => row.mean + (row.ci95 ?? 0)), 0);
  return (share) => 4 + 112 * Math.min(1, Math.max(0, (share - low) / (high - low || 1)));
}

function accuracyCell(row, scale) {
  if (!known(row.mean)) return el("span", { class: "note" }, row.failed.startsWith("not defined") ? "not defined" : "failed", small(row.failed));
  const several = row.sets * row.students_max > 1;
  const text = el("span", { class: "num said" }, el("span", { class: "mean" }, row.said.mean), several ? ` ± ${row.said.sd}` : "");
  const failed = row.failed_sets ? small(`${row.failed_sets} of ${row.sets + row.failed_sets} sets failed`) : null;
  return el("div", { class: "accuracy" }, text, scale ? whisker(row, scale) : null, failed);
}

function whisker(row, at) {
  if (!known(row.ci95)) return null;
  // What the row's own difference is to: a table may have several rows of random images.
  const random = known(row.gap) ? row.mean - row.gap : row.control === "random" ? row.mean : null;
  const said = `95 % interval ${row.said.low} to ${row.said.high}`;
  return svg("svg", { class: "whisker", width: 120, height: 18, role: "img", "aria-label": said }, title(said),
    known(random) ? svg("line", { class: "random", x1: at(random), x2: at(random), y1: 1, y2: 17 }) : null,
    svg("line", { class: "bar", x1: at(row.mean - row.ci95), x2: at(row.mean + row.ci95), y1: 9, y2: 9 }),
    svg("circle", { class: "dot", cx: at(row.mean), cy: 9, r: 3.5 }));
}

function groupCell(row) {
  if (!row.alike) return "–";
  return el("span", { class: "letters" }, spanned(row.alike), row.provisional ? "†" : "");
}

function setsCell(row) {
  const range = row.students_max > row.students_min ? `${row.students_min}–${row.students_max}` : row.students_min;
  return row.sets ? `${row.sets} × ${range}` : "–";
}

function gapCell(row) {
  if (!known(row.gap)) return "–";
  return [signed(row.gap), known(row.gap_ci95) ? small(`± ${percent(row.gap_ci95)}`) : null];
}

function sizeCell(row) {
  const rest = row.bytes.other + row.bytes.beside;
  return [bytes(total(row)), small([row.bytes.images, row.bytes.labels, ...(rest > 0 ? [rest] : [])].map(bytes).join(" + "))];
}

function timeCell(row) {
  return known(row.seconds) ? [duration(row.seconds), small(Object.keys(row.cost).map(shortDevice).join(", "))] : "–";
}

const shortDevice = (name) => name.replace(/^NVIDIA (\S+).*/, "$1").replace(/\(R\)|\(TM\)|Processor|CPU @.*/g, "").trim();

function publishedCell(row) {
  if (!row.published.length) return "–";
  return row.published.map((number, place) => el(place ? "small" : "span", { title: number.source }, el("span", { class: "num" }, number.text),
    number.method === row.method ? "" : ` ${number.method}`, place ? `, ${number.protocol}` : small(`under ${number.protocol}`)));
}

function drawMarks(shown) {
  const rows = shown.flatMap(({ head, others }) => [head, ...others]);
  const said = [
    ["*", rows.some((row) => row.whitened), "the set lives in a ZCA-whitened pixel space"],
    ["†", rows.some((row) => row.provisional), "provisional: from one set, which says nothing of others, or from one student a set"],
    ["§", rows.some((row) => row.control), "control: real images, under the same labels and recipe"],
    ["‡", rows.some((row) => row.kind === "imported"), "imported: condensed by others, and here only judged"],
    ["✓", rows.some((row) => row.verified), "verified: a student of every set was trained again, and agrees with the record"],
  ];
  const differing = rows.filter((row) => row.differs).map((row) =>
    `${`${row.name} ${row.setting}`.trim()}: a check differs, so it is not verified: ${row.differs}`);
  document.getElementById("marks").replaceChildren(
    ...said.filter(([, used]) => used).map(([mark, , meaning]) => el("li", {}, `${mark} ${meaning}`)),
    ...differing.map((text) => el("li", {}, text)));
}
