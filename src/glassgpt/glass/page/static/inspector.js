"use strict";
// The inspector: a tensor as a table of numbers, and how the number in a cell was made.

const inspector = {
  dialog: document.getElementById("inspector"),
  tensor: null,
  head: 0,
  row: 0,
  column: 0,
  firstColumn: 0,
  firstRow: 0,
  trail: [],
};
/** Columns and rows of the table at a time. */
const PAGE_COLUMNS = 16;
const PAGE_ROWS = 40;

const part = (id) => document.getElementById(`inspector-${id}`);

/** Open a tensor at an index: [head, row, column] or [row, column]; what is left out is 0. */
async function openInspector(name, layer, index = [], { keepTrail = false } = {}) {
  const tensor = await getTensor(name, layer);
  if (!tensor) return;
  if (!keepTrail) inspector.trail = [];
  const full = tensor.shape.map((size, axis) => Math.min(index[axis] ?? 0, size - 1));
  if (tensor.shape.length === 3) [inspector.head] = full.splice(0, 1);
  if (firstPosition(tensor) > 0) full[0] = 0;
  [inspector.row, inspector.column] = full.length === 1 ? [full[0], 0] : full;
  inspector.tensor = tensor;
  turnToCell();
  showTensor();
  if (!inspector.dialog.open) inspector.dialog.showModal();
  await showCell({ focus: true });
}

/** The rows and columns of what is shown: a vector is one column. */
function tableShape() {
  const shape = inspector.tensor.shape;
  return shape.length === 1 ? [shape[0], 1] : shape.slice(-2);
}

/** The index of a cell of the table. */
function indexOf(row, column) {
  const { tensor, head } = inspector;
  if (tensor.shape.length === 1) return [row];
  return tensor.shape.length === 3 ? [head, row, column] : [row, column];
}

/** Turn to the page of rows and columns that has the selected cell. */
function turnToCell() {
  inspector.firstColumn = inspector.column - (inspector.column % PAGE_COLUMNS);
  inspector.firstRow = inspector.row - (inspector.row % PAGE_ROWS);
}

function showTensor() {
  const { tensor, head } = inspector;
  const [rows, columns] = tableShape();
  const where = tensor.layer === null ? "" : ` of block ${tensor.layer}`;
  part("title").textContent = `${tensor.name}${where}`;
  part("sizes").textContent = sizesText(tensor.axes, tensor.shape);
  part("axes").textContent = axesText(tensor);
  part("source").textContent = sourceText(tensor);
  const size = rows * columns;
  const data = tensor.shape.length === 3 ? tensor.data.subarray(head * size, (head + 1) * size) : tensor.data;
  const { lowest, highest, mean } = statistics(data);
  part("statistics").textContent = `min ${digits(lowest)} · max ${digits(highest)} · mean ${digits(mean)}`;
  inspector.limit = colourLimit(data);
  showHeads();
  showPager();
  showTable();
  part("back").hidden = inspector.trail.length === 0;
}

/** What rows and columns are. */
function axesText(tensor) {
  const axes = tensor.axes;
  if (axes.length === 0) return "";
  if (axes.length === 1) return `rows: ${axisNames[axes[0]]}`;
  if (axes.at(-2) === axes.at(-1)) return "rows: the token t that looks · columns: the token s that it looks at";
  return `rows: ${axisNames[axes.at(-2)]} (${axes.at(-2)}) · columns: ${axisNames[axes.at(-1)]} (${axes.at(-1)})`;
}

function sourceText(tensor) {
  if (!rules[tensor.name]) return "A weight of the model, exact.";
  if (tensor.source === "recorded") return "Recorded in the forward pass, exact.";
  const from = Object.values(rules[tensor.name].inputs(tensor.layer)).map(([name]) => name);
  const names = from.filter((name) => !name.endsWith(" bias") || hasBias([name]));
  return names.length ? `Computed in this page from ${names.join(" and ")}.` : "Known from the prompt.";
}

function showHeads() {
  const { tensor, head } = inspector;
  const holder = part("heads");
  holder.hidden = tensor.shape.length !== 3;
  if (holder.hidden) return;
  part("head").replaceChildren(
    ...Array.from({ length: tensor.shape[0] }, (_, i) =>
      el("option", { value: String(i), selected: i === head }, String(i)),
    ),
  );
}

