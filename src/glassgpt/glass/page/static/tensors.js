"use strict";
// Every tensor of the pass, by its name in `glassgpt trace`: recorded, or computed from recorded ones by its rule.
//
// A rule says what a tensor is made of and how: `inputs(layer)` names the tensors, `value(inputs, index)` computes one
// number, `explain(inputs, index)` writes that computation out. The batch dimension is left out: q is [H, T, D].

const { T, C, H, KV, D, P } = sizes;
const rope = config.position === "rope";
const queryName = rope ? "rotated q" : config.qk_norm ? "normed q" : "q";
const keyName = rope ? "rotated k" : config.qk_norm ? "normed k" : "k";
const outsideBlocks = new Set(["idx", "token embedding", "position embedding", "embeddings", "final norm", "logits"]);

/** The axes of the weights; those of the tensors come with the page. A weight has a row per output and a column per input. */
Object.assign(about.axes, {
  "qkv weight": ["P", "C"], "qkv bias": ["P"],
  "attention output weight": ["C", "A"], "attention output bias": ["C"],
  "gate weight": ["I", "C"], "gate bias": ["I"], "up weight": ["I", "C"], "up bias": ["I"],
  "mlp output weight": ["C", "I"], "mlp output bias": ["C"], "head weight": ["V", "C"],
  "norm 1 weight": ["C"], "norm 1 bias": ["C"], "norm 2 weight": ["C"], "norm 2 bias": ["C"],
  "final norm weight": ["C"], "final norm bias": ["C"], "normed q weight": ["D"], "normed k weight": ["D"],
  "rotary cosines": ["T", "D"], "rotary sines": ["T", "D"],
});

/** The checkpoint that is shown: all tensors are those of this frame. */
let frame = about.frames.at(-1);

/** Whether this model has a tensor of that name. */
function exists(name) {
  if (name === "position embedding") return !rope;
  if (name === "rotated q" || name === "rotated k") return rope;
  if (name === "normed q" || name === "normed k") return config.qk_norm;
  if (name === "k per query head" || name === "v per query head") return KV < H;
  if (name === "gate") return config.mlp === "swiglu";
  return name in about.axes;
}

/** Where the residual stream comes from at the beginning of a block. */
function residualBefore(layer) {
  return layer === 0 ? ["embeddings", null] : ["residual after mlp", layer - 1];
}

// ---- getting tensors ----

const tensorCache = new Map();

/**
 * Get a tensor: {name, layer, axes, shape, data, source}; null if it is not in this page.
 * Weights have names, too: "up weight" is [I, C]. `source` is "recorded" or "computed".
 */
function getTensor(name, layer = null) {
  const key = `${frame.step}/${layer}/${name}`;
  if (!tensorCache.has(key)) tensorCache.set(key, loadTensor(name, layer));
  return tensorCache.get(key);
}

async function loadTensor(name, layer) {
  const axes = about.axes[name] ?? [];
  const kept = frame.tensors.find((entry) => entry.name === name && entry.layer === layer);
  if (kept) {
    return { name, layer, axes, shape: kept.shape, data: await decodeFloats(kept.block), source: "recorded" };
  }
  if (name === "logits") return { ...(await getTensor("last logits")), name, axes };
  if (!rules[name] || !exists(name)) return null;
  const inputs = await gather(rules[name], layer);
  const shape = axes.map((axis) => sizes[axis]);
  const required = Object.entries(inputs).filter(([, tensor]) => tensor === null);
  if (required.some(([part]) => part !== "weight" && part !== "bias")) return null;
  if (rules[name].recordedOnly) return null;
  return { name, layer, axes, shape, data: computeAll(rules[name], inputs, shape), source: rules[name].view ? "recorded" : "computed" };
}

/** The inputs of a rule, by their part in the formula; a weight that is not in the page is null. */
async function gather(rule, layer) {
  const entries = Object.entries(rule.inputs(layer));
  const tensors = await Promise.all(entries.map(([, [name, from]]) => getTensor(name, from)));
  return Object.fromEntries(entries.map(([part], i) => [part, tensors[i]]));
}

function computeAll(rule, inputs, shape) {
  const data = new Float32Array(shape.reduce((product, n) => product * n, 1));
  const index = shape.map(() => 0);
  for (let i = 0; i < data.length; i++) {
    data[i] = rule.value(inputs, index);
    for (let axis = shape.length - 1; axis >= 0 && ++index[axis] === shape[axis]; axis--) index[axis] = 0;
  }
  return data;
}

