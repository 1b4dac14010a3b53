// Elements and texts. Nothing from a record becomes markup: it is set as text or as an attribute.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const small = (...children) => el("small", {}, ...children);
const title = (text) => svg("title", {}, text);

const known = (value) => value !== null && value !== undefined;
// A mean in the middle between two printed ones is printed alike, however it was added up.
const percent = (share, digits = 1) => Number((100 * share).toFixed(9)).toFixed(digits).replace("-", "−");
const signed = (share) => (share < 0 ? "" : "+") + percent(share);

function bytes(count) {
  for (const [unit, scale] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (count >= scale) return `${(count / scale).toFixed(1)} ${unit}`;
  }
  return `${count} B`;
}

function duration(seconds) {
  if (seconds < 0.05) return "< 0.1 s";
  if (seconds < 9.95) return `${seconds.toFixed(1).replace(/\.0$/, "")} s`;
  const whole = Math.round(seconds), two = (n) => String(n).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
}

const budget = (ipc) => (ipc ? `ipc ${ipc}` : "whole dataset");
const total = (row) => row.bytes.images + row.bytes.labels + row.bytes.other + row.bytes.beside;
const marks = (row) =>
  (row.control ? "§" : "") + (row.whitened ? "*" : "") + (row.provisional ? "†" : "") + (row.kind === "imported" ? "‡" : "") + (row.verified ? "✓" : "");

// "a", "a, b" and from three in a row on "a–c".
function spanned(letters) {
  const parts = [];
  for (const letter of letters.match(/[a-z]\d*/g) || []) {
    const run = parts.at(-1);
    if (run && letter.length === 1 && letter.charCodeAt(0) === run.at(-1).charCodeAt(0) + 1) run.push(letter);
    else parts.push([letter]);
  }
  return parts.map((run) => (run.length > 2 ? `${run[0]}–${run.at(-1)}` : run.join(", "))).join(", ");
}
