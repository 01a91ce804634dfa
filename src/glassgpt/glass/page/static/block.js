"use strict";
// One Transformer block: a line that says what it changes, and all its steps when it is opened.

const L = config.n_layer;

/** The element of a block; its steps are built when it is first opened. */
function blockElement(layer) {
  const body = el("div", { class: "block-body" });
  const details = el("details", { class: "block", id: `block-${layer}` }, blockSummary(layer), body);
  details.addEventListener("toggle", () => {
    if (!details.open) return;
    if (!body.firstChild) body.append(...blockSteps(layer));
    else catchUp(details);
  });
  return details;
}

/** Name; how much attention and the MLP change the residual stream here; the token it would now predict. */
function blockSummary(layer) {
  const changes = el("span", { class: "changes" });
  const lens = el("span", { class: "lens" });
  const summary = el("summary", {}, el("h3", {}, `Block ${layer}`), changes, lens);
  follow(summary, ["position"], () => {
    const t = state.position;
    changes.replaceChildren(
      meter("attention", frame.attention_change[layer][t]),
      meter("MLP", frame.mlp_change[layer][t]),
    );
    const probability = frame.top_probability[layer + 1][t][0];
    lens.replaceChildren(
      "would say ",
      tokenText(vocabulary[frame.top[layer + 1][t][0]]),
      " ",
      el("span", { class: "share" }, percent(probability)),
    );
  });
  return summary;
}

/** How large a change is, relative to the residual stream before it. */
function meter(name, change) {
  return el(
    "span",
    {
      class: "meter",
      "--share": Math.min(change, 1),
      title: `${name} adds a vector with ${percent(change)} of the length of the residual stream`,
    },
    el("span", { class: "meter-name" }, name),
    el("span", { class: "bar", "aria-hidden": "true" }),
    el("span", { class: "meter-value" }, `+${percent(change)}`),
  );
}

function blockSteps(layer) {
  return [...attentionSteps(layer), ...mlpSteps(layer), lensStep(layer)];
}

const normSentence = (what) =>
  config.norm === "layernorm"
    ? `Each token’s vector is shifted to mean 0 and scaled to variance 1, then stretched by learned weights. ${what}`
    : `Each token’s vector is divided by its root mean square, then stretched by learned weights. ${what}`;

/** A picture of a tensor with heads, at the head that is chosen in this block. */
function headFigure(name, layer, extra = {}) {
  return matrixFigure(name, layer, { head: () => headOf(layer), kinds: [`head ${layer}`], ...extra });
}

const plus = (has, name) => (has ? ` + ${name}` : "");

function attentionSteps(layer) {
  const [before, beforeLayer] = residualBefore(layer);
  return [
    el("h4", { class: "half" }, "Attention: tokens exchange information"),
    step(
      "Norm",
      normSentence("The residual stream itself stays as it is; attention reads this copy."),
      formula(rules["norm 1"].formula),
      figures(
        matrixFigure(before, beforeLayer, { caption: layer === 0 ? "embeddings" : "residual stream" }),
        matrixFigure("norm 1", layer),
      ),
    ),
    ...queryKeySteps(layer),
    ...weightSteps(layer),
    step(
      "Output projection",
      `The outputs of all ${plural(H, "head")} are put side by side, and a learned matrix mixes them.`,
      formula(
        `attention output = heads · W_o${plus(config.attention_out_bias, "b_o")}`,
        `[T ${T}, ${H}·${D}] · [${H}·${D}, C ${C}] → [T ${T}, C ${C}]`,
      ),
      figures(matrixFigure("concatenated heads", layer), matrixFigure("attention output", layer)),
    ),
    step(
      "Add to the residual stream",
      "Attention does not replace the token’s vector: it adds to it. The selected token:",
      vectorSum([
        [before, beforeLayer],
        ["attention output", layer],
        ["residual after attention", layer],
      ]),
    ),
  ];
}

/** Query, key and value, and what is done to queries and keys before they meet. */
function queryKeySteps(layer) {
  const shares = KV < H ? ` ${H / KV} query heads share one key and one value head.` : "";
  const each = ["q", "k", "v"].map((name) => `${name} = norm 1 · W_${name}${plus(config.qkv_bias, `b_${name}`)}`);
  const widths = KV < H ? `q: ${H}·${D}; k, v: ${KV}·${D}` : `${H}·${D}`;
  const steps = [
    step(
      "Query, key, value",
      `Three learned projections of every token, for each of the ${plural(H, "head")}: the query says what a token looks ` +
        `for, the key what it offers, the value what it hands over.${shares}`,
      formula(each.join("   "), `[T ${T}, C ${C}] → [T ${T}, ${widths}]`),
      el("p", { class: "label" }, "Choose a head: each picture shows who looks at whom"),
      headWall(layer),
      figures(headFigure("q", layer), headFigure("k", layer), headFigure("v", layer)),
    ),
  ];
  if (config.qk_norm) {
    steps.push(
      step(
        "Norm of q and k",
        "Queries and keys are normalised, head by head, so that no score grows too large.",
        formula(rules["normed q"].formula),
        figures(headFigure("normed q", layer), headFigure("normed k", layer)),
      ),
    );
  }
  if (rope) {
    steps.push(
      step(
        "Rotation",
        "Here the position enters: pairs of channels are turned by an angle that grows with the position, so that q · k " +
          "depends on how far apart two tokens are.",
        formula(rules["rotated q"].formula),
        figures(headFigure("rotated q", layer), headFigure("rotated k", layer)),
      ),
    );
  }
  return steps;
}

