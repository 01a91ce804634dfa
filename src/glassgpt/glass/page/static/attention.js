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

/** The positions that the selected token attends to most in a head, in the order of the text. */
function mostAttended(weights, head) {
  const from = (head * T + state.position) * T;
  const all = range(0, state.position + 1).sort((a, b) => weights.data[from + b] - weights.data[from + a]);
  return all.slice(0, MIXED).sort((a, b) => a - b);
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
    const drawn = new Set(mostAttended(weights, headOf(layer)));
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
  follow(holder, ["position", "theme", `head ${layer}`], async () => {
    const head = headOf(layer);
    const [scores, scaled, weights, values, outputs] = await Promise.all(names.map((name) => getTensor(name, layer)));
    const from = (head * T + state.position) * T;
    const limit = colourLimit(values.data);
    const shown = mostAttended(weights, head);
    const rows = shown.map((s) => {
      const number = (tensor) => cellButton(tensor, [head, state.position, s]);
      const value = (kvHead(head) * T + s) * D;
      const weight = weights.data[from + s];
      return el(
        "tr",
        {},
        el("th", { scope: "row" }, el("span", { class: "number" }, String(s)), " ", tokenText(tokenAt(s))),
        el("td", {}, number(scores)),
        el("td", {}, number(scaled)),
        el("td", {}, el("span", { class: "bar", "--share": weight, "aria-hidden": "true" }), number(weights)),
        el("td", { class: "strip-cell" }, strip(values.data, value, limit, 1)),
        el("td", { class: "strip-cell" }, strip(values.data, value, limit, weight)),
      );
    });
    const others = state.position + 1 - shown.length;
    if (others > 0) {
      const rest = 1 - shown.reduce((sum, s) => sum + weights.data[from + s], 0);
      rows.push(
        el(
          "tr",
          {},
          el("th", { scope: "row", colSpan: 3 }, plural(others, "other token")),
          el("td", {}, el("span", { class: "bar", "--share": rest }), digits(rest)),
        ),
      );
    }
    const sum = strip(outputs.data, (head * T + state.position) * D, limit, 1);
    rows.push(
      el(
        "tr",
        { class: "sum" },
        el("th", { scope: "row", colSpan: 3 }, "sum"),
        el("td", {}, el("span", { class: "bar", "--share": 1, "aria-hidden": "true" }), "1"),
        el("td", { class: "sum-name" }, "the head’s output ="),
        el("td", {}, sum),
      ),
    );
    const header = el(
      "tr",
      {},
      titles.map((title) => el("th", { scope: "col" }, title)),
    );
    holder.replaceChildren(
      el(
        "table",
        {
          class: "mixing",
          "aria-label": `What ${tokenLabel(state.position)} takes from each token, head ${headOf(layer)}`,
        },
        el("thead", {}, header),
        el("tbody", {}, rows),
      ),
    );
  });
  return holder;
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
