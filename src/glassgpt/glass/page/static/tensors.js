"use strict";
// Every tensor of the pass, by its name in `glassgpt trace`: recorded, or computed from recorded ones by its rule. The
// batch dimension is left out: q is [H, T, D].

const { T, C, H, KV, D, P } = sizes;
const rope = config.position === "rope";
const queryName = rope ? "rotated q" : config.qk_norm ? "normed q" : "q";
const keyName = rope ? "rotated k" : config.qk_norm ? "normed k" : "k";

/** The axes of the weights, a row per output and a column per input; those of the tensors come with the page. */
Object.assign(about.axes, {
  "qkv weight": ["P", "C"],
  "qkv bias": ["P"],
  "attention output weight": ["C", "A"],
  "attention output bias": ["C"],
  "gate weight": ["I", "C"],
  "gate bias": ["I"],
  "up weight": ["I", "C"],
  "up bias": ["I"],
  "mlp output weight": ["C", "I"],
  "mlp output bias": ["C"],
  "head weight": ["V", "C"],
  "norm 1 weight": ["C"],
  "norm 1 bias": ["C"],
  "norm 2 weight": ["C"],
  "norm 2 bias": ["C"],
  "final norm weight": ["C"],
  "final norm bias": ["C"],
  "normed q weight": ["D"],
  "normed k weight": ["D"],
  "rotary cosines": ["T", "D"],
  "rotary sines": ["T", "D"],
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
  return {
    name,
    layer,
    axes,
    shape,
    data: computeAll(rules[name], inputs, shape),
    source: rules[name].view ? "recorded" : "computed",
  };
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
