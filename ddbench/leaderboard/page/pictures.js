// Pictures of the chosen dataset, protocol and judge, as SVG that is drawn at the width that it has.

const MARGIN = { left: 38, right: 74, top: 10, bottom: 34 };
const HEIGHT = 300;

function drawPictures() {
  if (!state.table) return;
  const alike = (row) => row.of.data === state.dataset && row.of.recipe === state.protocol && row.of.track === state.track && row.kind !== "ceiling" &&
    row.of.ipc > 0 && known(row.mean) && (!state.labels || row.labels === state.labels);
  const rows = DOCUMENT.rows.filter((row) => alike(row) && row.judge === state.judge);
  const cost = rows.filter((row) => known(row.seconds) && row.seconds > 0);
  const place = document.getElementById("pictures");
  const columns = Math.max(1, Math.floor((place.clientWidth + 56) / (416 + 56)));
  const room = (place.clientWidth - 56 * (Math.min(columns, 2) - 1)) / Math.min(columns, 2);
  const hollow = rows.some((row) => row.alike === null) ? " Hollow: other settings of a method." : "";
  const said = `${state.protocol}, ${TRACKS[state.track]}, ${state.judge}`;
  place.replaceChildren(
    figure("Accuracy against bytes", `All budgets, ${said}. Dashed: nothing smaller does better.${hollow}`, scatter(rows, total, round, room, "bytes of images, labels and all else")),
    figure("Accuracy against device time", `All budgets, ${said}. Dashed: nothing faster does better. Devices differ where the table says so.${hollow}`, scatter(cost, (row) => row.seconds, time, room, "time for one set", TIMES)),
    figure("Accuracy over images per class", `${said}; whiskers are 95 % intervals.`, overBudgets(rows.filter((row) => row.alike !== null), room)),
    figure("Other architectures", `${budget(state.table.ipc)}, ${state.protocol}: the same sets under every judge, in %.`, heat()));
}

function figure(name, words, picture) {
  return el("figure", {}, el("figcaption", {}, el("h3", {}, name), el("span", { class: "note" }, words)), picture);
}

// A range that ends at round numbers, with its marks.
function rounded(low, high, count = 5) {
  const rough = Math.max(high - low, 1e-4) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const marksAt = [];
  for (let k = Math.floor(low / step + 1e-9); k * step < high + step * (1 - 1e-9); k++) marksAt.push(k * step);
  return marksAt;
}

function verticalAxis(rows, room) {
  const bottom = Math.min(...rows.map((row) => row.mean - (row.bar ?? 0))), top = Math.max(...rows.map((row) => row.mean + (row.bar ?? 0)));
  const spare = Math.max(0, 0.02 - (top - bottom)) / 2;  // one row, or equal ones, lie in the middle of two points
  const at = rounded(Math.max(0, bottom - spare), Math.min(1, top + spare));
  const [low, high] = [at[0], at.at(-1)];
  const y = (share) => HEIGHT - MARGIN.bottom - (HEIGHT - MARGIN.top - MARGIN.bottom) * (share - low) / (high - low);
  const lines = at.map((share) => [svg("line", { class: "axis", x1: MARGIN.left, x2: room - MARGIN.right, y1: y(share), y2: y(share) }),
    svg("text", { x: MARGIN.left - 8, y: y(share) + 4, "text-anchor": "end" }, String(+(100 * share).toFixed(2)))]);
  return { y, lines };
}

function logAxis(values, said, room, marksAt) {
  const logs = values.map(Math.log10), low = Math.min(...logs), high = Math.max(...logs), pad = (high - low || 1) * 0.06;
  const x = (value) => MARGIN.left + (room - MARGIN.left - MARGIN.right) * (Math.log10(value) - low + pad) / (high - low + 2 * pad);
  const whole = [];
  for (let power = Math.ceil(low - pad); power <= high + pad; power++) whole.push(10 ** power);
  const inside = marksAt?.filter((value) => Math.log10(value) >= low - pad && Math.log10(value) <= high + pad);
  const wanted = inside?.length ? inside : whole.length ? whole : [values[0]];
  const every = Math.ceil(wanted.length / Math.max(2, Math.floor(room / 90)));
  const lines = wanted.filter((_, k) => k % every === 0).map((value) => [
    svg("line", { class: "axis", x1: x(value), x2: x(value), y1: HEIGHT - MARGIN.bottom, y2: HEIGHT - MARGIN.bottom + 5 }),
    svg("text", { x: x(value), y: HEIGHT - MARGIN.bottom + 18, "text-anchor": "middle" }, said(value))]);
  return { x, lines };
}

