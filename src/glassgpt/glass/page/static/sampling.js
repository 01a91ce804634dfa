"use strict";
// From logits to the next token: what glassgpt/sampling.py computes, in the same order and in float64.
// Pure functions of arrays of numbers [V]; a token that was cut has the logit -Infinity.

const Sampling = (() => {
  const EPS = Number.EPSILON; // 2**-52, that of float64
  const TINY = 2 ** -1022; // the smallest normal float64
  const STAGES = ["repetition penalty", "temperature", "top-k", "top-p", "min-p"];
  // Settings with which the model's own distribution does not change.
  const NEUTRAL = { repetitionPenalty: 1, temperature: 1, topK: 0, topP: 1, minP: 0 };

  // Plain loops where every token is visited: array methods with a function are five times slower.
  function greatest(values) {
    let peak = -Infinity;
    for (let i = 0; i < values.length; i++) if (values[i] > peak) peak = values[i];
    return peak;
  }

  // Ids from the largest logit to the smallest; equal logits by id.
  function sortedIds(logits) {
    const ids = new Uint32Array(logits.length);
    for (let i = 0; i < ids.length; i++) ids[i] = i;
    return ids.sort((a, b) => logits[b] - logits[a] || a - b);
  }

  // Ids in the same order, after a change of the logits that made some equal but turned none around.
  function orderTies(order, logits) {
    const ids = order.slice();
    for (let start = 0, i = 1; i <= ids.length; i++) {
      if (i < ids.length && logits[ids[i]] === logits[ids[start]]) continue;
      if (i - start > 1 && logits[ids[start]] > -Infinity) ids.subarray(start, i).sort();
      start = i;
    }
    return ids;
  }

  function softmax(logits) {
    const peak = greatest(logits);
    const probability = new Float64Array(logits.length);
    let total = 0;
    for (let i = 0; i < logits.length; i++) total += probability[i] = Math.exp(logits[i] - peak);
    for (let i = 0; i < logits.length; i++) probability[i] /= total;
    return probability;
  }

  // Divide positive logits of previous tokens by the penalty and multiply negative ones by it, once per token.
  function penalizeRepetition(logits, previousIds, penalty) {
    const penalized = new Float64Array(logits);
    if (penalty === 1) return penalized;
    for (const i of previousIds) penalized[i] = logits[i] > 0 ? logits[i] / penalty : logits[i] * penalty;
    return penalized;
  }

  // Divide by the temperature, after shifting the maximum to 0; temperature 0 keeps the first maximum only.
  function applyTemperature(logits, temperature) {
    const peak = greatest(logits);
    const scaled = new Float64Array(logits.length).fill(-Infinity);
    if (temperature === 0) scaled[logits.indexOf(peak)] = 0;
    else for (let i = 0; i < logits.length; i++) scaled[i] = (logits[i] - peak) / temperature;
    return scaled;
  }

  // Keep the k largest; among equal ones, the lowest ids. 0 keeps every token.
  function keepTopK(logits, k, order = sortedIds(logits)) {
    if (k <= 0 || k >= logits.length) return logits;
    const kept = logits.slice();
    for (let rank = k; rank < order.length; rank++) kept[order[rank]] = -Infinity;
    return kept;
  }

  // Keep the fewest most likely tokens whose probabilities sum to p. A sum that is below p by less than rounding can
  // cause counts as p.
  function keepTopP(logits, p, order = sortedIds(logits)) {
    if (p >= 1) return logits;
    const probability = softmax(logits);
    const enough = Math.max(p - (logits.length + 16) * EPS, TINY); // above 0 the first is kept
    const kept = logits.slice();
    let sum = 0;
    for (let rank = 0; rank < order.length; rank++) {
      const i = order[rank];
      sum += probability[i];
      if (sum - probability[i] >= enough) kept[i] = -Infinity;
    }
    return kept;
  }

  // Keep the tokens that are at least p times as likely as the most likely one, but for rounding.
  function keepMinP(logits, p) {
    if (p <= 0) return logits;
    const probability = softmax(logits);
    const least = p * greatest(probability) * (1 - 16 * EPS);
    const kept = logits.slice();
    for (let i = 0; i < kept.length; i++) if (probability[i] < least) kept[i] = -Infinity;
    return kept;
  }

  // The logits after each of STAGES. `order`, if it is known: sortedIds of the penalized logits.
  function stages(logits, settings, previousIds = [], order = null) {
    const penalized = penalizeRepetition(logits, previousIds, settings.repetitionPenalty);
    const scaled = applyTemperature(penalized, settings.temperature);
    const ids = orderTies(order ?? sortedIds(penalized), scaled);
    const topK = keepTopK(scaled, settings.topK, ids);
    const topP = keepTopP(topK, settings.topP, ids);
    return [penalized, scaled, topK, topP, keepMinP(topP, settings.minP)];
  }

  // The distribution that is sampled from.
  function probabilities(logits, settings, previousIds = []) {
    return softmax(stages(logits, settings, previousIds).at(-1));
  }

  // Sums of the probabilities of the tokens 0 to i, in the order of their ids.
  function cumulate(probability) {
    let sum = 0;
    return probability.map((x) => (sum += x));
  }

  // The first token whose cumulative probability exceeds the random number u in [0, 1).
  function choose(cumulative, u) {
    const threshold = u * cumulative.at(-1); // the sum may miss 1 by rounding
    let [low, high] = [0, cumulative.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (cumulative[middle] > threshold) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  return {
    STAGES, NEUTRAL, sortedIds, softmax, penalizeRepetition, applyTemperature, keepTopK, keepTopP, keepMinP, stages,
    probabilities, cumulate, choose,
  };
})();