/** Buttons for the other columns and rows. */
function showPager() {
  const [rows, columns] = tableShape();
  const { firstRow, firstColumn } = inspector;
  const lastColumn = Math.min(firstColumn + PAGE_COLUMNS, columns) - 1;
  const lastRow = Math.min(firstRow + PAGE_ROWS, rows) - 1;
  part("columns").hidden = columns <= PAGE_COLUMNS;
  part("rows").hidden = rows <= PAGE_ROWS;
  part("columns-shown").textContent = `columns ${count(firstColumn)}–${count(lastColumn)} of ${count(columns)}`;
  part("rows-shown").textContent = `rows ${count(firstRow)}–${count(lastRow)} of ${count(rows)}`;
  part("column").max = columns - 1;
  part("columns-back").disabled = firstColumn === 0;
  part("columns-on").disabled = lastColumn === columns - 1;
  part("rows-back").disabled = firstRow === 0;
  part("rows-on").disabled = lastRow === rows - 1;
}

/** What stands at the beginning of a row or column: a token where the axis is tokens. */
function header(axis, i, scope) {
  const position = i + (axis === "T" ? firstPosition(inspector.tensor) : 0);
  const cell = el("th", { scope, class: axis === "T" && position === state.position ? "selected-token" : "" });
  if (axis === "T" || axis === "S")
    cell.append(el("span", { class: "number" }, String(position)), " ", tokenText(tokenAt(position)));
  else if (axis === "V") cell.append(el("span", { class: "number" }, count(i)), " ", tokenText(vocabulary[i] ?? ""));
  else cell.append(String(i));
  return cell;
}

function showTable() {
  const { tensor, firstRow, firstColumn } = inspector;
  const [rows, columns] = tableShape();
  const [rowAxis, columnAxis] = tensor.shape.length === 1 ? [tensor.axes[0], ""] : tensor.axes.slice(-2);
  const columnIndexes = range(firstColumn, Math.min(firstColumn + PAGE_COLUMNS, columns));
  const rowIndexes = range(firstRow, Math.min(firstRow + PAGE_ROWS, rows));
  const kind = kindOf(tensor.name);
  const head = el(
    "tr",
    {},
    el("td", {}),
    columnIndexes.map((i) => header(columnAxis, i, "col")),
  );
  const body = rowIndexes.map((row) =>
    el(
      "tr",
      {},
      header(rowAxis, row, "row"),
      columnIndexes.map((column) => {
        const x = at(tensor, indexOf(row, column));
        const [r, g, b] = colour(x, inspector.limit, kind);
        const luminance = 0.2126 * (r / 255) ** 2.2 + 0.7152 * (g / 255) ** 2.2 + 0.0722 * (b / 255) ** 2.2;
        return el(
          "td",
          {
            tabindex: -1,
            "data-row": row,
            "data-column": column,
            "--cell": `rgb(${r} ${g} ${b})`,
            "--ink": luminance > 0.18 ? "#000" : "#fff",
          },
          digits(x),
        );
      }),
    ),
  );
  part("table").replaceChildren(el("thead", {}, head), el("tbody", {}, body));
}

function range(from, to) {
  return Array.from({ length: Math.max(to - from, 0) }, (_, i) => from + i);
}

/** Mark the selected cell and explain it. */
async function showCell({ focus = false } = {}) {
  const { row, column, tensor } = inspector;
  for (const cell of part("table").querySelectorAll("td[data-row]")) {
    const selected = Number(cell.dataset.row) === row && Number(cell.dataset.column) === column;
    cell.tabIndex = selected ? 0 : -1;
    cell.classList.toggle("selected", selected);
    if (selected && focus) cell.focus({ preventScroll: false });
  }
  const index = indexOf(row, column);
  const explanation = await explainCell(tensor.name, tensor.layer, index);
  if (inspector.tensor === tensor && inspector.row === row && inspector.column === column)
    showExplanation(explanation, index);
}

function showExplanation(explanation, index) {
  const { tensor } = inspector;
  const positions = tensor.axes.flatMap((axis, i) =>
    axis === "T" || axis === "S" ? [tokenLabel(index[i] + firstPosition(tensor))] : [],
  );
  const lines = explanation.lines.map((line) => el("code", { class: "line" }, line));
  const parts = [
    el("h3", {}, explanation.symbol, " = ", digits(explanation.recorded ?? explanation.value)),
    positions.length
      ? el(
          "p",
          { class: "positions" },
          positions.join(tensor.axes.filter((axis) => axis === "T").length > 1 ? " looks at " : ", "),
        )
      : null,
    explanation.formula ? el("p", {}, el("code", { class: "rule" }, explanation.formula)) : null,
    ...lines,
  ];
  if (explanation.value !== null && explanation.recorded !== undefined && explanation.inputs.length) {
    parts.push(
      el(
        "p",
        { class: "check" },
        `Computed here: ${digits(explanation.value)}. Recorded in the pass: ${digits(explanation.recorded)}.`,
      ),
    );
  }
  if (explanation.missing) parts.push(el("p", { class: "missing" }, explanation.missing));
  part("explanation").replaceChildren(...parts.filter(Boolean));
  part("more").replaceChildren(
    ...[termTable(explanation.terms), inputLinks(explanation.inputs, index)].filter(Boolean),
  );
}

