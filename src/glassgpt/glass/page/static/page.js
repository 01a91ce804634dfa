"use strict";
// Build the page; what belongs to all of it: checkpoints, theme, and the handle `glass`.

/** A slider over checkpoints, if there are several. */
function buildCheckpoints() {
  const holder = document.getElementById("checkpoints");
  holder.hidden = about.frames.length < 2;
  if (holder.hidden) return;
  const slider = document.getElementById("checkpoint");
  slider.max = slider.value = about.frames.length - 1;
  slider.addEventListener("input", () => showFrame(Number(slider.value)));
  follow(holder, [], () => {
    const step = `step ${count(frame.step)}`;
    fill("checkpoint-step", step);
    slider.value = about.frames.indexOf(frame);
    slider.setAttribute("aria-valuetext", step);
  });
}

function bindTheme() {
  const button = document.getElementById("theme");
  const show = () => button.setAttribute("aria-pressed", isDark());
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    show();
    changed("theme");
  });
  dark.addEventListener("change", () => {
    show();
    changed("theme");
  });
  show();
}

/**
 * The handle for tests and for the browser's console. Both functions return a promise.
 *
 * glass.tensor(name, layer) -> {name, layer, axes, shape, data: Float32Array, source: "recorded" | "computed"}, without the
 * batch dimension; null if it is not in the page. The names are those of recording.AXES; layer is null outside the blocks.
 * If only the logits of the last position are kept, "logits" is [1, V].
 *
 * glass.explain(name, layer, index) -> {symbol, formula, lines, terms: [{label, text, value}], value, recorded, missing}:
 * `value` is computed in the page from the terms (null if `missing` says which weight is not here), `recorded` is the
 * number of the forward pass (undefined if the tensor is computed).
 *
 * glass.select(position), glass.head(layer, head), glass.checkpoint(index) and glass.open(name, layer, index) do what the
 * user does. glass.ready resolves when the page is built.
 */
const glass = {
  about,
  tensor: getTensor,
  explain: explainCell,
  select: selectPosition,
  head: selectHead,
  checkpoint: showFrame,
  open: openInspector,
};
window.glass = glass;

glass.ready = build().catch((error) => {
  fill("expects", `This page could not be built: ${error.message}. It needs a browser of 2024 or later.`);
  throw error;
});

async function build() {
  document.documentElement.style.setProperty("--position", state.position);
  bindTheme();
  buildHeader();
  await decodeVocabulary();
  buildCheckpoints();
  follow(document.getElementById("expects"), [], showExpectation);
  buildMap();
  buildTokenBar();
  buildTokens();
  buildEmbedding();
  buildBlocks();
  follow(document.getElementById("lens"), [], buildLens);
  follow(document.getElementById("rise"), ["position"], showRise);
  buildOutput();
  buildOverview();
  bindInspector();
  await buildNextToken();
  const bar = document.querySelector(".follow");
  new ResizeObserver(() => document.documentElement.style.setProperty("--bar-height", `${bar.offsetHeight}px`)).observe(
    bar,
  );
  let resizing = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(resizing);
    resizing = requestAnimationFrame(() => changed("size"));
  });
}
