"use strict";
// Attention: all heads as small pictures, one of them large, and how the selected token mixes the values of earlier ones.

/** A radio group of all heads, each drawn as its T x T attention weights. */
function headWall(layer) {
  const heads = range(0, H).map((head) => {
    const canvas = el("canvas", { width: 1, height: 1, "aria-hidden": "true" });
    const button = el(
      "button",
      { type: "button", class: "head", role: "radio", "--rows": sizes.T, onclick: () => selectHead(layer, head) },
      el("span", { class: "thumb" }, canvas, el("span", { class: "row-mark" })),
      el("span", { class: "number" }, String(head)),
    );
    return { head, canvas, button };
  });
  const wall = el(
    "div",
    { class: "heads", role: "radiogroup", "aria-label": `Heads of block ${layer}` },
    heads.map(({ button }) => button),
  );
  wall.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const next = (headOf(layer) + by + H) % H;
    selectHead(layer, next);
    heads[next].button.focus();
  });
  follow(wall, ["theme"], async () => {
    const weights = await getTensor("attention weights", layer);
    for (const { head, canvas } of heads) drawMatrix(canvas, weights.data, head * T * T, T, T, 1, "weight");
  });
  follow(wall, ["position", `head ${layer}`], async () => {
    const weights = await getTensor("attention weights", layer);
    for (const { head, button } of heads) {
      const chosen = head === headOf(layer);
      button.setAttribute("aria-checked", chosen);
      button.tabIndex = chosen ? 0 : -1;
      const { position, weight } = strongest(weights, head);
      button.setAttribute(
        "aria-label",
        `Head ${head}: ${tokenLabel(state.position)} looks most at ${tokenLabel(position)}, weight ${digits(weight)}`,
      );
    }
  });
  return wall;
}

/** The token that the selected one attends to most, in one head. */
function strongest(weights, head) {
  const row = weights.data.subarray((head * T + state.position) * T, (head * T + state.position + 1) * T);
  const position = row.reduce((best, x, i) => (x > row[best] ? i : best), 0);
  return { position, weight: row[position] };
}

/** Tokens with the largest weights that are drawn as arcs and listed, at most. */
const MIXED = 12;

/** The positions that the selected token may attend to: those with the largest weights, in text order, and the others. */
function mostAttended(weights, head) {
  const seen = range(0, T).filter((s) => attends(state.position, s, about.windows[weights.layer]));
  const weight = (s) => at(weights, [head, state.position, s]);
  const sorted = seen.sort((a, b) => weight(b) - weight(a));
  return { largest: sorted.slice(0, MIXED).sort((a, b) => a - b), others: sorted.slice(MIXED) };
}

/** The tokens in a line, with an arc from the selected one to those that it attends to most; thicker is more. */
function attentionArcs(layer) {
  const chips = range(0, T).map((position) =>
    el(
      "button",
      { type: "button", class: "chip", tabindex: -1, onclick: () => selectPosition(position) },
      tokenText(tokenAt(position)),
    ),
  );
  const svg = document.getElementById("svg-template").content.firstElementChild.cloneNode(false);
  const line = el("div", { class: "arc-line" }, svg, el("div", { class: "arc-chips" }, chips));
  const box = el("div", { class: "scroll arcs", "aria-hidden": "true" }, line);
  const path = document.getElementById("svg-template").content.querySelector("path");
  follow(box, ["position", `head ${layer}`, "size"], async () => {
    const weights = await getTensor("attention weights", layer);
    const from = (headOf(layer) * T + state.position) * T;
    const centres = chips.map((chip) => chip.offsetLeft + chip.offsetWidth / 2);
    const width = line.scrollWidth;
    const height = 110;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("width", width);
    svg.setAttribute("height", height);
    svg.replaceChildren();
    const drawn = new Set(mostAttended(weights, headOf(layer)).largest);
    chips.forEach((chip, s) => {
      const weight = weights.data[from + s];
      chip.style.setProperty("--weight", Math.sqrt(weight));
      chip.classList.toggle("selected", s === state.position);
      if (!drawn.has(s) || weight < 0.002) return;
      const arc = path.cloneNode(false);
      arc.setAttribute("d", arcPath(centres[s], centres[state.position], height));
      arc.setAttribute("stroke-width", 1 + 9 * weight);
      arc.setAttribute("opacity", 0.25 + 0.75 * weight);
      svg.append(arc);
    });
    keepInView(box, centres[state.position]);
  });
  return box;
}