// Texts that would lie on another one are left to what a pointer says.
function placeLabels(points) {
  const taken = [], texts = [];
  for (const { x, y, text, method, best } of points) {
    if (texts.some((other) => other.textContent === text)) continue;
    const width = 6.4 * text.length + 4;
    const fits = [...(best ? [[x - 4, y - 8], [x - width + 4, y - 8]] : []), [x + 8, y + 4], [x + 8, y - 7], [x + 8, y + 15], [x - width - 4, y + 4]].find(([left, base]) =>
      left > MARGIN.left && taken.every((box) => left + width < box[0] || left > box[1] || base - 11 > box[3] || base + 2 < box[2]) &&
      points.every((other) => other.x === x && other.y === y || other.x + 5 < left || other.x - 5 > left + width || other.y + 5 < base - 10 || other.y - 5 > base));
    if (!fits) continue;
    taken.push([fits[0], fits[0] + width, fits[1] - 10, fits[1] + 1]);
    texts.push(svg("text", { x: fits[0], y: fits[1], "data-method": method, class: best ? "best" : null }, text));
  }
  return texts;
}

function pointTitle(row) {
  return `${row.name} ${row.setting}`.trim() + `, ${budget(row.of.ipc)}: ${row.said.mean} %, ${bytes(total(row))}` + (known(row.seconds) ? `, ${duration(row.seconds)}` : "");
}

const TIMES = [0.1, 1, 10, 60, 600, 3600, 36000, 360000];
const time = (seconds) => ({ 60: "1 min", 600: "10 min" })[seconds] ??
  (seconds >= 3600 && seconds % 3600 === 0 ? `${seconds / 3600} h` : duration(seconds));
const round = (count) => bytes(count).replace(".0", "");

const go = (row) => () => show({ ipc: String(row.of.ipc), open: row.id, set: "" });

function scatter(rows, cost, said, room, axis, marksAt) {
  if (!rows.length) return el("p", { class: "note" }, "Nothing is known here.");
  const { y, lines: levels } = verticalAxis(rows, room);
  const { x, lines } = logAxis(rows.map(cost), said, room, marksAt);
  const front = [];
  for (const row of [...rows].sort((a, b) => cost(a) - cost(b) || b.mean - a.mean)) {
    if (!front.length || row.mean > front.at(-1).mean) front.push(row);
  }
  const steps = front.map((row, k) => (k ? `H${x(cost(row))}V${y(row.mean)}` : `M${x(cost(row))},${y(row.mean)}`)).join("");
  const points = rows.map((row) => ({ row, x: x(cost(row)), y: y(row.mean), method: row.name, best: front.includes(row),
    text: `${row.name} ${row.of.ipc}` })).sort((a, b) => b.best - a.best || (b.row.alike !== null) - (a.row.alike !== null) || b.row.mean - a.row.mean);
  return svg("svg", { width: room, height: HEIGHT, role: "img", "aria-label": `Accuracy in percent against ${axis}, with the Pareto front` },
    levels, lines, svg("text", { x: room - MARGIN.right, y: HEIGHT, "text-anchor": "end" }, axis),
    svg("path", { class: "front", d: steps }),
    [...points].reverse().map(({ row, best, ...point }) => svg("circle", { class: `dot${best ? " best" : ""}${row.alike === null ? " small" : ""}`,
      cx: point.x, cy: point.y, r: row.alike === null ? 3 : 4.5, "data-method": row.name, onclick: go(row) }, title(pointTitle(row)))),
    placeLabels(points));
}

function overBudgets(rows, room) {
  if (!rows.length) return el("p", { class: "note" }, "Nothing is known here.");
  const top = ceilings().map((row) => ({ mean: row.mean }));
  const { y, lines: levels } = verticalAxis([...rows.map((row) => ({ mean: row.mean, bar: row.ci95 })), ...top], room);
  const ipcs = distinct(rows.map((row) => row.of.ipc)).sort((a, b) => a - b);
  const { x, lines } = logAxis(ipcs, String, room, ipcs);
  const methods = distinct(rows.map((row) => row.family)).map((family) =>
    rows.filter((row) => row.family === family).sort((a, b) => a.of.ipc - b.of.ipc));
  const ends = methods.map((line) => ({ method: line[0].name, x: x(line.at(-1).of.ipc), at: y(line.at(-1).mean) }));
  for (const ipc of ipcs) moveApart(ends.filter((end) => end.x === x(ipc)));
  const bar = (row) => known(row.ci95) ? svg("line", { class: "bar", x1: x(row.of.ipc), x2: x(row.of.ipc), y1: y(Math.min(1, row.mean + row.ci95)), y2: y(Math.max(0, row.mean - row.ci95)) }) : null;
  return svg("svg", { width: room, height: HEIGHT, role: "img", "aria-label": "Accuracy in percent over images per class, a line a method" },
    levels, lines, svg("text", { x: room - MARGIN.right, y: HEIGHT, "text-anchor": "end" }, "images per class"),
    top.map((row) => [svg("line", { class: "ceiling", x1: MARGIN.left, x2: room - MARGIN.right, y1: y(row.mean), y2: y(row.mean) }),
      svg("text", { x: room - MARGIN.right + 6, y: y(row.mean) + 4 }, "all images")]),
    methods.map((line) => svg("g", { "data-method": line[0].name },
      svg("path", { class: "path", d: line.map((row, k) => `${k ? "L" : "M"}${x(row.of.ipc)},${y(row.mean)}`).join("") }),
      line.map(bar),
      line.map((row) => svg("circle", { class: "dot", cx: x(row.of.ipc), cy: y(row.mean), r: 4, onclick: go(row) }, title(pointTitle(row)))))),
    ends.map((end) => svg("text", { x: end.x + 9, y: end.text, "data-method": end.method }, end.method)));
}