/** The place of an index in the data of a tensor of that shape. */
function offset(shape, index) {
  return index.reduce((flat, i, axis) => flat * shape[axis] + i, 0);
}

function at(tensor, index) {
  return tensor.data[offset(tensor.shape, index)];
}

/** The position of the first row; not 0 if only the last position was kept. */
function firstPosition(tensor) {
  const axis = tensor.axes.indexOf("T");
  return axis < 0 ? 0 : T - tensor.shape[axis];
}

/** Why a tensor is not in this page, and what to do. */
function whyNotKept(name, layer) {
  const where = layer === null ? "" : ` of block ${layer}`;
  const size = weightShape(name);
  const shown = size ? `, ${count(size[0])} × ${count(size[1])},` : "";
  const limit = `${Math.round(about.limit / 1e5) / 10} MB`;
  return `${name}${where}${shown} is not in this page: it would not fit into ${limit} (see --max-mb).`;
}

function weightShape(name) {
  const axes = name.endsWith(" weight") ? about.axes[name] : null;
  return axes?.length === 2 ? axes.map((axis) => sizes[axis]) : null;
}

// ---- explaining cells ----

/**
 * Explain one number: {symbol, formula, lines, terms, value, recorded, inputs, missing}.
 *
 * `formula` is the rule in symbols, `lines` are the same with this cell's numbers, `terms` every summand as {label, text,
 * value}, `value` what the page computes from them (null if a part is not in the page, which `missing` names), and
 * `recorded` the number of the pass if that was recorded. `inputs` are links to the tensors: {name, layer, index}, with the
 * index where it does not follow from the names of the axes.
 */
async function explainCell(name, layer, index) {
  const tensor = await getTensor(name, layer);
  const rule = rules[name];
  const symbol = `${name}[${index.join(", ")}]`;
  const value = at(tensor, index);
  if (!rule) return { symbol, formula: "", lines: [], terms: [], value, recorded: value, inputs: [], missing: "" };
  const inputs = await gather(rule, layer);
  const parts = rule.inputs(layer);
  const missing = Object.keys(parts).filter((part) => inputs[part] === null && !(part === "bias" && !hasBias(parts[part])));
  const rows = rule.rows?.(index, tensor) ?? {};
  const links = Object.entries(parts).filter(([part]) => inputs[part] !== null).map(([part, [from, of]]) => ({ name: from, layer: of, index: rows[part] }));
  const result = {
    symbol,
    formula: rule.formula,
    lines: [],
    terms: [],
    value: null,
    recorded: tensor.source === "recorded" ? value : undefined,
    inputs: links,
    missing: missing.map((part) => whyNotKept(...parts[part])).join(" "),
  };
  if (missing.length === 0) Object.assign(result, rule.explain(inputs, index, symbol, tensor));
  if (tensor.source === "computed") result.value = value;
  return result;
}

function hasBias([name]) {
  if (name === "qkv bias") return config.qkv_bias;
  if (name === "attention output bias") return config.attention_out_bias;
  if (name.startsWith("norm ") || name === "final norm bias") return config.norm_bias;
  if (name === "head bias" || name.startsWith("normed ")) return false;
  return config.mlp_bias;
}

/** "a + b + c + … (28 more)" of the first terms. */
function sumText(terms, shown = 4) {
  const rest = terms.length - shown;
  const first = terms.slice(0, shown).map((term) => term.text).join(" + ");
  return rest > 0 ? `${first} + … (${plural(rest, "more term")})` : first;
}

function product(label, a, b) {
  return { label, text: `${factor(a)}·${factor(b)}`, value: a * b };
}

// ---- the rules ----

