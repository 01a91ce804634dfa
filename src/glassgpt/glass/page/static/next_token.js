"use strict";
// The panel "next token": from one row of logits to the choice of a token, with every setting under the reader's hand.
//
// mountNextToken(element, {logits, tokens, previousIds}) fills the element, and returns {show(row)}, which shows other
// logits with the same settings; mounted again in the same element, it begins with them. logits: Float32Array [V];
// tokens: the printable text of every id, as an array or a function; previousIds: those that the penalty knows.

const mountNextToken = (() => {
  const ROWS = 16; // most likely tokens in the chart
  const SEGMENTS = 120; // tokens that the strip draws one by one, at most
  const ANNOUNCE_MS = 400; // a screen reader hears of a choice when the slider rests

  // One control per stage of Sampling.STAGES: its slider goes from `least` to `most`, its number from `min` to `max`.
  const CONTROLS = [
    { key: "repetitionPenalty", label: "Repetition penalty", least: 1, most: 2, step: 0.05, min: 0.01, max: 100 },
    { key: "temperature", label: "Temperature", least: 0, most: 2, step: 0.05, min: 0, max: 100 },
    { key: "topK", label: "Top-k", min: 0, step: 1 }, // its slider walks over topKSteps
    { key: "topP", label: "Top-p", least: 0.01, most: 1, step: 0.01, min: 0.001, max: 1 },
    { key: "minP", label: "Min-p", least: 0, most: 1, step: 0.01, min: 0, max: 1 },
  ];

  const choices = new WeakMap(); // what the reader has chosen, {settings, u}, by element
  let mounted = 0; // for ids that are unique in the page

  function make(tag, { text, ...properties } = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in element && !name.startsWith("aria")) element[name] = value;
      else element.setAttribute(name, value);
    }
    if (text !== undefined) element.textContent = text;
    element.append(...children);
    return element;
  }

  const whole = (n) => n.toLocaleString("en-US");
  const shown = (token) => token.replaceAll(" ", "␣") || "(empty)";

  function percent(probability) {
    const x = 100 * probability;
    if (x === 0 || x >= 0.001) return `${x.toFixed(x >= 10 ? 1 : x >= 1 || x === 0 ? 2 : 3)}\u00a0%`;
    return "<0.001\u00a0%";
  }

  function bits(probability) {
    let sum = 0;
    for (const p of probability) if (p > 0) sum -= p * Math.log2(p);
    return Math.abs(sum);
  }

  // 1, 2, ... 20, then ever larger steps, and last 0: every token.
  function topKSteps(V) {
    const steps = [];
    for (let k = 1; k < V; k = k < 20 ? k + 1 : Math.ceil(k * 1.15)) steps.push(k);
    return [...steps, 0];
  }

  // Everything that is shown of one row of logits under some settings.
  function compute(row, settings, u) {
    const logits = Sampling.stages(row.logits, settings, row.previousIds, row.orderFor(settings.repetitionPenalty));
    const probability = [row.probability, ...logits.map(Sampling.softmax)]; // before, and after each stage
    const cuts = logits.map((after, stage) => {
      const before = stage ? logits[stage - 1] : row.logits;
      let [count, mass] = [0, 0];
      for (let i = 0; i < after.length; i++) {
        if (after[i] > -Infinity || before[i] === -Infinity) continue;
        count += 1;
        mass += probability[stage][i];
      }
      return { count, mass };
    });
    const cumulative = Sampling.cumulate(probability.at(-1));
    const chosen = Sampling.choose(cumulative, u);
    const total = cumulative.at(-1);
    const span = (i) => [(i ? cumulative[i - 1] : 0) / total, cumulative[i] / total];
    const cutBy = (i) => (row.logits[i] === -Infinity ? -1 : logits.findIndex((after) => after[i] === -Infinity));
    return { logits, probability, cuts, chosen, span, cutBy };
  }

  // A row of logits, with what does not depend on most settings: its sorted ids are kept while the penalty stays.
  function prepare({ logits, tokens, previousIds = [] }) {
    let [penalty, order] = [NaN, null];
    const orderFor = (value) => {
      if (value !== penalty) order = Sampling.sortedIds(Sampling.penalizeRepetition(logits, previousIds, value));
      penalty = value;
      return order;
    };
    const text = typeof tokens === "function" ? tokens : (i) => tokens[i];
    const finite = logits.some((x) => x > -Infinity) && logits.every((x) => x < Infinity);
    return { logits, previousIds, text, orderFor, finite, V: logits.length, probability: Sampling.softmax(logits) };
  }

  function stageNote(stage, row, settings, result) {
    const control = CONTROLS[stage];
    const value = settings[control.key];
    const { count, mass } = result.cuts[stage];
    if (control.key === "repetitionPenalty") {
      const previous = new Set(row.previousIds).size;
      if (!previous) return "no previous tokens";
      return value === 1 ? "off" : `lowers ${whole(previous)} earlier token${previous === 1 ? "" : "s"}`;
    }
    if (control.key === "temperature" && value > 0) {
      const [before, after] = [1, 2].map((i) => bits(result.probability[i]).toFixed(2));
      return value === 1 ? `unchanged, ${before} bits` : `${before} bits → ${after} bits`;
    }
    if (value === Sampling.NEUTRAL[control.key]) return "off";
    if (!count) return "cuts no token";
    const greedy = control.key === "temperature" ? "greedy: " : "";
    return `${greedy}cuts ${whole(count)} token${count === 1 ? "" : "s"} with ${percent(mass)} of the probability`;
  }

  // A field for a number. What is not a number between min and max is marked, and gone when the field is left.
  function makeNumber(properties, onChange) {
    const number = make("input", { type: "number", step: "any", inputMode: "decimal", ...properties });
    let last = 0;
    const show = (value) => {
      last = value;
      if (document.activeElement !== number) number.value = value;
      number.removeAttribute("aria-invalid");
    };
    number.addEventListener("input", () => {
      if (number.value !== "" && number.checkValidity()) onChange(number.valueAsNumber);
      else number.setAttribute("aria-invalid", "true");
    });
    number.addEventListener("blur", () => show(last));
    return { element: number, show };
  }

  // One stage's control: a slider and a number that stay equal. Returns its element and a function that shows a value.
  function makeControl(control, id, V, onChange) {
    const steps = control.key === "topK" ? topKSteps(V) : null;
    const toSlider = (value) => {
      if (!steps) return value;
      const at = steps.findIndex((k) => k === 0 || k >= value);
      return value === 0 ? steps.length - 1 : at;
    };
    const [least, most, step] = steps ? [0, steps.length - 1, 1] : [control.least, control.most, control.step];
    const slider = make("input", { type: "range", id, min: least, max: most, step });
    const range = { min: control.min, max: control.max ?? V, step: steps ? 1 : "any" };
    const number = makeNumber({ ...range, "aria-label": `${control.label}, as a number` }, onChange);
    const note = make("p", { className: "nt-note", id: `${id}-note` });
    slider.setAttribute("aria-describedby", note.id);
    const show = (value) => {
      slider.value = toSlider(value);
      slider.setAttribute("aria-valuetext", steps ? (value === 0 ? "every token" : whole(value)) : `${value}`);
      number.show(value);
    };
    slider.addEventListener("input", () => onChange(steps ? steps[slider.valueAsNumber] : slider.valueAsNumber));
    const label = make("label", { htmlFor: id, text: control.label });
    return { element: make("div", { className: "nt-control" }, label, number.element, slider, note), show, note };
  }

  // A line of the chart: the token, and a bar in each column: before, and after each stage.
  function makeLine() {
    const token = make("bdi", { className: "nt-token" });
    const cells = Array.from({ length: Sampling.STAGES.length + 1 }, () => {
      const [ghost, bar] = ["nt-ghost", "nt-bar"].map((className) => make("span", { className }));
      const value = make("span", { className: "nt-value" });
      return { ghost, bar, value, element: make("div", { className: "nt-cell" }, bar, ghost, value) };
    });
    const element = make("div", { className: "nt-line" }, make("div", { className: "nt-name" }, token));
    element.append(...cells.map((cell) => cell.element));
    return { element, token, cells };
  }

  function fillLine(line, i, row, result, scale) {
    line.token.textContent = shown(row.text(i));
    line.element.title = `${row.text(i)} (id ${i})`;
    line.element.classList.toggle("nt-chosen", i === result.chosen);
    const cutBy = result.cutBy(i);
    line.cells.forEach((cell, column) => {
      const probability = result.probability[column][i];
      const cut = cutBy >= 0 && column > cutBy;
      cell.ghost.style.width = `${100 * Math.min(1, result.probability[0][i] / scale)}%`;
      cell.bar.style.width = `${100 * Math.min(1, probability / scale)}%`;
      cell.element.classList.toggle("nt-cut", cut);
      const last = column === line.cells.length - 1;
      if (!cut) cell.value.textContent = percent(probability);
      else cell.value.textContent = last ? `cut by ${Sampling.STAGES[cutBy]}` : column === cutBy + 1 ? "cut" : "";
    });
  }

  // What the tokens without a line of their own have together, as one line.
  function fillOthers(line, ids, row, result) {
    const shownIds = new Set(ids);
    const others = row.V - shownIds.size;
    line.element.hidden = !others;
    line.token.textContent = `${whole(others)} other${others === 1 ? "" : "s"}`;
    line.cells.forEach((cell, column) => {
      let mass = 1;
      for (const i of shownIds) mass -= result.probability[column][i];
      cell.value.textContent = percent(Math.max(0, mass < 1e-12 ? 0 : mass));
    });
  }

  function fillTable(table, ids, row, result) {
    const header = ["Token", "Id", "Logit", "Model", ...Sampling.STAGES.map((name) => `After ${name}`)];
    const head = make("thead", {}, make("tr", {}, ...header.map((text) => make("th", { scope: "col", text }))));
    const lines = ids.map((i) => {
      const name = make("th", { scope: "row" }, make("bdi", { text: shown(row.text(i)) }));
      const cutBy = result.cutBy(i);
      const texts = [whole(i), row.logits[i].toFixed(4)];
      texts.push(...result.probability.map((p, column) => (cutBy >= 0 && column > cutBy ? "cut" : percent(p[i]))));
      return make("tr", {}, name, ...texts.map((text) => make("td", { text })));
    });
    const caption = make("caption", { text: "Probabilities of the most likely tokens, before and after each setting" });
    table.replaceChildren(caption, head, make("tbody", {}, ...lines));
  }

  // [0, 1) divided among the kept tokens in the order of their ids: the order in which sampling adds them up.
  function fillStrip(strip, order, row, result, u) {
    const final = result.probability.at(-1);
    const ids = Array.from(order.subarray(0, SEGMENTS)).filter((i) => final[i] >= 0.002);
    if (!ids.includes(result.chosen)) ids.push(result.chosen);
    const segments = ids.map((i) => {
      const [from, to] = result.span(i);
      const text = to - from > 0.02 ? shown(row.text(i)) : "";
      const segment = make("span", { className: "nt-segment" }, make("bdi", { text }));
      segment.title = `${row.text(i)} (id ${i}): ${from.toFixed(5)} to ${to.toFixed(5)}`;
      segment.classList.toggle("nt-chosen", i === result.chosen);
      segment.style.left = `${100 * from}%`;
      segment.style.width = `${100 * (to - from)}%`;
      return segment;
    });
    const marker = make("span", { className: "nt-marker" });
    marker.style.left = `${100 * u}%`;
    strip.replaceChildren(...segments, marker);
  }

  function makeDraw(id, onChange) {
    const strip = make("div", { className: "nt-strip", "aria-hidden": "true" });
    const slider = make("input", { type: "range", id: `${id}-u`, min: 0, max: 0.999, step: 0.001 });
    const number = makeNumber({ min: 0, max: 0.999999, "aria-label": "Random number u, as a number" }, onChange);
    const button = make("button", { type: "button", className: "nt-button", text: "Draw" });
    const label = make("label", { htmlFor: slider.id, text: "Random number u" });
    const sentence = make("p", { className: "nt-sentence" });
    slider.addEventListener("input", () => onChange(slider.valueAsNumber));
    button.addEventListener("click", () => onChange(Math.floor(Math.random() * 1e6) / 1e6)); // all digits are shown
    const show = (u) => {
      slider.value = u;
      number.show(u);
    };
    const head = make("div", { className: "nt-draw-head" }, label, number.element, button);
    const element = make("div", { className: "nt-draw" }, head, strip, slider, sentence);
    return { element, strip, sentence, show };
  }

  function fillSentence(sentence, row, result, u) {
    const [from, to] = result.span(result.chosen).map((x) => x.toFixed(5));
    const token = make("bdi", { className: "nt-pick", text: shown(row.text(result.chosen)) });
    const rest = ` (id ${whole(result.chosen)}), which has [${from}, ${to}): ${percent(to - from)}.`;
    sentence.replaceChildren(`u = ${u} falls on `, token, rest);
  }

  // The smallest round number that the longest bar does not exceed, so that bars seldom change their scale.
  const roundScale = (most) => [0.01, 0.02, 0.05, 0.1, 0.2, 0.5].find((scale) => scale >= most) ?? 1;

  // Every element of the panel; `onSetting(key, value)` and `onDraw(u)` are called when the reader changes something.
  function buildPanel(id, V, onSetting, onDraw) {
    const controls = CONTROLS.map((control, stage) =>
      makeControl(control, `${id}-${stage}`, V, (value) => onSetting(control.key, value)));
    const [modelNote, scaleNote] = ["nt-note", "nt-note nt-scale"].map((className) => make("p", { className }));
    const [tokenLabel, modelLabel] = ["Token", "Model"].map((text) => make("span", { className: "nt-label", text }));
    const name = make("div", { className: "nt-name" }, tokenLabel);
    const model = make("div", { className: "nt-control nt-model" }, modelLabel, modelNote);
    const head = make("div", { className: "nt-line nt-head" }, name, model, ...controls.map((c) => c.element));
    const lines = Array.from({ length: ROWS + 1 }, makeLine); // the last: the chosen token, if it is not among them
    const others = makeLine();
    others.element.classList.add("nt-others");
    const rows = [...lines, others].map((line) => line.element);
    const chart = make("div", { className: "nt-chart", "aria-hidden": "true" }, scaleNote, ...rows);
    const draw = makeDraw(id, onDraw);
    const reset = make("button", { type: "button", className: "nt-button", text: "Reset settings" });
    reset.addEventListener("click", () => CONTROLS.forEach(({ key }) => onSetting(key, Sampling.NEUTRAL[key])));
    const table = make("table");
    const region = { className: "nt-scroll", tabIndex: 0, role: "region", "aria-label": "Table of probabilities" };
    const summary = make("summary", { text: "These numbers as a table" });
    const details = make("details", { className: "nt-table" }, summary, make("div", region, table));
    const foot = make("div", { className: "nt-foot" }, reset, details);
    const status = make("p", { className: "nt-status", role: "status" });
    const elements = [head, chart, draw.element, foot, status];
    return { elements, controls, modelNote, scaleNote, lines, others, draw, details, table, status };
  }

  function render(panel, row, settings, u) {
    const result = compute(row, settings, u);
    const order = row.orderFor(settings.repetitionPenalty);
    const ids = Array.from(order.subarray(0, ROWS));
    if (!ids.includes(result.chosen)) ids.push(result.chosen);
    const scale = roundScale(Math.max(...ids.flatMap((i) => result.probability.map((p) => p[i]))));
    panel.lines.forEach((line, rank) => (line.element.hidden = rank >= ids.length));
    ids.forEach((i, rank) => fillLine(panel.lines[rank], i, row, result, scale));
    fillOthers(panel.others, ids, row, result);
    panel.modelNote.textContent = `${whole(row.V)} tokens, ${bits(row.probability).toFixed(2)} bits`;
    panel.scaleNote.textContent = `A full bar is ${100 * scale} %. Dashed: before any setting.`;
    panel.controls.forEach((control, stage) => {
      const { key } = CONTROLS[stage];
      control.show(settings[key]);
      control.note.textContent = stageNote(stage, row, settings, result);
      control.element.classList.toggle("nt-off", settings[key] === Sampling.NEUTRAL[key]);
    });
    panel.draw.show(u);
    fillStrip(panel.draw.strip, order, row, result, u);
    fillSentence(panel.draw.sentence, row, result, u);
    if (panel.details.open) fillTable(panel.table, ids, row, result);
  }

  return function mountNextToken(element, first) {
    const chosen = choices.get(element) ?? { settings: { ...Sampling.NEUTRAL }, u: 0.5 };
    choices.set(element, chosen);
    let row = prepare(first);
    let [frame, timer] = [0, 0];
    const update = () => {
      frame = 0;
      element.classList.toggle("nt-unusable", !row.finite);
      if (row.finite) render(panel, row, chosen.settings, chosen.u);
      else panel.status.textContent = "The logits of this position are not finite: nothing can be sampled.";
    };
    const later = () => (frame ||= requestAnimationFrame(update)); // once per frame, however often a slider moves
    const changed = () => {
      later();
      clearTimeout(timer);
      timer = setTimeout(() => (panel.status.textContent = `Chosen: ${panel.draw.sentence.textContent}`), ANNOUNCE_MS);
    };
    const panel = buildPanel(
      `next-token-${++mounted}`,
      row.V,
      (key, value) => ((chosen.settings[key] = value), changed()),
      (value) => ((chosen.u = value), changed()),
    );
    panel.details.addEventListener("toggle", later);
    element.classList.add("next-token");
    element.replaceChildren(...panel.elements);
    update();
    return { show: (next) => ((row = prepare({ tokens: first.tokens, ...next })), later()) };
  };
})();
