"use strict";
// The small parts of which the page is made. Texts become text nodes, never HTML: tokens are someone's text.

/** Create an element. Properties beginning with "on" are listeners, "data-", "aria-" and "role" attributes. */
function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (name in element && !name.startsWith("aria")) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Bytes that are only a part of a character, as tokens have them: <E2 80>. */
const bytesOrSpace = /<[0-9A-F]{2}(?: [0-9A-F]{2})*>| /g;

/** A token as the page writes it: spaces visible, its direction isolated. */
function tokenText(text) {
  const shown = text.replace(bytesOrSpace, (found) => (found === " " ? "␣" : found));
  return el("bdi", { class: "token" }, shown === "" ? "∅" : shown);
}

function tokenAt(position) {
  return about.tokens[position];
}

/** 'token 3 "e"', for labels. */
function tokenLabel(position) {
  return `token ${position} “${tokenAt(position).replaceAll(" ", "␣")}”`;
}

/** A formula, with the sizes of what is in it below. */
function formula(text, shapes = "") {
  return el("p", { class: "formula" }, el("code", {}, text), shapes && el("span", { class: "shapes" }, shapes));
}

// ---- matrices ----

const matrixAxes = (name) => about.axes[name];

/**
 * A matrix as a picture that opens in the inspector. Of a tensor with heads, the picture shows the head that
 * `head()` returns. `columns` says how wide it is drawn: "full" or "square".
 */
function matrixFigure(name, layer, { head = null, kinds = [], caption = name, shape = "full" } = {}) {
  const axes = matrixAxes(name);
  const dimensions = axes.map((axis) => sizes[axis]);
  const [rows, columns] = dimensions.slice(-2);
  const ofHead = () => (head ? [mapHead(axes[0], head())] : []);
  const canvas = el("canvas", { width: 1, height: 1, "aria-hidden": "true" });
  const button = el(
    "button",
    { type: "button", class: `matrix ${shape}`, "--rows": rows },
    canvas,
    el("span", { class: "row-mark" }),
  );
  const shapes = el("span", { class: "shapes" }, sizesText(axes, dimensions));
  const note = el("span", { class: "range" }, " ");
  const figure = el(
    "figure",
    { class: `figure ${shape}` },
    el("figcaption", {}, el("b", {}, caption), shapes),
    button,
    note,
  );
  let range = " ";
  button.addEventListener("click", (event) =>
    openInspector(name, layer, [...ofHead(), ...cellUnder(event, canvas, rows, columns)]),
  );
  button.addEventListener("pointermove", async (event) => {
    const index = [...ofHead(), ...cellUnder(event, canvas, rows, columns)];
    const tensor = await getTensor(name, layer);
    note.textContent = `[${index.join(", ")}] = ${digits(at(tensor, index))}`;
  });
  button.addEventListener("pointerleave", () => (note.textContent = range));
  follow(figure, ["theme", ...kinds], async () => {
    const tensor = await getTensor(name, layer);
    if (!tensor) return showMissing(figure, name, layer);
    const from = offset(dimensions, [...ofHead(), 0, 0]);
    const part = tensor.data.subarray(from, from + rows * columns);
    drawMatrix(canvas, tensor.data, from, rows, columns, colourLimit(part), kindOf(name));
    const { lowest, highest } = statistics(part);
    const of = head ? `, ${axes[0] === "KV" ? "key/value head" : "head"} ${ofHead()[0]}` : "";
    if (head)
      shapes.textContent = `${axes[0] === "KV" ? "kv head" : "head"} ${ofHead()[0]} ${sizesText(axes, dimensions)}`;
    note.textContent = range = `${digits(lowest)} to ${digits(highest)}`;
    button.setAttribute(
      "aria-label",
      `Open ${name}${of}: ${rows} rows by ${columns} columns, from ${digits(lowest)} to ${digits(highest)}`,
    );
  });
  return figure;
}

