"use strict";
// How numbers are written: four significant digits everywhere, halves away from zero.

/** 0.1234, -12.35, 1235, 1.235e-7, ∞. */
function digits(x) {
  if (x === 0) return "0";
  if (Number.isNaN(x)) return "NaN";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "-∞";
  const size = Math.abs(x);
  if (size >= 1e6 || size < 1e-4) return x.toExponential(3);
  return size >= 9999.5 ? x.toFixed(0) : x.toPrecision(4);
}

/** A number inside a formula: negative ones in parentheses. */
function factor(x) {
  return x < 0 ? `(${digits(x)})` : digits(x);
}

/** 43 %, 4.3 %, 0.04 %. */
function percent(x) {
  const value = 100 * x;
  if (value === 0) return "0 %";
  if (value < 0.01) return "< 0.01 %";
  return `${value >= 99.95 ? Math.round(value) : value >= 10 ? value.toFixed(0) : value.toPrecision(2)} %`;
}

/** 1,234,567 */
function count(n) {
  return n.toLocaleString("en-US");
}

/** "1 token", "14 tokens" */
function plural(n, noun) {
  return `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
}

/** The sizes of axes: [H 4, T 14, D 32]. */
function sizesText(axes, shape) {
  return `[${axes.map((axis, i) => `${axis} ${count(shape[i])}`).join(", ")}]`;
}
