"use strict";
// How a number was made: its rule with the numbers put in.

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
  const missing = Object.keys(parts).filter(
    (part) => inputs[part] === null && !(part === "bias" && !hasBias(parts[part])),
  );
  const rows = rule.rows?.(index, tensor) ?? {};
  const links = Object.entries(parts)
    .filter(([part]) => inputs[part] !== null)
    .map(([part, [from, of]]) => ({ name: from, layer: of, index: rows[part] }));
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
  const first = terms
    .slice(0, shown)
    .map((term) => term.text)
    .join(" + ");
  return rest > 0 ? `${first} + … (${plural(rest, "more term")})` : first;
}

function product(label, a, b) {
  return { label, text: `${factor(a)}·${factor(b)}`, value: a * b };
}
