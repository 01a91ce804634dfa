"use strict";
// One rule per tensor: what it is made of, and how.
//
// `formula` is for people. `inputs(layer)` names the tensors by their part in it. `value(inputs, index)` computes one
// number; a tensor without it is recorded only. `explain(inputs, index, symbol, tensor)` writes the computation out as
// {lines, terms, value}. `rows(index, tensor)` says which cell of each input belongs to a cell, where that does not
// follow from the names of the axes.

/** x Wᵀ + b, where `place(index)` gives the position and the row of the weight. */
function linear(from, weight, place, extra = {}) {
  const letters = extra.letters ?? ["t, i", "t", "i"];
  const sum = extra.sum ?? "c"; // the letter of the axis that is summed over
  return {
    formula: `${extra.symbol}[${letters[0]}] = Σ_${sum} ${from}[${letters[1]}, ${sum}] · W[${letters[2]}, ${sum}]${extra.biasText ?? ""}`,
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
      const terms = Array.from({ length: n }, (_, c) => product(`${sum} ${c}`, x.data[t * n + c], W.data[row * n + c]));
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
      return {
        n,
        from,
        mean,
        variance,
        scale,
        x: x.data[from + i],
        w: weight.data[i],
        b,
        hasBias: Boolean(bias),
        value,
      };
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
      return {
        terms: [{ label: from, text: factor(value), value }],
        value,
        lines: [`${symbol} = ${from} = ${digits(value)}`],
      };
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
    return {
      terms,
      value,
      lines: [
        `${symbol} = ${queryName}[${h}, ${t}] · ${keyName}[${kvHead(h)}, ${s}] = ${sumText(terms)} = ${digits(value)}`,
      ],
    };
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
    const line = Number.isFinite(value)
      ? `${symbol} = ${digits(value)}: token ${t} may attend to token ${s}`
      : `${symbol} = -∞: ${why}`;
    return {
      terms: [{ label: "scaled score", text: digits(at(x, index)), value: at(x, index) }],
      value,
      lines: [line],
    };
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
      product(`s ${s}`, w.data[(h * T + t) * T + s], v.data[(kvHead(h) * T + s) * D + d]),
    );
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
    return {
      terms: [{ label: from, text: factor(value), value }],
      value,
      lines: [`${symbol} = ${from} = ${digits(value)}`],
    };
  },
};

/** silu(gate) · up, or gelu(up). */
const hidden =
  config.mlp === "swiglu"
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
        formula:
          config.mlp === "gelu"
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
  idx: {
    formula: "the id of the token",
    inputs: () => ({}),
    value: (_, [t]) => about.ids[t],
    explain: (_, [t], symbol) => ({ terms: [], value: about.ids[t], lines: [`${symbol} = ${about.ids[t]}`] }),
  },
  "token embedding": tableRow("token embeddings", (t) => about.ids[t]),
  "position embedding": tableRow("position embeddings", (t) => t),
  embeddings: rope
    ? {
        formula: "the token embedding; positions enter later, by rotation",
        inputs: () => ({ x: ["token embedding", null] }),
        value: ({ x }, index) => at(x, index),
        explain: ({ x }, index, symbol) => ({
          terms: [],
          value: at(x, index),
          lines: [`${symbol} = token embedding = ${digits(at(x, index))}`],
        }),
      }
    : residualSum(() => ["token embedding", null], "position embedding"),
  "norm 1": normalized("norm 1", residualBefore, config.norm),
  qkv: linear("norm 1", "qkv", ([t, p]) => [t, p], {
    symbol: "qkv",
    letters: ["t, p", "t", "p"],
    biasText: bias(config.qkv_bias, "p"),
  }),
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
  "attention output": linear("concatenated heads", "attention output", ([t, i]) => [t, i], {
    symbol: "attention output",
    letters: ["t, c", "t", "c"],
    sum: "a",
    biasText: bias(config.attention_out_bias, "c"),
  }),
  "residual after attention": residualSum(residualBefore, "attention output"),
  "norm 2": normalized("norm 2", (layer) => ["residual after attention", layer], config.norm),
  gate: linear("norm 2", "gate", ([t, i]) => [t, i], { symbol: "gate", biasText: bias(config.mlp_bias, "i") }),
  up: linear("norm 2", "up", ([t, i]) => [t, i], { symbol: "up", biasText: bias(config.mlp_bias, "i") }),
  hidden,
  "mlp output": linear("hidden", "mlp output", ([t, i]) => [t, i], {
    symbol: "mlp output",
    letters: ["t, c", "t", "c"],
    sum: "i",
    biasText: bias(config.mlp_bias, "c"),
  }),
  "residual after mlp": residualSum((layer) => ["residual after attention", layer], "mlp output"),
  "final norm": normalized("final norm", () => ["residual after mlp", config.n_layer - 1], config.norm),
  logits: linear("final norm", "head", ([t, v], tensor) => [t + firstPosition(tensor), v], {
    symbol: "logits",
    letters: ["t, v", "t", "v"],
    global: true,
  }),
};
