"use strict";
// Matrices as pictures. Values: blue below 0, orange above, the page's own colour at 0. Weights: one colour from 0 to 1.

const dark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : dark.matches;
}

/** Colours at -1, 0 and 1, and of a weight of 1; dark pages have a dark middle. */
function palette() {
  return isDark()
    ? { low: [95, 170, 255], zero: [28, 32, 40], high: [255, 160, 70], weight: [80, 225, 195], none: [21, 24, 30] }
    : { low: [26, 98, 184], zero: [250, 249, 246], high: [198, 92, 8], weight: [0, 104, 92], none: [236, 234, 228] };
}

function mix(a, b, share) {
  return a.map((x, i) => Math.round(x + (b[i] - x) * share));
}

/** The colour [r, g, b] of a value; `limit` is the value of full colour. */
function colour(x, limit, kind, colours = palette()) {
  if (!Number.isFinite(x)) return colours.none;
  if (kind === "weight") return mix(colours.zero, colours.weight, Math.min(Math.max(x, 0), 1) ** 0.4);
  const share = Math.min(Math.abs(x) / limit, 1) ** 0.75;
  return mix(colours.zero, x < 0 ? colours.low : colours.high, share);
}

/** The value of full colour: 98 % of all sizes are below it, so that one outlier does not hide the others. */
function colourLimit(data) {
  const stride = Math.max(1, Math.floor(data.length / 4000));
  const all = [];
  for (let i = 0; i < data.length; i += stride) if (Number.isFinite(data[i])) all.push(Math.abs(data[i]));
  all.sort((a, b) => a - b);
  return all[Math.floor(0.98 * (all.length - 1))] || all.at(-1) || 1;
}

/** Draw rows x columns numbers, a pixel each; CSS makes the pixels larger. */
function drawMatrix(canvas, data, from, rows, columns, limit, kind) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const colours = palette();
  for (let i = 0; i < rows * columns; i++) {
    const [r, g, b] = colour(data[from + i], limit, kind, colours);
    image.data.set([r, g, b, 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
}

/** Whether a tensor is drawn as weights between 0 and 1. */
function kindOf(name) {
  return name === "attention weights" ? "weight" : "value";
}