/** Half an ellipse above the tokens; a loop for a token that attends to itself. */
function arcPath(from, to, height) {
  if (from === to)
    return `M ${from - 5} ${height} C ${from - 22} ${height - 34}, ${from + 22} ${height - 34}, ${from + 5} ${height}`;
  const top = height - Math.min(height - 6, 18 + Math.abs(to - from) / 3);
  return `M ${from} ${height} C ${from} ${top}, ${to} ${top}, ${to} ${height}`;
}

/** Scroll a box sideways, and nothing else, until x is visible. */
function keepInView(box, x) {
  if (x < box.scrollLeft + 30 || x > box.scrollLeft + box.clientWidth - 30) box.scrollLeft = x - box.clientWidth / 2;
}

/** From scores to weights to the sum of weighted value vectors, for the selected token; below, the head's output. */
function mixing(layer) {
  const holder = el("div", { class: "scroll" });
  const names = ["scores", "scaled scores", "attention weights", "v", "head outputs"];
  const titles = ["token s", "score q · k", `/ √${D}`, "weight", "value v[s]", "weight · v[s]"];
  const header = titles.map((title) => el("th", { scope: "col" }, title));
  follow(holder, ["position", "theme", `head ${layer}`], async () => {
    const head = headOf(layer);
    const tensors = await Promise.all(names.map((name) => getTensor(name, layer)));
    const [weights, values, outputs] = tensors.slice(2);
    const limit = colourLimit(values.data);
    const { largest, others } = mostAttended(weights, head);
    const rows = largest.map((s) => mixedRow(tensors, [head, state.position, s], limit));
    if (others.length > 0) {
      const rest = others.reduce((sum, s) => sum + at(weights, [head, state.position, s]), 0);
      rows.push(sumRow("", plural(others.length, "other token"), rest));
    }
    const output = strip(outputs.data, offset(outputs.shape, [head, state.position, 0]), limit, 1);
    rows.push(sumRow("sum", "sum", 1, el("td", { class: "sum-name" }, "the head’s output ="), el("td", {}, output)));
    const label = `What ${tokenLabel(state.position)} takes from each token, head ${head}`;
    const parts = [el("thead", {}, el("tr", {}, header)), el("tbody", {}, rows)];
    holder.replaceChildren(el("table", { class: "mixing", "aria-label": label }, parts));
  });
  return holder;
}

/** One token: its score, scaled score and weight, its value vector, and the two multiplied. */
function mixedRow([scores, scaled, weights, values], index, limit) {
  const [head, , s] = index;
  const weight = at(weights, index);
  const value = offset(values.shape, [kvHead(head), s, 0]);
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, el("span", { class: "number" }, String(s)), " ", tokenText(tokenAt(s))),
    el("td", {}, cellButton(scores, index)),
    el("td", {}, cellButton(scaled, index)),
    el("td", {}, weightBar(weight), cellButton(weights, index)),
    el("td", { class: "strip-cell" }, strip(values.data, value, limit, 1)),
    el("td", { class: "strip-cell" }, strip(values.data, value, limit, weight)),
  );
}

/** A row for several tokens together. */
function sumRow(kind, name, weight, ...cells) {
  const title = el("th", { scope: "row", colSpan: 3 }, name);
  return el("tr", { class: kind }, title, el("td", {}, weightBar(weight), digits(weight)), ...cells);
}

function weightBar(weight) {
  return el("span", { class: "bar", "--share": weight, "aria-hidden": "true" });
}

/** A number that opens its cell in the inspector. */
function cellButton(tensor, index) {
  return el(
    "button",
    { type: "button", class: "cell", onclick: () => openInspector(tensor.name, tensor.layer, index) },
    digits(at(tensor, index)),
  );
}

/** D numbers as a strip, each multiplied by the weight. */
function strip(data, from, limit, weight) {
  const canvas = el("canvas", { class: "strip-canvas", "aria-hidden": "true" });
  drawMatrix(
    canvas,
    data.subarray(from, from + D).map((x) => x * weight),
    0,
    1,
    D,
    limit,
    "value",
  );
  return canvas;
}
