"use strict";
const at = id => document.getElementById(id);
const element = (tag, text, parent) => {
  const made = document.createElement(tag);
  made.textContent = text;
  parent?.append(made);
  return made;
};

// Enlarged images: left and right go to other seeds, up and down to the same seed of other arms.
const zoom = at("zoom");
let shown = null;
const enlarge = button => {
  shown = button;
  const small = button.querySelector("img"), large = zoom.querySelector("img");
  large.src = small.src;
  large.className = small.className;
  large.alt = small.alt;
  at("about").textContent = small.alt;
  if (!zoom.open) zoom.showModal();
};
const step = key => {
  if (key === "Escape") return zoom.close();
  const grid = shown.parentElement, seeds = [...grid.children];
  const grids = [...shown.closest(".prompt").querySelectorAll(".grid")];
  const place = seeds.indexOf(shown);
  const next = (list, now, by) => list[(now + by + list.length) % list.length];
  if (key === "ArrowLeft") enlarge(next(seeds, place, -1));
  if (key === "ArrowRight") enlarge(next(seeds, place, 1));
  if (key === "ArrowUp" || key === "ArrowDown") {
    const other = next(grids, grids.indexOf(grid), key === "ArrowUp" ? -1 : 1);
    enlarge(other.children[Math.min(place, other.children.length - 1)]);
  }
};
document.addEventListener("click", event => {
  const button = event.target.closest(".grid button");
  if (button) enlarge(button);
});
zoom.addEventListener("click", event => {
  const key = event.target.dataset.key;
  if (key) step(key);
  else if (event.target === zoom || event.target.tagName === "IMG") zoom.close();
});
zoom.addEventListener("keydown", event => {
  if (event.key.startsWith("Arrow")) {
    event.preventDefault();
    step(event.key);
  }
});
zoom.addEventListener("close", () => shown.focus());

// Every prompt: one metric at a time, sorted; the first part until the reader asks for all.
const FIRST = 50;
const sections = [...document.querySelectorAll(".by-prompt:not(.other-sizes) .prompt")].map(section => {
  const prompt = section.querySelector("h3").textContent;
  return {section, prompt, text: prompt.toLowerCase()};
});
const images = new Map(sections.map(({section, prompt}) => [prompt, section.id]));
const data = at("data") ? JSON.parse(at("data").textContent) : null;
const lower = data ? data.prompts.map(prompt => prompt.toLowerCase()) : [];
const view = {metric: 0, column: data ? data.decides : -1, rising: true, all: false, words: []};

const written = (value, {scale, digits, unit}) => value === null ? "–" : `${(value / scale).toFixed(digits)}${unit}`;
const matches = text => view.words.every(word => text.includes(word));

const sorted = values => {
  const rows = data.prompts.map((_, row) => row).filter(row => matches(lower[row]));
  const sign = view.rising ? 1 : -1;
  if (view.column < 0) return rows.sort((a, b) => sign * data.prompts[a].localeCompare(data.prompts[b]));
  const of = values[view.column];
  // Unknown values come last in either order.
  return rows.sort((a, b) => (of[a] === null) - (of[b] === null) || sign * (of[a] - of[b]) || a - b);
};

const drawHead = () => {
  const line = document.createElement("tr");
  [{label: "Prompt"}, ...data.arms].forEach((arm, place) => {
    const column = place - 1, isSorted = column === view.column;
    const head = element("th", "", line);
    head.scope = "col";
    if (isSorted) head.setAttribute("aria-sort", view.rising ? "ascending" : "descending");
    const button = element("button", "", head);
    button.type = "button";
    if (arm.colour) {
      const dot = element("span", "", button);
      dot.className = "dot";
      dot.style.background = arm.colour;
    }
    element("bdi", arm.label, button);
    if (isSorted) button.append(view.rising ? " ↑" : " ↓");
    button.addEventListener("click", () => {
      view.rising = isSorted ? !view.rising : true;
      view.column = column;
      drawTable();
      at("prompts-table").querySelectorAll("thead button")[place].focus();
    });
  });
  at("prompts-table").tHead.replaceChildren(line);
};

const drawTable = () => {
  if (!data) return 0;
  const metric = data.metrics[view.metric];
  const rows = sorted(metric.values);
  const largest = Math.max(...metric.values.flat().map(value => value ?? 0), Number.MIN_VALUE);
  const lines = rows.slice(0, view.all ? rows.length : FIRST).map(row => {
    const line = document.createElement("tr");
    const head = element("th", "", line);
    head.scope = "row";
    const image = images.get(data.prompts[row]);
    const text = element(image ? "a" : "bdi", data.prompts[row], head);
    if (image) text.href = `#${image}`;
    metric.values.forEach((values, arm) => {
      const cell = element("td", written(values[row], metric), line);
      if (values[row] > 0) {
        const bar = element("i", "", cell);
        bar.style.background = data.arms[arm].colour;
        bar.style.width = `${(84 * values[row] / largest).toFixed(1)}px`;
      }
    });
    return line;
  });
  drawHead();
  at("meaning").textContent = metric.meaning;
  at("prompts-table").tBodies[0].replaceChildren(...lines);
  at("more").hidden = rows.length <= FIRST;
  at("more").textContent = view.all ? `Show the first ${FIRST}` : `Show all ${rows.length}`;
  return rows.length;
};

const draw = () => {
  let found = 0;
  for (const {section, text} of sections) {
    section.hidden = !matches(text);
    found += !section.hidden;
  }
  const inTable = drawTable();
  const others = at("others");
  if (others && view.words.length) others.open = true;
  const prompts = data ? `${inTable} of ${data.prompts.length} prompts, ` : "";
  if (at("found")) at("found").textContent = `${prompts}${found} of ${sections.length} with images`;
};
const open = () => {
  const target = location.hash.length > 1 && at(decodeURIComponent(location.hash.slice(1)));
  if (target && at("others")?.contains(target)) {
    at("others").open = true;
    target.scrollIntoView();
  }
};

at("filter")?.addEventListener("input", () => {
  view.words = at("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  draw();
});
at("metric")?.addEventListener("change", () => {
  view.metric = Number(at("metric").value);
  drawTable();
});
at("more")?.addEventListener("click", () => {
  view.all = !view.all;
  drawTable();
});
addEventListener("hashchange", open);
draw();
open();
