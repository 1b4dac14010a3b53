// What a row opens to: the images, every student, the settings and where they are from, cost, provenance, command.

function details(row) {
  const chosen = row.runs.find((run) => run.id === state.set) ?? row.runs[0];
  const run = { ...DOCUMENT.runs[chosen.id], id: chosen.id };
  return el("div", { class: "sheet" }, setChoice(row, chosen), sheetPart(run), studentsPart(row), checksPart(chosen), curvePart(run),
    scoresPart(row), costPart(row, run), originPart(row, run), commandPart(run), settingsPart(run), publishedPart(row));
}

const part = (name, ...children) => el("section", {}, el("h3", {}, name), ...children);
const wide = (name, ...children) => el("section", { class: "full" }, el("h3", {}, name), ...children);

function pairs(entries) {
  return el("dl", { class: "pairs" }, entries.filter(([, value]) => known(value) && value !== "").map(
    ([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function mini(heads, rows, kind = "") {
  return el("table", { class: `mini ${kind}`.trim() }, el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, rows.map((cells) => el("tr", {}, cells.map((cell) => el("td", {}, cell))))));
}

function setChoice(row, chosen) {
  if (row.runs.length < 2) return null;
  const said = (run) => `seed ${DOCUMENT.runs[run.id].seed}`;
  return el("section", { class: "full" }, el("fieldset", { class: "choice" }, el("legend", {}, `One of ${row.runs.length} sets`),
    el("span", { class: "pills" }, row.runs.map((run) => el("label", {},
      el("input", { type: "radio", name: "set", value: run.id, checked: run === chosen,
        onchange: () => { show({ set: run.id }); refocus(`.sheet input[value="${run.id}"]`); } }),
      el("span", {}, said(run)))))));
}

function sheetPart(run) {
  if (!run.sheet) return null;
  const { data, classes, rows, stretched } = run.sheet;
  const words = `A column a class, ${classes} classes, ${rows} ${rows === 1 ? "image" : "images"} of each` +
    (stretched ? "; each image from its darkest to its brightest value" : "");
  return el("section", { class: "tall" }, el("h3", {}, "The set"), el("img", { src: data, alt: `Images of the set of run ${run.id}. ${words}.` }), el("p", { class: "note" }, `${words}.`));
}

function studentsPart(row) {
  const all = row.runs.flatMap((run) => run.accuracy);
  if (!all.length) return part("Students", el("p", { class: "note" }, row.failed || "none finished"));
  const low = Math.min(...all), high = Math.max(...all), room = 270;
  const at = (share) => 56 + room * (high > low ? (share - low) / (high - low) : 0.5);
  const height = 20 * row.runs.length + 22;
  const lines = row.runs.map((run, place) => [
    svg("text", { x: 0, y: 20 * place + 14 }, `seed ${DOCUMENT.runs[run.id].seed}`),
    svg("line", { class: "axis", x1: 56, x2: 56 + room, y1: 20 * place + 10, y2: 20 * place + 10 }),
    run.accuracy.map((share, student) => svg("circle", { class: "dot", "fill-opacity": 0.6, cx: at(share), cy: 20 * place + 10, r: 4 },
      title(`student ${student}: ${percent(share, 2)} %`)))]);
  const ends = [svg("text", { x: 56, y: height - 4 }, percent(low)), svg("text", { x: 56 + room, y: height - 4, "text-anchor": "end" }, `${percent(high)} %`)];
  return part("Every student",
    svg("svg", { class: "strip", viewBox: `0 0 340 ${height}`, width: "100%", role: "img", "aria-label": "Accuracy of every student, a line a set" }, lines, ends),
    mini(["set", "students, %", "mean"], row.runs.map((run) => [`seed ${DOCUMENT.runs[run.id].seed}`,
      run.accuracy.map((share) => percent(share, 2)).join("  ") || run.failed || "–",
      run.accuracy.length ? percent(run.accuracy.reduce((a, b) => a + b, 0) / run.accuracy.length) : "–"])));
}

function checksPart(run) {
  if (!run.checks.length) return null;
  return part("Trained again", el("ul", { class: "note" }, run.checks.map((text) => el("li", {}, text))));
}

function curvePart(run) {
  if (!run.curves?.length) return null;
  return part("Learning curve", run.curves.map((curve) => [el("p", { class: "note" }, `${curve.protocol}, ${curve.judge}: all snapshots, none chosen`), curvePicture(curve)]));
}

function commandPart(run) {
  if (!run.commands.length) {
    const claims = run.imported?.claims ?? {};
    return wide("Imported", pairs([["file", run.imported?.file], ["sha256 of the file", el("code", {}, run.imported?.sha256 ?? "")],
      ["layout", run.imported?.layout], ...Object.entries(claims).map(([name, value]) => [`claims ${name}`, String(value)])]));
  }
  return wide("The command that makes it again, and compares", command([run.reproduce]),
    el("p", { class: "note" }, "What it runs, for whoever has no record of the set:"), command(run.commands));
}

function command(lines) {
  const words = lines.join("\n"), text = el("code", {}, words);
  return el("div", { class: "copied" }, el("pre", { class: "command" }, text),
    el("button", { type: "button", class: "button", onclick: (event) => copy(words, text, event.target) }, "Copy"));
}

function copy(words, element, button) {
  const selected = () => { getSelection().selectAllChildren(element); button.textContent = "Selected"; };
  if (!navigator.clipboard) selected();
  else navigator.clipboard.writeText(words).then(() => { button.textContent = "Copied"; }, selected);
}

function settingsPart(run) {
  const own = [["backbone", run.backbone], ["pixels", run.pixels], ["precision", run.precision], ["preset", run.preset]];
  const all = [...own.map(([name, value]) => [name, value, "the run"]), ...run.options];
  const by = distinct(all.map(([, , source]) => source)).map((source) => [source, all.filter((option) => option[2] === source)]);
  const option = ([name, value]) => [el("code", { class: "option" }, `${name} = ${value}`), " "];
  return wide("Settings and their sources", mini(["from", "options"], by.map(([source, options]) => [source, options.map(option)])));
}

function scoresPart(row) {
  const said = {
    lrs: ["label-robust score, LRS", (value) => `${value.toFixed(1)} of 100`],
    ars: ["augmentation-robust score, ARS", (value) => `${value.toFixed(1)} of 100`],
    recognised: ["recognised by a network of real images", (value) => `${percent(value)} %`],
    correlation: ["correlation of loss and test loss, DCS", (value) => value.toFixed(2)],
  };
  const entries = Object.entries(row.scores).map(([name, value]) => [said[name][0], said[name][1](value)]);
  return entries.length ? part("Beside accuracy", pairs(entries)) : null;
}

function costPart(row, run) {
  const cost = Object.entries(row.cost).map(([device, seconds]) => `${duration(seconds)} on ${device}`).join("; ");
  return part("Cost", pairs([
    ["images", bytes(row.bytes.images)], ["labels", `${bytes(row.bytes.labels)} (${row.labels})`],
    ["step sizes, start", row.bytes.other ? bytes(row.bytes.other) : ""],
    ["beside the set", row.bytes.beside ? bytes(row.bytes.beside) : ""],
    ["one set", row.kind === "imported" ? "not known: others made it" : cost],
    ...run.artifacts.filter(([, seconds]) => seconds).map(([kind, seconds]) => [`of that, ${kind}`, duration(seconds)]),
    ["most device memory", known(run.peak_device_bytes) ? bytes(run.peak_device_bytes) : ""],
    ["one student", known(row.forwards) ? `${row.seen} images seen` : ""]]));
}

function originPart(row, run) {
  const paper = DOCUMENT.papers[row.method];
  const where = paper ? [paper.venue, paper.year].filter(Boolean).join(" ") : "";
  const packages = ["torch", "ddbench"].filter((name) => run.packages[name]).map((name) => `${name} ${run.packages[name]}`).join(", ");
  return part("Where it is from", pairs([
    ["paper", paper ? [paper.title, where ? `, ${where}` : "", paper.arxiv ? [", ", el("a", { href: `https://arxiv.org/abs/${encodeURI(paper.arxiv)}`, rel: "noreferrer" }, `arXiv ${paper.arxiv}`)] : ""].flat() : row.title],
    ["made by", run.provided_by], ["device", run.devices.join(", ")], ["with", packages], ["on", run.started.slice(0, 10)],
    ["commit", run.commit ? el("span", {}, el("code", {}, run.commit.slice(0, 12)), run.dirty ? ", with changes that no commit holds" : "") : "of a release"],
    ["run", el("code", {}, run.id)],
    ["set, sha256", el("code", {}, run.sha256)],
    ["download", run.download ? downloadLinks(run.download) : "not published; the command makes it again"],
    ["picture", run.sheet ? "" : "none in the record"],
    ["images", `${run.images}, stored as ${run.stored}${run.decode === "none" ? "" : `, decoded by ${run.decode}`}`],
    ["learned", run.learned.join(", ")],
    ["step chosen", run.choice ? `${run.choice.step}, by ${run.choice.images} held-out training images` : ""]]));
}

function downloadLinks(download) {
  return el("span", {}, el("code", {}, download.command), ` (${bytes(download.bytes)}; sha256 of the file `,
    el("code", {}, download.sha256), ")");
}

function publishedPart(row) {
  if (!row.printed.length) return null;
  const rows = row.printed.map((number) => [el("span", { class: "num" }, number.text),
    number.protocol + (number.method === row.method ? "" : ` (${number.method})`), number.test_backbone,
    el("div", { class: "long" }, number.source + (number.note ? `; ${number.note}` : ""))]);
  return wide("Published numbers, as printed", el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Published numbers" },
    mini(["accuracy, %", "recipe", "tested on", "source"], rows, "words")));
}