/** x Wᵀ + b, where `place(index)` gives the position and the row of the weight. */
function linear(from, weight, place, extra = {}) {
  const letters = extra.letters ?? ["t, i", "t", "i"];
  return {
    formula: `${extra.symbol}[${letters[0]}] = Σ_c ${from}[${letters[1]}, c] · W[${letters[2]}, c]${extra.biasText ?? ""}`,
    recordedOnly: true,
    ...extra,
    inputs: (layer) => ({
      x: [from, extra.global ? null : layer],
      weight: [`${weight} weight`, extra.global ? null : layer],
      bias: [`${weight} bias`, extra.global ? null : layer],
    }),
    rows(index, tensor) {
      const [t, row] = place(index, tensor);
      return { x: [t, 0], weight: [row, 0], bias: [row] };
    },
    explain({ x, weight: W, bias }, index, symbol, tensor) {
      const [t, row] = place(index, tensor);
      const n = W.shape[1];
      const terms = Array.from({ length: n }, (_, c) => product(`c ${c}`, x.data[t * n + c], W.data[row * n + c]));
      let value = dot(x.data, t * n, W.data, row * n, n);
      if (bias) {
        value += bias.data[row];
        terms.push({ label: "bias", text: factor(bias.data[row]), value: bias.data[row] });
      }
      value = Math.fround(value);
      return { terms, value, lines: [`${symbol} = ${sumText(terms)} = ${digits(value)}`] };
    },
  };
}

/** q, k or v: a slice of the fused projection, from this row on. */
function slice(name, firstRow) {
  const place = ([h, t, d]) => [t, firstRow + h * D + d];
  const rule = linear("norm 1", "qkv", place, { symbol: name, letters: ["h, t, d", "t", "h, d"] });
  const inputs = rule.inputs;
  return {
    ...rule,
    recordedOnly: false,
    view: true,
    formula: `${name}[h, t, d] = Σ_c norm 1[t, c] · W_${name}[h, d, c]${config.qkv_bias ? ` + b_${name}[h, d]` : ""}`,
    inputs: (layer) => ({ ...inputs(layer), qkv: ["qkv", layer] }),
    value: ({ qkv }, [h, t, d]) => qkv.data[t * P + firstRow + h * D + d],
  };
}

/** LayerNorm or RMSNorm over the last axis. */
function normalized(name, input, kind, formulaOf) {
  const centred = kind === "layernorm";
  const eps = config.norm_eps;
  return {
    formula: centred
      ? `(x - mean) / √(variance + eps) · weight${config.norm_bias ? " + bias" : ""}`
      : "x / √(mean of x² + eps) · weight",
    inputs: (layer) => ({ x: input(layer), weight: [`${name} weight`, layer], bias: [`${name} bias`, layer] }),
    parts({ x, weight, bias }, index) {
      const n = x.shape.at(-1);
      const i = index.at(-1);
      const from = offset(x.shape, index) - i;
      const { mean, variance } = centred ? moments(x.data, from, n) : { mean: 0, variance: 0 };
      const scale = centred ? Math.sqrt(variance + eps) : rms(x.data, from, n, eps);
      const b = bias ? bias.data[i] : 0;
      const value = Math.fround(((x.data[from + i] - mean) / scale) * weight.data[i] + b);
      return { n, from, mean, variance, scale, x: x.data[from + i], w: weight.data[i], b, hasBias: Boolean(bias), value };
    },
    value(inputs, index) {
      return this.parts(inputs, index).value;
    },
    explain(inputs, index, symbol) {
      const p = this.parts(inputs, index);
      const end = `· ${factor(p.w)}${p.hasBias ? ` + ${factor(p.b)}` : ""} = ${digits(p.value)}`;
      const terms = Array.from({ length: p.n }, (_, c) => {
        const x = inputs.x.data[p.from + c];
        return centred
          ? { label: `x[${c}]`, text: digits(x), value: x }
          : { label: `x[${c}]²`, text: `${factor(x)}²`, value: x * x };
      });
      const lines = centred
        ? [
            `mean of ${p.n} numbers = ${digits(p.mean)}, variance = ${digits(p.variance)}`,
            `${symbol} = (${digits(p.x)} - ${factor(p.mean)}) / √(${digits(p.variance)} + ${eps}) ${end}`,
          ]
        : [
            `mean of ${p.n} squares = ${digits(p.scale ** 2 - eps)}`,
            `${symbol} = ${digits(p.x)} / √(${digits(p.scale ** 2 - eps)} + ${eps}) ${end}`,
          ];
      return { terms, value: p.value, lines };
    },
  };
}

/** A number that is the sum of two. */
function residualSum(before, added) {
  return {
    formula: `${before(1)[0]} + ${added}`,
    inputs: (layer) => ({ a: before(layer), b: [added, layer] }),
    value: ({ a, b }, index) => Math.fround(at(a, index) + at(b, index)),
    explain({ a, b }, index, symbol) {
      const terms = [a, b].map((part) => ({ label: part.name, text: factor(at(part, index)), value: at(part, index) }));
      const value = this.value({ a, b }, index);
      return { terms, value, lines: [`${symbol} = ${terms.map((term) => term.text).join(" + ")} = ${digits(value)}`] };
    },
  };
}