/** The row and column under the pointer; from the keyboard, the selected token's row. */
function cellUnder(event, canvas, rows, columns) {
  if (event.type === "click" && event.detail === 0) return [state.position, 0];
  const box = canvas.getBoundingClientRect();
  const cell = (at, size, n) => Math.min(Math.max(Math.floor((at / size) * n), 0), n - 1);
  return [cell(event.clientY - box.top, box.height, rows), cell(event.clientX - box.left, box.width, columns)];
}

/** The head of a key/value tensor that a query head uses. */
function mapHead(axis, head) {
  return axis === "KV" ? kvHead(head) : head;
}

function showMissing(figure, name, layer) {
  figure.querySelector("button")?.replaceWith(el("p", { class: "missing" }, whyNotKept(name, layer)));
}

/** Lowest, highest and mean of the finite numbers. */
function statistics(data) {
  let [lowest, highest, sum, n] = [Infinity, -Infinity, 0, 0];
  for (const x of data) {
    if (!Number.isFinite(x)) continue;
    lowest = Math.min(lowest, x);
    highest = Math.max(highest, x);
    sum += x;
    n += 1;
  }
  return { lowest, highest, mean: sum / n };
}

// ---- vectors ----

/** The selected token's row of a tensor as a strip, with its first numbers and its length. */
function vectorRow(name, layer, { label = name, sign = "", limitOf = null } = {}) {
  const canvas = el("canvas", { width: 1, height: 1, "aria-hidden": "true" });
  const numbers = el("span", { class: "numbers" }, " ");
  const length = el("span", { class: "length" }, " ");
  const button = el(
    "button",
    {
      type: "button",
      class: "strip",
      onclick: (event) => openInspector(name, layer, [state.position, cellUnder(event, canvas, 1, sizes.C)[1]]),
    },
    canvas,
  );
  const row = el(
    "div",
    { class: "vector" },
    el("span", { class: "sign" }, sign),
    el("span", { class: "name" }, label),
    button,
    numbers,
    length,
  );
  follow(row, ["theme", "position"], async () => {
    const [tensor, reference] = await Promise.all([getTensor(name, layer), getTensor(...(limitOf ?? [name, layer]))]);
    const n = tensor.shape.at(-1);
    const from = state.position * n;
    drawMatrix(canvas, tensor.data, from, 1, n, colourLimit(reference.data.subarray(from, from + n)), "value");
    numbers.textContent = `${Array.from(tensor.data.subarray(from, from + 3), digits).join(", ")}, …`;
    length.textContent = `‖x‖ = ${digits(Math.sqrt(dot(tensor.data, from, tensor.data, from, n)))}`;
    button.setAttribute(
      "aria-label",
      `Open ${name} of ${tokenLabel(state.position)}: ${n} numbers, ${length.textContent}`,
    );
  });
  return row;
}

/** A list of tokens with a bar each: {id or text, share}. */
function barList(items, label) {
  const largest = Math.max(...items.map((item) => item.share), 1e-9);
  return el(
    "ol",
    { class: "bars", "aria-label": label },
    items.map((item) =>
      el(
        "li",
        { "--share": item.share / largest },
        tokenText(item.text),
        el("span", { class: "bar", "aria-hidden": "true" }),
        el("span", { class: "share" }, percent(item.share)),
      ),
    ),
  );
}

/** The tokens that the residual stream would predict after `depth` blocks, at the selected position. */
function lensList(depth) {
  const holder = el("div", {});
  follow(holder, ["position"], () => {
    const ids = frame.top[depth][state.position];
    const items = ids.map((id, i) => ({
      text: vocabulary[id],
      share: frame.top_probability[depth][state.position][i],
    }));
    holder.replaceChildren(barList(items, "Likeliest next tokens at this depth"));
  });
  return holder;
}

/** A step of the model: what happens, in one sentence, the formula, and the numbers. */
function step(title, sentence, ...content) {
  return el("section", { class: "step" }, el("h4", {}, title), el("p", { class: "say" }, sentence), ...content);
}

function figures(...items) {
  return el("div", { class: "figures" }, ...items);
}