// Names at one place of the axis, each as near to its point as the others let it be.
function moveApart(ends) {
  const groups = [];
  for (const end of [...ends].sort((a, b) => a.at - b.at)) {
    let group = [end];
    const middle = (members) => members.reduce((sum, member) => sum + member.at, 0) / members.length;
    while (groups.length && middle(group) - middle(groups.at(-1)) < 6 * (group.length + groups.at(-1).length)) group = [...groups.pop(), ...group];
    groups.push(group);
  }
  for (const group of groups) {
    const middle = group.reduce((sum, end) => sum + end.at, 0) / group.length;
    group.forEach((end, k) => { end.text = middle + 12 * (k - (group.length - 1) / 2) + 4; });
  }
}

function heat() {
  const judges = state.table.judges;
  const heads = families().map((family) => family.head).sort((a, b) => (b.mean ?? -1) - (a.mean ?? -1));
  const cells = rowsOf(state.table).filter((row) => row.alike !== null && known(row.mean));
  const low = Math.min(...cells.map((row) => row.mean)), high = Math.max(...cells.map((row) => row.mean));
  const cell = (head, judge) => {
    const row = cells.find((candidate) => candidate.judge === judge && candidate.family === head.family);
    if (!row) return el("td", { class: "none" }, "–");
    const made = el("td", { class: "num", title: `${row.name}, ${judge}` }, row.said.mean + (row.provisional ? "†" : ""));
    made.style.setProperty("--share", (row.mean - low) / (high - low || 1));
    return made;
  };
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Accuracy by method and architecture" },
    el("table", { class: "heat" }, el("thead", {}, el("tr", {}, el("td", { class: "none" }), judges.map((judge) => el("th", { scope: "col" }, judge)))),
      el("tbody", {}, heads.map((head) => el("tr", { "data-method": head.name }, el("th", { scope: "row" }, head.name), judges.map((judge) => cell(head, judge)))))));
}

function curvePicture(curve) {
  const points = curve.points.filter(([, accuracy]) => accuracy.length).map(([step, accuracy]) => ({ step, mean: accuracy.reduce((a, b) => a + b, 0) / accuracy.length,
    low: Math.min(...accuracy), high: Math.max(...accuracy) }));
  if (!points.length) return null;
  const room = 400, height = 190, last = Math.max(...points.map((point) => point.step), 1);
  const at = rounded(Math.min(...points.map((p) => p.low)), Math.max(...points.map((p) => p.high)), 4);
  const x = (step) => 34 + (room - 60) * step / last;
  const y = (share) => height - 26 - (height - 36) * (share - at[0]) / (at.at(-1) - at[0]);
  return svg("svg", { class: "curve", viewBox: `0 0 ${room} ${height}`, width: "100%", role: "img", "aria-label": "Accuracy in percent over steps" },
    at.map((share) => [svg("line", { class: "axis", x1: 34, x2: room - 26, y1: y(share), y2: y(share) }),
      svg("text", { x: 28, y: y(share) + 4, "text-anchor": "end" }, String(+(100 * share).toFixed(2)))]),
    svg("text", { x: 34, y: height - 6 }, "0"), svg("text", { x: room - 26, y: height - 6, "text-anchor": "end" }, `${last} steps`),
    svg("path", { class: "path", d: points.map((p, k) => `${k ? "L" : "M"}${x(p.step)},${y(p.mean)}`).join("") }),
    points.map((p) => [svg("line", { class: "bar", x1: x(p.step), x2: x(p.step), y1: y(p.low), y2: y(p.high) }),
      svg("circle", { class: "dot", cx: x(p.step), cy: y(p.mean), r: 3 }, title(`step ${p.step}: ${percent(p.mean)} %`))]));
}
