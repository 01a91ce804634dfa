"use strict";
// The arithmetic of the model, one number at a time. The page computes tensors with these functions, and the same
// functions explain a cell. Sums are taken in float64; tensors are rounded to float32, as the model has them.

/** Σ x[i] y[i] over n numbers, from these offsets. */
function dot(x, xFrom, y, yFrom, n) {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += x[xFrom + i] * y[yFrom + i];
  return sum;
}

/** Mean and variance of n numbers. LayerNorm divides by n, not by n - 1. */
function moments(x, from, n) {
  let mean = 0;
  for (let i = 0; i < n; i++) mean += x[from + i] / n;
  let variance = 0;
  for (let i = 0; i < n; i++) variance += (x[from + i] - mean) ** 2 / n;
  return { mean, variance };
}

/** The root of the mean square of n numbers, with epsilon. */
function rms(x, from, n, eps) {
  return Math.sqrt(dot(x, from, x, from, n) / n + eps);
}

function silu(x) {
  return x / (1 + Math.exp(-x));
}

/** GELU as GPT-2 has it, by a tanh. */
function geluTanh(x) {
  return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
}

function gelu(x) {
  return 0.5 * x * (1 + erf(x / Math.SQRT2));
}

/** The error function, by the series 2/√π e^(-x²) Σ 2ⁿ x^(2n+1) / (2n+1)!!, whose terms all have one sign. */
function erf(x) {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x;
  let sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= (2 * x * x) / (2 * n + 1);
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

/** Rotate channel i of n numbers with its partner, half the channels away. */
function rotated(x, from, i, n, cos, sin) {
  const half = n / 2;
  const partner = i < half ? -x[from + i + half] : x[from + i - half];
  return Math.fround(Math.fround(x[from + i] * cos) + Math.fround(partner * sin));
}

/** The largest of n numbers, and Σ exp(x - largest). */
function softmaxParts(x, from, n) {
  let largest = -Infinity;
  for (let i = 0; i < n; i++) largest = Math.max(largest, x[from + i]);
  let sum = 0;
  for (let i = 0; i < n; i++) sum += Math.exp(x[from + i] - largest);
  return { largest, sum };
}

/** Whether the token at position t may attend to the one at position s. A window counts t itself. */
function attends(t, s, window) {
  return s <= t && (window === 0 || s > t - window);
}
