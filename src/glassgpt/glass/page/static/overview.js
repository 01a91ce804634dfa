"use strict";
// The list of parts beside the page, with the prediction after each block; the part that is read is marked.

/** The overview: a link to every part, with the prediction of each block. */
function buildOverview() {
  const parts = [
    ["text", "Text and tokens"],
    ["vectors", "Embeddings"],
  ];
  const links = parts.map(([id, name]) => el("li", {}, el("a", { href: `#${id}` }, name)));
  const blocks = range(0, L).map((layer) => {
    const token = el("span", { class: "lens" });
    const item = el(
      "li",
      { class: "block-link" },
      el(
        "a",
        { href: `#block-${layer}`, onclick: () => (document.getElementById(`block-${layer}`).open = true) },
        el("span", {}, `Block ${layer}`),
        token,
      ),
    );
    follow(item, ["position"], () => {
      token.replaceChildren(tokenText(vocabulary[frame.top[layer + 1][state.position][0]]));
      item.style.setProperty("--share", Math.sqrt(frame.top_probability[layer + 1][state.position][0]));
    });
    return item;
  });
  const last = [
    ["forming", "The prediction forms"],
    ["output", "Logits"],
    ["sampling", "Next token"],
  ].map(([id, name]) => el("li", {}, el("a", { href: `#${id}` }, name)));
  fill("overview-list", ...links, ...blocks, ...last);
  bindOverview();
}

/** Mark the part of the page that is read in the overview. */
function bindOverview() {
  const links = [...document.querySelectorAll(".overview a")];
  const targets = links.map((link) => document.getElementById(link.hash.slice(1)));
  const mark = () => {
    const middle = innerHeight / 3;
    let current = 0;
    targets.forEach((target, i) => {
      if (target.getBoundingClientRect().top < middle) current = i;
    });
    links.forEach((link, i) =>
      i === current ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current"),
    );
    const nav = document.querySelector(".overview");
    const y = links[current].offsetTop;
    if (y < nav.scrollTop + 20 || y > nav.scrollTop + nav.clientHeight - 40) nav.scrollTop = y - nav.clientHeight / 2;
    const strip = document.getElementById("overview-list");
    const x = links[current].offsetLeft;
    if (x < strip.scrollLeft || x > strip.scrollLeft + strip.clientWidth - 80) strip.scrollLeft = x - 40;
  };
  let waiting = false;
  document.onscroll = () => {
    if (!waiting) requestAnimationFrame(() => ((waiting = false), mark()));
    waiting = true;
  };
  mark();
}