/** Every summand, closed at first. */
function termTable(terms) {
  if (terms.length <= 1) return null;
  const rows = terms.map((term) =>
    el("tr", {}, el("th", { scope: "row" }, term.label), el("td", {}, term.text), el("td", {}, digits(term.value))),
  );
  const head = el(
    "tr",
    {},
    ["term", "numbers", "value"].map((text) => el("th", { scope: "col" }, text)),
  );
  const table = el("table", { class: "terms", "aria-label": "Terms" }, el("thead", {}, head), el("tbody", {}, rows));
  return el(
    "details",
    {},
    el("summary", {}, `All ${plural(terms.length, "term")}`),
    el("div", { class: "scroll" }, table),
  );
}

/** Buttons that open the tensors from which this one was made. */
function inputLinks(inputs, index) {
  const links = inputs.map(({ name, layer, index: known }) => {
    const open = () => {
      inspector.trail.push([inspector.tensor.name, inspector.tensor.layer, indexOf(inspector.row, inspector.column)]);
      openInspector(name, layer, known ?? indexFor(name, index), { keepTrail: true });
    };
    return el("button", { type: "button", class: "link", onclick: open }, name);
  });
  return links.length ? el("p", { class: "made-from" }, "Made from ", ...links) : null;
}

/** The cell of an input that belongs to a cell: the same head, token and channel where it has them. */
function indexFor(name, index) {
  const own = inspector.tensor.axes;
  return (about.axes[name] ?? []).map((axis) =>
    axis === "KV" && own[0] === "H" ? kvHead(index[0]) : (index[own.indexOf(axis)] ?? 0),
  );
}

/** Move the selection; at the border of the page, the next page comes. */
function moveCell(rows, columns) {
  const [height, width] = tableShape();
  inspector.row = Math.min(Math.max(inspector.row + rows, 0), height - 1);
  inspector.column = Math.min(Math.max(inspector.column + columns, 0), width - 1);
  const before = [inspector.firstRow, inspector.firstColumn];
  turnToCell();
  if (before[0] !== inspector.firstRow || before[1] !== inspector.firstColumn) {
    showPager();
    showTable();
  }
  showCell({ focus: true });
}

function bindInspector() {
  const moves = {
    ArrowLeft: [0, -1],
    ArrowRight: [0, 1],
    ArrowUp: [-1, 0],
    ArrowDown: [1, 0],
    PageUp: [-PAGE_ROWS, 0],
    PageDown: [PAGE_ROWS, 0],
  };
  part("table").addEventListener("keydown", (event) => {
    const move =
      event.key === "Home" ? [0, -inspector.column] : event.key === "End" ? [0, tableShape()[1]] : moves[event.key];
    if (!move) return;
    event.preventDefault();
    moveCell(...move);
  });
  part("table").addEventListener("click", (event) => {
    const cell = event.target.closest("td[data-row]");
    if (!cell) return;
    [inspector.row, inspector.column] = [Number(cell.dataset.row), Number(cell.dataset.column)];
    showCell({ focus: true });
  });
  const turn = (rows, columns) => () => {
    const [height, width] = tableShape();
    inspector.row = Math.min(Math.max(inspector.firstRow + rows, 0), height - 1);
    inspector.column = Math.min(Math.max(inspector.firstColumn + columns, 0), width - 1);
    turnToCell();
    showPager();
    showTable();
    showCell();
  };
  part("columns-back").addEventListener("click", turn(0, -PAGE_COLUMNS));
  part("columns-on").addEventListener("click", turn(0, PAGE_COLUMNS));
  part("rows-back").addEventListener("click", turn(-PAGE_ROWS, 0));
  part("rows-on").addEventListener("click", turn(PAGE_ROWS, 0));
  part("head").addEventListener("change", (event) => {
    inspector.head = Number(event.target.value);
    showTensor();
    showCell();
  });
  part("column").addEventListener("change", (event) => {
    inspector.column = Math.min(Math.max(Math.trunc(Number(event.target.value)) || 0, 0), tableShape()[1] - 1);
    turnToCell();
    showPager();
    showTable();
    showCell();
  });
  part("close").addEventListener("click", () => inspector.dialog.close());
  part("back").addEventListener("click", () => {
    const [name, layer, index] = inspector.trail.pop();
    openInspector(name, layer, index, { keepTrail: true });
  });
  inspector.dialog.addEventListener("click", (event) => {
    if (event.target === inspector.dialog) inspector.dialog.close();
  });
}
