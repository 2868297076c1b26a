"use strict";
const PAGE = 50, STRIP = 3;
const data = JSON.parse(document.getElementById("data").textContent);
const column = Object.fromEntries(data.columns.map(one => [one.name, one]));
const shown = data.columns.filter(one => one.name !== "influence_se");
const labelled = data.queries.some(query => query.label) ? "label · " : "";
const at = id => document.getElementById(id);
const head = document.querySelector("#points thead"), body = document.querySelector("#points tbody");
let order = [], page = 0, sorted = null, down = false;

const text = (one, row) => {
  const value = one.values[row];
  return one.kind === "word" ? one.words[value] : value === null ? "" : String(value);
};

function make(tag, parts = [], attributes = {}) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...[parts].flat());
  return element;
}

function sample(one, name) {
  const parts = [];
  if (one.png) parts.push(make("img", [], { class: "sample", alt: name, src: "data:image/png;base64," + one.png }));
  if (one.text) parts.push(make("span", one.text, { class: "words" }));
  return parts;
}

// The queries of one sign, strongest first: what the point helps and what it harms.
function pulls(detail, sign) {
  const some = detail.pulls.filter(([, influence]) => Math.sign(influence) === sign);
  return some.sort(([, a], [, b]) => Math.abs(b) - Math.abs(a));
}

function strip(some) {
  return make("div", some.map(([place, influence]) => {
    const query = data.queries[place], name = `query ${query.id}`;
    const caption = (query.label && `${query.label} · `) + influence.toPrecision(3);
    const [seen = query.id] = sample(query, name); // the picture where there is one, else the text
    return make("figure", [make("div", seen, { class: "text" }), make("figcaption", caption)],
      { title: `${name}, ${query.label && `label ${query.label}, `}influence ${influence} nats` });
  }), { class: "strip" });
}

// The tokens of a text, the more coloured the more of the point's influence lies at them; the largest is of full colour.
function marked(detail) {
  const most = Math.max(...detail.tokens.map(([, influence]) => Math.abs(influence))) || 1;
  const words = detail.tokens.flatMap(([word, influence]) => {
    const level = Math.round(4 * Math.abs(influence) / most), kind = influence < 0 ? "harms" : "helps";
    const title = `${influence.toPrecision(3)} nats`;
    return [make("span", word, level ? { class: `${kind} level-${level}`, title } : { title }), " "];
  });
  const legend = [make("span", "harmful", { class: "harms level-4" }), " ", make("span", "helpful", { class: "helps level-4" }),
    ` where its influence lies in its text; full colour is ${most.toPrecision(3)} nats; what sees no single token: `
    + `${detail.rest.toPrecision(3)} nats`];
  return [make("p", legend, { class: "quiet" }), make("p", words, { class: "tokens" })];
}

function detailRow(detail, width) {
  const parts = detail.evidence.map(line => make("li", line));
  const content = [make("ul", parts)];
  if (detail.tokens?.length) content.push(...marked(detail));
  for (const [sign, title] of [[-1, "queries it harms most (their loss falls if the point goes)"],
    [1, "queries it helps most (their loss rises)"]]) {
    content.push(make("p", `${title}: ${labelled}influence in nats`, { class: "quiet" }), strip(pulls(detail, sign)));
  }
  return make("tr", make("td", content, { colspan: width }), { class: "detail" });
}

function toggle(button, row, line) {
  const open = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!open));
  button.textContent = open ? "▸" : "▾";
  if (open) line.nextElementSibling.remove();
  else line.after(detailRow(data.details[row], line.cells.length));
}

function cell(one, row) {
  const value = text(one, row);
  if (one.name === "action") return make("td", value, { class: `action ${value}` });
  if (one.name !== "influence") return make("td", value, { class: one.kind });
  const error = column.influence_se.values[row];
  return make("td", [value, make("small", error === null ? "" : ` ± ${error.toPrecision(2)}`)], { class: "number" });
}

// The sample stands beside the id, the queries beside the influence.
function placed(cells, picture, sides) {
  const influence = shown.indexOf(column.influence) + 1;
  return [cells[0], picture, ...cells.slice(1, influence), ...sides, ...cells.slice(influence)];
}

function line(row) {
  const detail = data.details[row], cells = shown.map(one => cell(one, row));
  const element = make("tr");
  if (detail) {
    const button = make("button", "▸", { type: "button", "aria-expanded": "false", "aria-label": `details of ${text(column.point_id, row)}` });
    button.addEventListener("click", () => toggle(button, row, element));
    cells[0].prepend(button, " ");
  }
  const picture = make("td", detail ? sample(detail, `sample ${text(column.point_id, row)}`) : [], { class: "text" });
  const sides = [-1, 1].map(sign => make("td", detail ? strip(pulls(detail, sign).slice(0, STRIP)) : [], { class: "queries" }));
  element.append(...placed(cells, picture, sides));
  return element;
}

