"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const NONE = data.classes.length, NOT_READ = NONE + 1;
const MOST_SHOWN = 60;  // videos at a time; a button shows more
const WIDEST_PRINTED = 40;

/** Make an element; all texts stay texts. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function className(number) {
  return number === NONE ? "none" : number === NOT_READ ? "not read" : data.classes[number];
}

/** Previews play while they are seen, unless paused or less motion is wanted. */
const stillWanted = matchMedia("(prefers-reduced-motion: reduce)").matches;
let paused = stillWanted;
const visible = new Set();
const watcher = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) visible.add(target);
    else visible.delete(target);
    if (isIntersecting && !target.src) target.src = data.previews[target.dataset.video].video;
    if (isIntersecting && !paused) target.play().catch(() => {});
    else target.pause();
  }
}, { rootMargin: "100px" });

const pauseButton = document.getElementById("pause");
function showPaused() {
  pauseButton.setAttribute("aria-pressed", paused);
  pauseButton.textContent = paused ? "Play previews" : "Pause previews";
}
pauseButton.addEventListener("click", () => {
  paused = !paused;
  showPaused();
  for (const video of visible) paused ? video.pause() : video.play().catch(() => {});
});
showPaused();
pauseButton.hidden = !Object.values(data.previews).some(made => made.video);

function scores(said, truth) {
  if (typeof said === "string") return make("span", {}, `not read: ${said}`);
  const [decided, highest] = said;
  const list = make("ul");
  for (const [number, score] of highest) {
    const isTrue = truth.includes(number);
    const name = make("bdi", { title: data.classes[number] }, data.classes[number]);
    if (decided.includes(number)) name.style.fontWeight = 650;
    const item = make("li", { className: isTrue ? "is-true" : "is-false" }, name, ` ${(100 * score).toFixed(1)} %`);
    item.style.setProperty("--score", `${100 * score}%`);
    list.append(item);
  }
  return list;
}

function pathOf(path) {
  const text = make("bdi", {}, path);
  if (data.uri === null || path.includes("\\")) return text;  // escapes stand for what a link cannot hold
  return make("a", { href: `${data.uri}/${path.split("/").map(encodeURIComponent).join("/")}` }, text);
}

/** Make the card of a video. */
function card(index) {
  const [path, piece, truth, ...said] = data.videos[index];
  const figure = make("figure", { className: "clip" });
  const preview = data.previews[index];
  if (preview && preview.video) {
    const video = make("video", { muted: true, loop: true, playsInline: true, preload: "auto" });
    video.dataset.video = index;
    const button = make("button", { type: "button", className: "play", "aria-label": `Play or pause ${path}` }, video);
    button.addEventListener("click", () => video.paused ? video.play() : video.pause());
    watcher.observe(video);
    figure.append(button);
  } else if (preview) {
    figure.append(make("div", { className: "missing" }, `no preview: ${preview.why}`));
  }
  const facts = make("dl");
  facts.append(make("dt", {}, "true"), make("dd", { className: "true" }, truth.map(className).join(", ") || "of no class"));
  said.forEach((one, place) => {
    facts.append(make("dt", {}, said.length > 1 ? "AB"[place] : "predicted"), make("dd", {}, scores(one, truth)));
  });
  const where = make("span", { className: "path" }, pathOf(path), piece ? `, ${piece}` : "");
  figure.append(make("figcaption", {}, facts, where));
  return figure;
}

/** Fill a list with cards, some at a time. */
function fill(target, videos, atOnce = MOST_SHOWN) {
  target.replaceChildren();
  const more = make("button", { type: "button" });
  let number = 0;
  function next() {
    const before = number;
    number = Math.min(videos.length, number + (before ? MOST_SHOWN : atOnce));
    const cards = videos.slice(before, number).map(card);
    if (before) more.before(...cards);
    else target.append(...cards, more);
    more.textContent = `Show ${Math.min(MOST_SHOWN, videos.length - number)} more of ${videos.length}`;
    more.hidden = number === videos.length;
  }
  more.addEventListener("click", next);
  next();
}

for (const target of document.querySelectorAll("[data-list]")) {
  fill(target, data.lists[target.dataset.list], data.numPreviews || 12);
}

/** Tables whose columns sort by a click: falling first for numbers, and back. */
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.firstChild.addEventListener("click", () => {
    const isNumber = heading.dataset.key === "number";
    const now = heading.getAttribute("aria-sort");
    const rising = now === "none" ? !isNumber : now === "descending";
    for (const other of headings) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const value = row => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [left, right] = [value(a), value(b)];
      if (left === "" || right === "") return (left === "") - (right === "");  // nothing goes last
      return rising ? left - right : right - left;
    });
    table.tBodies[0].append(...rows);
  }));
}

/** The confusion matrix. Empty cells side by side are one, so that 400 classes stay light. */
const matrix = document.getElementById("matrix");
const inCell = new Map();
data.cells.forEach((cells, video) => {
  for (const [truth, said] of cells) {
    const key = `${truth},${said}`;
    if (!inCell.has(key)) inCell.set(key, []);
    inCell.get(key).push(video);
  }
});
const used = new Set([...inCell.keys()].flatMap(key => key.split(",").map((part, place) => `${place},${part}`)));