/** Rotary positions on q or k. */
function rotation(name, input) {
  return {
    formula: `x[d] · cos(t·f_d) ∓ x[d ± ${D / 2}] · sin(t·f_d)`,
    inputs: (layer) => ({ x: [input, layer], cos: ["rotary cosines", null], sin: ["rotary sines", null] }),
    value: ({ x, cos, sin }, [h, t, d]) =>
      rotated(x.data, (h * T + t) * D, d, D, cos.data[t * D + d], sin.data[t * D + d]),
    explain(inputs, [h, t, d], symbol) {
      const from = (h * T + t) * D;
      const first = d < D / 2;
      const partner = first ? d + D / 2 : d - D / 2;
      const [x, y] = [inputs.x.data[from + d], inputs.x.data[from + partner]];
      const [cos, sin] = [inputs.cos.data[t * D + d], inputs.sin.data[t * D + d]];
      const terms = [product(`${input}[${d}]·cos`, x, cos), product(`${input}[${partner}]·sin`, first ? -y : y, sin)];
      const value = this.value(inputs, [h, t, d]);
      return { terms, value, lines: [`${symbol} = ${terms.map((term) => term.text).join(" + ")} = ${digits(value)}`] };
    },
  };
}

/** Key or value heads, each repeated for the query heads that share it. */
function repeated(name, input) {
  const group = H / KV;
  return {
    formula: `${input}[h // ${group}, s, d]: ${group} query heads share a key/value head`,
    inputs: (layer) => ({ x: [input, layer] }),
    value: ({ x }, [h, s, d]) => at(x, [Math.floor(h / group), s, d]),
    explain({ x }, index, symbol) {
      const value = this.value({ x }, index);
      const from = `${input}[${Math.floor(index[0] / group)}, ${index[1]}, ${index[2]}]`;
      return { terms: [{ label: from, text: factor(value), value }], value, lines: [`${symbol} = ${from} = ${digits(value)}`] };
    },
  };
}

const kvHead = (h) => Math.floor(h / (H / KV));

const scores = {
  formula: `scores[h, t, s] = Σ_d ${queryName}[h, t, d] · ${keyName}[${KV < H ? `h // ${H / KV}` : "h"}, s, d]`,
  inputs: (layer) => ({ q: [queryName, layer], k: [keyName, layer] }),
  rows: ([h, t, s]) => ({ q: [h, t, 0], k: [kvHead(h), s, 0] }),
  value: ({ q, k }, [h, t, s]) => Math.fround(dot(q.data, (h * T + t) * D, k.data, (kvHead(h) * T + s) * D, D)),
  explain({ q, k }, [h, t, s], symbol) {
    const [a, b] = [(h * T + t) * D, (kvHead(h) * T + s) * D];
    const terms = Array.from({ length: D }, (_, d) => product(`d ${d}`, q.data[a + d], k.data[b + d]));
    const value = this.value({ q, k }, [h, t, s]);
    return { terms, value, lines: [`${symbol} = ${queryName}[${h}, ${t}] · ${keyName}[${kvHead(h)}, ${s}] = ${sumText(terms)} = ${digits(value)}`] };
  },
};

const scaledScores = {
  formula: `scores[h, t, s] / √${D}`,
  inputs: (layer) => ({ x: ["scores", layer] }),
  rows: (index) => ({ x: index }),
  value: ({ x }, index) => Math.fround(at(x, index) / Math.sqrt(D)),
  explain({ x }, index, symbol) {
    const value = this.value({ x }, index);
    const line = `${symbol} = ${digits(at(x, index))} / √${D} = ${digits(value)}`;
    return { terms: [{ label: "score", text: digits(at(x, index)), value: at(x, index) }], value, lines: [line] };
  },
};