function draw() {
  const pages = Math.max(1, Math.ceil(order.length / PAGE));
  page = Math.min(Math.max(page, 0), pages - 1);
  body.replaceChildren(...Array.from(order.slice(page * PAGE, (page + 1) * PAGE), line));
  at("page").value = page + 1;
  at("page").max = pages;
  at("first").disabled = at("previous").disabled = page === 0;
  at("last").disabled = at("next").disabled = page === pages - 1;
  const all = data.rows.toLocaleString("en"), some = order.length.toLocaleString("en");
  at("status").textContent = `of ${pages.toLocaleString("en")}; ${some} of ${all} points`;
  at("points").scrollTop = 0;
}

const compareText = (a, b) => a < b ? -1 : Number(a > b);

// How two rows compare in a column, smallest first; a missing value is last whichever way the column is sorted.
function comparison(one, flip) {
  const values = one.kind === "word" ? ranks(one.words) : one.values;
  const integers = one.kind === "id" && values.every(value => /^-?\d+$/.test(value));
  return (i, j) => {
    const a = one.kind === "word" ? values[one.values[i]] : values[i];
    const b = one.kind === "word" ? values[one.values[j]] : values[j];
    if (a === null || b === null) return Number(a === null) - Number(b === null);
    return flip * (one.kind === "id" && !integers ? compareText(a, b) : a - b || compareText(a, b)) || i - j;
  };
}

function ranks(words) {
  const collator = new Intl.Collator("en", { numeric: true });
  const places = words.map((_, place) => place).sort((a, b) => collator.compare(words[a], words[b]));
  const found = [];
  places.forEach((place, rank) => { found[place] = words[place] === "" ? null : rank; });
  return found;
}

function matching() {
  const wanted = at("search").value.trim().toLowerCase();
  const chosen = [...document.querySelectorAll("#filters select")].filter(one => one.value !== "");
  const words = data.columns.filter(one => one.kind === "word")
    .map(one => ({ values: one.values, hit: one.words.map(word => word.toLowerCase().includes(wanted)) }));
  const ids = column.point_id.values;
  const found = row => ids[row].toLowerCase().includes(wanted) || words.some(one => one.hit[one.values[row]])
    || (data.details[row]?.text ?? "").toLowerCase().includes(wanted);
  const rows = [];
  for (let row = 0; row < data.rows; row += 1) {
    const kept = chosen.every(one => column[one.name].values[row] === Number(one.value));
    if (kept && (wanted === "" || found(row))) rows.push(row);
  }
  return rows;
}

function refresh() {
  order = matching();
  if (sorted) order.sort(comparison(sorted, down ? -1 : 1));
  page = 0;
  draw();
}

function heading(one) {
  const button = make("button", one.title, { type: "button", title: one.meaning });
  const parts = one.unit ? [button, make("small", one.unit)] : [button];
  const element = make("th", parts, { class: one.kind, scope: "col" });
  button.addEventListener("click", () => {
    down = sorted === one && !down;
    sorted = one;
    for (const other of head.rows[0].cells) other.removeAttribute("aria-sort");
    element.setAttribute("aria-sort", down ? "descending" : "ascending");
    refresh();
  });
  return element;
}

function choice(one) {
  const places = one.words.map((_, place) => place), rank = ranks(one.words);
  places.sort((a, b) => (rank[a] ?? -1) - (rank[b] ?? -1));
  const options = places.map(place => make("option", one.words[place] || "none", { value: place }));
  return make("label", [one.title, make("select", [make("option", "all", { value: "" }), ...options], { name: one.name })]);
}

const headings = shown.map(heading);
const queries = ["harms most", "helps most"].map(title => make("th", [title, make("small", `queries: ${labelled}nats`)], { scope: "col" }));
head.append(make("tr", placed(headings, make("th", "sample", { scope: "col" }), queries)));
at("choices").replaceWith(...["action", "reason", "group", "label"].filter(name => column[name]).map(name => choice(column[name])));
at("filters").addEventListener("submit", event => event.preventDefault());
at("filters").addEventListener("input", refresh);
at("filters").addEventListener("reset", () => setTimeout(refresh));
at("page").addEventListener("change", event => { page = Number(event.target.value) - 1 || 0; draw(); });
const go = (id, to) => at(id).addEventListener("click", () => { page = to(); draw(); });
go("first", () => 0);
go("previous", () => page - 1);
go("next", () => page + 1);
go("last", () => Infinity);
refresh();
