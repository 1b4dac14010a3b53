// What is shown: the choices, the address that says them, and the rows that they leave.

const DOCUMENT = JSON.parse(document.getElementById("document").textContent);
const CEILING = "full@1";
const TRACKS = { hard: "classes", soft: "stored soft labels", teacher: "a teacher on line", unknown: "not recorded" };
const form = document.getElementById("choices");
const unfolded = new Set();
let state = {};

DOCUMENT.rows.forEach((row) => { row.of = DOCUMENT.tables[row.table]; });

// A dataset is told by its title, and by its fingerprint where two have one title.
const DATASETS = new Map();
for (const table of DOCUMENT.tables) {
  const twins = DOCUMENT.tables.filter((other) => other.data_title === table.data_title);
  const alone = twins.every((other) => other.fingerprint === table.fingerprint);
  table.data = alone ? table.data_title : `${table.data_title} (${table.fingerprint})`;
  const recipes = twins.filter((other) => other.protocol === table.protocol);
  const one = recipes.every((other) => other.digest === table.digest);
  table.recipe = one ? table.protocol : `${table.protocol} (${table.digest.slice(0, 8)})`;
  if (!DATASETS.has(table.data)) DATASETS.set(table.data, []);
  DATASETS.get(table.data).push(table);
}
for (const tables of DATASETS.values()) {
  if (tables.some((table) => table.ipc)) tables.choices = tables.filter((table) => table.ipc);
  else tables.choices = tables;
}

const rowsOf = (table) => DOCUMENT.rows.filter((row) => row.of === table);
const distinct = (values) => [...new Set(values)];
const count = (tables) => tables.reduce((sum, table) => sum + rowsOf(table).length, 0);

// The wanted value if it is there; else the one with most rows.
function pick(wanted, options, weight) {
  if (options.includes(wanted)) return wanted;
  return options.reduce((best, option) => (best === undefined || weight(option) > weight(best) ? option : best), undefined);
}

function resolve(wanted) {
  const dataset = pick(wanted.dataset, [...DATASETS.keys()], (name) => count(DATASETS.get(name).choices));
  const tables = DATASETS.get(dataset)?.choices ?? [];
  const ipcs = distinct(tables.map((table) => String(table.ipc))).sort((a, b) => a - b);
  const ipc = pick(wanted.ipc, ipcs, (value) => count(tables.filter((table) => String(table.ipc) === value)));
  const budgeted = tables.filter((table) => String(table.ipc) === ipc);
  // One table has one track: what students learn from. An address that names none means that of its protocol.
  const tracks = distinct(budgeted.map((table) => table.track)).sort();
  const meant = wanted.track || budgeted.find((table) => table.recipe === wanted.protocol)?.track;
  const track = pick(meant, tracks, (name) => count(budgeted.filter((table) => table.track === name)));
  const here = budgeted.filter((table) => table.track === track);
  const recipes = here.map((table) => table.recipe).sort();
  const recipe = pick(wanted.protocol, recipes, (name) => count(here.filter((table) => table.recipe === name)));
  const table = here.find((candidate) => candidate.recipe === recipe);
  const judge = pick(wanted.judge, table?.judges ?? [], () => 0);
  const kinds = distinct(rowsOf(table).map((row) => row.labels)).sort();
  const labels = kinds.includes(wanted.labels) ? wanted.labels : "";
  const sort = COLUMNS.some((column) => column.key === (wanted.sort ?? "").replace(/^-/, "")) ? wanted.sort : "-accuracy";
  return { dataset, ipc, track, protocol: recipe, judge, labels, q: wanted.q ?? "", sort, open: wanted.open ?? "",
    set: wanted.set ?? "", table, choices: { ipcs, tracks, recipes, judges: table?.judges ?? [], kinds } };
}

const NAMES = ["dataset", "ipc", "track", "protocol", "judge", "labels", "q", "sort", "open", "set"];

function readAddress() {
  return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
}

function writeAddress() {
  const said = new URLSearchParams(NAMES.filter((name) => state[name]).map((name) => [name, state[name]]));
  // Pages that are opened as files may keep no history; the address bar still follows.
  if (location.hash.slice(1) !== String(said)) history.replaceState(null, "", `#${said}`);
}

function show(changes) {
  state = resolve({ ...state, ...changes });
  writeAddress();
  drawChoices();
  drawTable();
  drawPictures();
}

function drawChoices() {
  const options = (name, values, said = (value) => value) => {
    const select = form.elements[name];
    select.replaceChildren(...values.map((value) => el("option", { value }, said(value))));
    select.value = state[name];
    select.disabled = values.length < 2;
  };
  options("dataset", [...DATASETS.keys()]);
  options("track", state.choices.tracks, (track) => TRACKS[track]);
  options("protocol", state.choices.recipes);
  options("judge", state.choices.judges);
  options("labels", ["", ...state.choices.kinds], (kind) => kind || "any");
  if (document.activeElement !== form.elements.q) form.elements.q.value = state.q;
  const held = document.activeElement?.name === "ipc";
  document.getElementById("ipcs").replaceChildren(...state.choices.ipcs.map((ipc) => el("label", {},
    el("input", { type: "radio", name: "ipc", value: ipc, checked: ipc === state.ipc }),
    el("span", {}, ipc === "0" ? "all" : ipc))));
  if (held) form.querySelector("input[name=ipc]:checked")?.focus();
}

// The rows of the chosen table and judge, one list a method: what stands for it, then its other settings.
function families() {
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (row) => {
    const text = `${row.name} ${row.title} ${row.setting}`.toLowerCase();
    return (!state.labels || row.labels === state.labels) && words.every((word) => text.includes(word));
  };
  const rows = rowsOf(state.table).filter((row) => row.judge === state.judge && row.kind !== "ceiling");
  return rows.filter((row) => row.alike !== null).map((head) => {
    const others = rows.filter((row) => row.alike === null && row.family === head.family);
    return { head, others: others.filter(fits), fits: fits(head), asked: words.length > 0 };
  }).filter((family) => family.fits || family.others.length);
}

// The whole dataset under the judge: under the protocol of the table where it was judged so, else under its own.
function ceilings(table = state.table, judge = state.judge) {
  const whole = DOCUMENT.rows.filter((row) => row.kind === "ceiling" && !row.of.ipc && row.judge === judge &&
    row.of.fingerprint === table?.fingerprint && known(row.mean));
  const same = whole.filter((row) => row.of.digest === table.digest && row.of.track === table.track);
  return same.length ? same : whole.filter((row) => row.of.protocol === CEILING);
}

form.addEventListener("input", (event) => {
  const { name, value } = event.target;
  show({ [name]: value, ...(name === "q" || name === "labels" ? {} : { open: "", set: "" }) });
});
form.addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("hashchange", () => { state = {}; show(readAddress()); });

// A method that is pointed at is lit wherever it stands.
function light(event) {
  const method = event.target.closest?.("[data-method]")?.dataset.method;
  for (const other of document.querySelectorAll("[data-method]")) {
    other.classList.toggle("lit", method !== undefined && other.dataset.method === method);
  }
}
for (const name of ["mouseover", "focusin"]) document.querySelector("main").addEventListener(name, light);

let width = 0;
new ResizeObserver(() => {
  if (Math.abs(document.body.clientWidth - width) > 8) { width = document.body.clientWidth; drawPictures(); }
}).observe(document.body);

width = document.body.clientWidth;
show(readAddress());