/** The window is the block's, so this rule gets it as an input. */
const maskedScores = {
  formula: "the scaled score, or -∞ where t may not attend to s",
  inputs: (layer) => ({ x: ["scaled scores", layer] }),
  rows: (index) => ({ x: index }),
  value({ x }, index) {
    return attends(index[1], index[2], about.windows[x.layer]) ? at(x, index) : -Infinity;
  },
  explain({ x }, index, symbol) {
    const [, t, s] = index;
    const value = this.value({ x }, index);
    const window = about.windows[x.layer];
    const why = s > t ? `token ${s} comes after token ${t}` : `token ${s} is outside the window of ${window} tokens`;
    const line = Number.isFinite(value) ? `${symbol} = ${digits(value)}: token ${t} may attend to token ${s}` : `${symbol} = -∞: ${why}`;
    return { terms: [{ label: "scaled score", text: digits(at(x, index)), value: at(x, index) }], value, lines: [line] };
  },
};

const attentionWeights = {
  formula: "exp(score[t, s] - largest) / Σ_s exp(score[t, s] - largest)",
  recordedOnly: true,
  inputs: (layer) => ({ x: ["masked scores", layer] }),
  rows: (index) => ({ x: index }),
  explain({ x }, [h, t, s], symbol) {
    const from = (h * T + t) * T;
    const { largest, sum } = softmaxParts(x.data, from, T);
    const terms = Array.from({ length: t + 1 }, (_, i) => ({
      label: `s ${i}`,
      text: `exp(${digits(x.data[from + i])} - ${factor(largest)})`,
      value: Math.exp(x.data[from + i] - largest),
    }));
    const value = Math.fround(Math.exp(x.data[from + s] - largest) / sum);
    const lines = [
      `largest score of row ${t} = ${digits(largest)}, Σ = ${sumText(terms.map((term) => ({ text: digits(term.value) })))} = ${digits(sum)}`,
      `${symbol} = exp(${digits(x.data[from + s])} - ${factor(largest)}) / ${digits(sum)} = ${digits(value)}`,
    ];
    return { terms, value, lines };
  },
};

const headOutputs = {
  formula: `head outputs[h, t, d] = Σ_s weights[h, t, s] · v[${KV < H ? `h // ${H / KV}` : "h"}, s, d]`,
  inputs: (layer) => ({ w: ["attention weights", layer], v: ["v", layer] }),
  rows: ([h, t, d]) => ({ w: [h, t, t], v: [kvHead(h), t, d] }),
  value({ w, v }, [h, t, d]) {
    let sum = 0;
    for (let s = 0; s <= t; s++) sum += w.data[(h * T + t) * T + s] * v.data[(kvHead(h) * T + s) * D + d];
    return Math.fround(sum);
  },
  explain({ w, v }, [h, t, d], symbol) {
    const terms = Array.from({ length: t + 1 }, (_, s) =>
      product(`s ${s}`, w.data[(h * T + t) * T + s], v.data[(kvHead(h) * T + s) * D + d]));
    const value = this.value({ w, v }, [h, t, d]);
    return { terms, value, lines: [`${symbol} = ${sumText(terms)} = ${digits(value)}`] };
  },
};

const concatenatedHeads = {
  formula: `head outputs[a // ${D}, t, a % ${D}]`,
  inputs: (layer) => ({ x: ["head outputs", layer] }),
  rows: ([t, a]) => ({ x: [Math.floor(a / D), t, a % D] }),
  value: ({ x }, [t, a]) => at(x, [Math.floor(a / D), t, a % D]),
  explain({ x }, [t, a], symbol) {
    const value = this.value({ x }, [t, a]);
    const from = `head outputs[${Math.floor(a / D)}, ${t}, ${a % D}]`;
    return { terms: [{ label: from, text: factor(value), value }], value, lines: [`${symbol} = ${from} = ${digits(value)}`] };
  },
};

/** silu(gate) · up, or gelu(up). */
const hidden = config.mlp === "swiglu"
  ? {
      formula: "silu(gate) · up, with silu(x) = x / (1 + exp(-x))",
      inputs: (layer) => ({ gate: ["gate", layer], up: ["up", layer] }),
      value: ({ gate, up }, index) => Math.fround(silu(at(gate, index)) * at(up, index)),
      explain({ gate, up }, index, symbol) {
        const [g, u] = [at(gate, index), at(up, index)];
        const value = this.value({ gate, up }, index);
        const line = `${symbol} = silu(${digits(g)}) · ${factor(u)} = ${digits(silu(g))} · ${factor(u)} = ${digits(value)}`;
        return { terms: [product("silu(gate)·up", silu(g), u)], value, lines: [line] };
      },
    }
  : {
      formula: config.mlp === "gelu"
        ? "gelu(x) = x/2 · (1 + erf(x/√2))"
        : "gelu(x) = x/2 · (1 + tanh(√(2/π)·(x + 0.044715 x³)))",
      inputs: (layer) => ({ x: ["up", layer] }),
      value: ({ x }, index) => Math.fround((config.mlp === "gelu" ? gelu : geluTanh)(at(x, index))),
      explain({ x }, index, symbol) {
        const value = this.value({ x }, index);
        const line = `${symbol} = gelu(${digits(at(x, index))}) = ${digits(value)}`;
        return { terms: [{ label: "up", text: digits(at(x, index)), value: at(x, index) }], value, lines: [line] };
      },
    };