function drawMatrix(order) {
  const numbers = data.classes.map((_, number) => number);
  const accuracy = number => data.accuracies[number] ?? 2;
  if (order === "accuracy") numbers.sort((a, b) => accuracy(a) - accuracy(b));
  if (order === "size") numbers.sort((a, b) => data.sizes[b] - data.sizes[a]);
  const rows = [...numbers, ...[NONE].filter(number => used.has(`0,${number}`))];
  const columns = [...numbers, ...[NONE, NOT_READ].filter(number => used.has(`1,${number}`))];
  const size = columns.length <= 4 ? 72 : columns.length <= 16 ? 44 : columns.length <= 40 ? 32 : 25;
  matrix.style.setProperty("--n", columns.length);
  matrix.style.setProperty("--screen-cell", `${size}px`);
  matrix.classList.toggle("wide", columns.length > WIDEST_PRINTED);
  document.getElementById("matrix-too-wide").classList.toggle("too-wide", columns.length > WIDEST_PRINTED);
  const head = make("tr", {}, make("th", { className: "corner", scope: "col" }, "class ↓ predicted →"));
  for (const said of columns) {
    head.append(make("th", { scope: "col", title: className(said) }, make("span", {}, className(said))));
  }
  const body = make("tbody");
  for (const truth of rows) {
    const row = make("tr", {}, make("th", { scope: "row", title: className(truth) }, make("bdi", {}, className(truth))));
    const total = columns.reduce((sum, said) => sum + (inCell.get(`${truth},${said}`) ?? []).length, 0);
    let gap = null;
    columns.forEach((said, column) => {
      const videos = inCell.get(`${truth},${said}`);
      if (videos) {
        const told = `${className(truth)} predicted as ${className(said)}: ${videos.length} of ${total}`;
        const button = make("button", { type: "button", title: told, "aria-label": told, tabIndex: -1 }, `${videos.length}`);
        Object.assign(button.dataset, { truth, said, column });
        button.style.setProperty("--share", (videos.length / total).toFixed(3));
        row.append(make("td", { className: truth === said ? "hit" : "" }, button));
        gap = null;
      } else if (gap) {
        gap.colSpan += 1;
      } else {
        gap = make("td", { className: "none" });
        row.append(gap);
      }
    });
    body.append(row);
  }
  matrix.replaceChildren(make("thead", {}, head), body);
  const first = body.querySelector("button");
  if (first) first.tabIndex = 0;
}

function show(truth, said) {
  const videos = [...inCell.get(`${truth},${said}`) ?? []];
  videos.sort((a, b) => (b in data.previews) - (a in data.previews));
  for (const button of matrix.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", button.dataset.truth === `${truth}` && button.dataset.said === `${said}`);
  }
  const title = document.getElementById("cell-title");
  title.textContent = `${className(truth)} predicted as ${className(said)}: ${videos.length}`;
  fill(document.getElementById("cell-clips"), videos);
  document.getElementById("cell").hidden = false;
  title.focus({ preventScroll: true });
  title.scrollIntoView({ block: "center", behavior: stillWanted ? "auto" : "smooth" });
}

function close() {
  document.getElementById("cell").hidden = true;
  const button = matrix.querySelector("[aria-pressed=true]");
  if (!button) return;
  button.setAttribute("aria-pressed", false);
  button.focus();
}

matrix.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  rove(button);
  show(+button.dataset.truth, +button.dataset.said);
});

function rove(button) {
  const before = matrix.querySelector("[tabindex='0']");
  if (before) before.tabIndex = -1;
  button.tabIndex = 0;
}

matrix.addEventListener("keydown", event => {
  const from = event.target.closest("button");
  if (!from) return;
  const row = from.closest("tr");
  const column = +from.dataset.column;
  let to = null;
  if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
    const buttons = [...row.querySelectorAll("button")];
    to = buttons[buttons.indexOf(from) + (event.key === "ArrowRight" ? 1 : -1)];
  } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    const step = event.key === "ArrowDown" ? "nextElementSibling" : "previousElementSibling";
    let next = row[step];
    while (next && !next.querySelector("button")) next = next[step];
    const distance = button => Math.abs(+button.dataset.column - column);
    if (next) to = [...next.querySelectorAll("button")].reduce((a, b) => distance(b) < distance(a) ? b : a);
  } else return;
  event.preventDefault();
  if (!to) return;
  rove(to);
  to.focus();
});

document.getElementById("close").addEventListener("click", close);
document.getElementById("cell").addEventListener("keydown", event => { if (event.key === "Escape") close(); });
document.getElementById("order").addEventListener("change", event => {
  document.getElementById("cell").hidden = true;
  drawMatrix(event.target.value);
});
for (const button of document.querySelectorAll(".pair")) {
  button.addEventListener("click", () => show(+button.dataset.truth, +button.dataset.said));
}
drawMatrix("class");