/** From scores to weights to the sum of values. */
function weightSteps(layer) {
  const window = about.windows[layer];
  const limit = window ? `, and sees only the last ${count(window)} tokens, itself included` : "";
  const drawn = T > MIXED ? ` The ${MIXED} largest weights are drawn.` : "";
  const names = ["scores", "scaled scores", "masked scores", "attention weights"];
  return [
    step(
      "Scores, mask, softmax",
      `The score of a pair is the dot product of query and key, divided by √${D} so that it does not grow with the width. ` +
        `A token must not see what comes after it${limit}: the other scores become -∞. The softmax turns each row into ` +
        "weights that sum to 1.",
      formula(`weights = softmax(mask(q · kᵀ / √${D}))`, `[T ${T}, D ${D}] · [D ${D}, T ${T}] → [T ${T}, T ${T}]`),
      figures(...names.map((name) => headFigure(name, layer, { shape: "square" }))),
    ),
    step(
      "Who the selected token looks at",
      `Each arc ends at a token that is attended to; a thicker arc is a larger weight.${drawn}`,
      attentionArcs(layer),
    ),
    step(
      "Mix the values",
      "Follow the selected token from left to right: score, scaled score, weight; then the sum of all value vectors, each " +
        "multiplied by its weight.",
      formula(rules["head outputs"].formula, `[T ${T}, T ${T}] · [T ${T}, D ${D}] → [T ${T}, D ${D}]`),
      mixing(layer),
    ),
  ];
}

/** a + b = c, as strips of the selected token. */
function vectorSum([a, b, c]) {
  return el(
    "div",
    { class: "vector-sum" },
    vectorRow(...a, { label: "residual stream", limitOf: c }),
    vectorRow(...b, { sign: "+", limitOf: c }),
    vectorRow(...c, { sign: "=", limitOf: c }),
  );
}

function mlpSteps(layer) {
  const I = sizes.I;
  const gated = config.mlp === "swiglu";
  const names = gated ? ["gate", "up", "hidden"] : ["up", "hidden"];
  return [
    el("h4", { class: "half" }, "MLP: each token by itself"),
    step(
      "Norm",
      normSentence("The MLP reads this copy."),
      formula(rules["norm 2"].formula),
      figures(matrixFigure("norm 2", layer)),
    ),
    step(
      "Hidden units",
      gated
        ? `Two projections to ${count(I)} hidden units: the gate decides, smoothly, how much of each unit’s “up” value goes through.`
        : `A projection to ${count(I)} hidden units; GELU lets positive numbers through and holds back negative ones.`,
      formula(
        gated
          ? `hidden = silu(norm 2 · W_gate${plus(config.mlp_bias, "b_gate")}) · (norm 2 · W_up${plus(config.mlp_bias, "b_up")})`
          : `hidden = gelu(norm 2 · W_up${plus(config.mlp_bias, "b_up")})`,
        `[T ${T}, C ${C}] · [C ${C}, I ${count(I)}] → [T ${T}, I ${count(I)}]`,
      ),
      figures(...names.map((name) => matrixFigure(name, layer, { shape: "wide" }))),
      strongestUnits(layer),
    ),
    step(
      "MLP output",
      "A last projection brings the hidden units back to the width of the residual stream.",
      formula(
        `mlp output = hidden · W_down${plus(config.mlp_bias, "b_down")}`,
        `[T ${T}, I ${count(I)}] · [I ${count(I)}, C ${C}] → [T ${T}, C ${C}]`,
      ),
      figures(matrixFigure("mlp output", layer)),
    ),
    step(
      "Add to the residual stream",
      "Again a sum. The selected token:",
      vectorSum([
        ["residual after attention", layer],
        ["mlp output", layer],
        ["residual after mlp", layer],
      ]),
    ),
  ];
}

/** The hidden units that are largest for the selected token. */
function strongestUnits(layer) {
  const holder = el("p", { class: "units" });
  follow(holder, ["position"], async () => {
    const hidden = await getTensor("hidden", layer);
    if (!hidden) return;
    const row = hidden.data.subarray(state.position * sizes.I, (state.position + 1) * sizes.I);
    const units = [...row.keys()].sort((a, b) => Math.abs(row[b]) - Math.abs(row[a])).slice(0, 6);
    const links = units.map((unit) =>
      el(
        "button",
        { type: "button", class: "link", onclick: () => openInspector("hidden", layer, [state.position, unit]) },
        `${unit}: ${digits(row[unit])}`,
      ),
    );
    holder.replaceChildren("Strongest units of the selected token: ", ...links);
  });
  return holder;
}

function lensStep(layer) {
  return step(
    "What the model would say now",
    "If the model ended here (final norm and output matrix applied to this residual stream), the next token after the selected one would be:",
    lensList(layer + 1),
  );
}