/** Rows of a table: nothing to compute, but where they come from can be said. */
function tableRow(table, rowOf) {
  return {
    formula: `row of the table of ${table}`,
    recordedOnly: true,
    inputs: () => ({}),
    explain: (_, [t, c], symbol, tensor) => {
      const value = at(tensor, [t, c]);
      return { terms: [], value, lines: [`${symbol} = ${table}[${rowOf(t)}, ${c}] = ${digits(value)}`] };
    },
  };
}

const bias = (has, letter) => (has ? ` + b[${letter}]` : "");
const rules = {
  idx: { formula: "the id of the token", inputs: () => ({}), value: (_, [t]) => about.ids[t],
    explain: (_, [t], symbol) => ({ terms: [], value: about.ids[t], lines: [`${symbol} = ${about.ids[t]}`] }) },
  "token embedding": tableRow("token embeddings", (t) => about.ids[t]),
  "position embedding": tableRow("position embeddings", (t) => t),
  embeddings: rope
    ? { formula: "the token embedding; positions enter later, by rotation", inputs: () => ({ x: ["token embedding", null] }),
        value: ({ x }, index) => at(x, index),
        explain: ({ x }, index, symbol) => ({ terms: [], value: at(x, index), lines: [`${symbol} = token embedding = ${digits(at(x, index))}`] }) }
    : residualSum(() => ["token embedding", null], "position embedding"),
  "norm 1": normalized("norm 1", residualBefore, config.norm),
  qkv: linear("norm 1", "qkv", ([t, p]) => [t, p], { symbol: "qkv", letters: ["t, p", "t", "p"], biasText: bias(config.qkv_bias, "p") }),
  q: slice("q", 0),
  "normed q": normalized("normed q", (layer) => ["q", layer], "rmsnorm"),
  k: slice("k", H * D),
  "normed k": normalized("normed k", (layer) => ["k", layer], "rmsnorm"),
  v: slice("v", (H + KV) * D),
  "rotated q": rotation("rotated q", config.qk_norm ? "normed q" : "q"),
  "rotated k": rotation("rotated k", config.qk_norm ? "normed k" : "k"),
  "k per query head": repeated("k per query head", keyName),
  "v per query head": repeated("v per query head", "v"),
  scores,
  "scaled scores": scaledScores,
  "masked scores": maskedScores,
  "attention weights": attentionWeights,
  "head outputs": headOutputs,
  "concatenated heads": concatenatedHeads,
  "attention output": linear("concatenated heads", "attention output", ([t, i]) => [t, i], { symbol: "attention output", biasText: bias(config.attention_out_bias, "i") }),
  "residual after attention": residualSum(residualBefore, "attention output"),
  "norm 2": normalized("norm 2", (layer) => ["residual after attention", layer], config.norm),
  gate: linear("norm 2", "gate", ([t, i]) => [t, i], { symbol: "gate", biasText: bias(config.mlp_bias, "i") }),
  up: linear("norm 2", "up", ([t, i]) => [t, i], { symbol: "up", biasText: bias(config.mlp_bias, "i") }),
  hidden,
  "mlp output": linear("hidden", "mlp output", ([t, i]) => [t, i], { symbol: "mlp output", biasText: bias(config.mlp_bias, "i") }),
  "residual after mlp": residualSum((layer) => ["residual after attention", layer], "mlp output"),
  "final norm": normalized("final norm", () => ["residual after mlp", config.n_layer - 1], config.norm),
  logits: linear("final norm", "head", ([t, v], tensor) => [t + firstPosition(tensor), v], { symbol: "logits", letters: ["t, v", "t", "v"], global: true }),
};
