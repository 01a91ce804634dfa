"use strict";
// The sections of the page, from the text to the next token; blocks are in block.js.

function fill(id, ...children) {
  document.getElementById(id).replaceChildren(...children);
}

/** The first answer: what the model expects after the prompt. */
function showExpectation() {
  const [id, probability] = [frame.top[L][T - 1][0], frame.top_probability[L][T - 1][0]];
  fill(
    "expects",
    "It expects ",
    tokenText(vocabulary[id]),
    ` next, with a probability of ${percent(probability)}. `,
    "This page shows how it gets there.",
  );
}

/** The way through the model in one line: a link to each part, with the size of what it makes. */
function buildMap() {
  const next = el("span", {});
  const stations = [
    ["text", "Text", plural([...about.text].length, "character")],
    ["text", "Tokens", plural(T, "id")],
    ["vectors", "Vectors", `${count(T)} × ${count(C)}`],
    ["layers", plural(L, "block"), "attention + MLP"],
    ["output", "Logits", `${count(T)} × ${count(sizes.V)}`],
    ["sampling", "Next token", next],
  ];
  const links = stations.map(([id, name, size]) =>
    el("li", {}, el("a", { href: `#${id}` }, el("b", {}, name), el("span", { class: "shapes" }, size))),
  );
  fill("map", ...links);
  follow(next, [], () => next.replaceChildren(tokenText(vocabulary[frame.top[L][T - 1][0]])));
}

/** Name and numbers of the model. */
function buildHeader() {
  fill("model-name", about.name);
  fill("prompt-text", el("bdi", {}, about.text || "(empty)"));
  document.getElementById("prompt-text").classList.toggle("long", about.text.length > 160);
  const facts = [
    [count(about.parameters), "parameters"],
    [count(L), L === 1 ? "block" : "blocks"],
    [count(H), H === 1 ? "head" : "heads"],
    [count(C), "channels"],
    [count(sizes.V), "tokens in the vocabulary"],
    [count(config.block_size), "tokens of context"],
  ];
  fill("facts", ...facts.map(([number, name]) => el("div", {}, el("dd", {}, number), el("dt", {}, name))));
}

/** The bar with the prompt's tokens: a radio group. The chosen token is followed through the page. */
function buildTokenBar() {
  const chips = range(0, T).map((position) =>
    el(
      "button",
      {
        type: "button",
        class: "chip",
        role: "radio",
        title: `token ${position}, id ${about.ids[position]}`,
        "aria-label": tokenLabel(position),
        onclick: () => selectPosition(position),
        onfocus: () => selectPosition(position),
        onpointerenter: (event) => event.pointerType === "mouse" && peek(position),
        onpointerleave: () => peek(null),
      },
      tokenText(tokenAt(position)),
    ),
  );
  const bar = document.getElementById("token-bar");
  bar.replaceChildren(...chips);
  bar.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: state.position - 1, ArrowRight: state.position + 1, Home: 0, End: T - 1 }[event.key];
    if (to === undefined || to < 0 || to >= T) return;
    event.preventDefault();
    chips[to].focus();
  });
  follow(bar, ["position"], () => {
    chips.forEach((chip, position) => {
      const chosen = position === state.position;
      chip.setAttribute("aria-checked", chosen);
      chip.tabIndex = chosen ? 0 : -1;
    });
    const chip = chips[state.position];
    keepInView(bar, chip.offsetLeft + chip.offsetWidth / 2);
    fill("following", `token ${state.position} (of 0–${T - 1})`);
  });
}

/** Characters above the tokens that they became, with ids below. */
function buildTokens() {
  const groups = about.tokens.map((token, position) => {
    const characters = charactersOf(position);
    return el(
      "li",
      { class: "token-group", "--index": position, onclick: () => selectPosition(position) },
      el(
        "span",
        { class: "characters", "aria-hidden": "true" },
        characters.map((character) => el("bdi", { title: codePoint(character) }, visible(character))),
      ),
      el("span", { class: "chip" }, tokenText(token)),
      el("span", { class: "id" }, `id ${about.ids[position]}`),
    );
  });
  const list = el("ol", { class: "token-groups" }, groups);
  follow(list, ["position"], () =>
    groups.forEach((group, i) => group.classList.toggle("selected", i === state.position)),
  );
  const characters = [...about.text].length;
  fill(
    "tokens",
    el("p", { class: "label" }, `${plural(characters, "character")} → ${plural(T, "token")}`),
    el("div", { class: "scroll" }, list),
  );
}

/** The characters of a token; of a token with bytes that are only a part of one, those bytes. */
function charactersOf(position) {
  const pairs = about.token_bytes[position].match(/../g) ?? [];
  try {
    const bytes = new Uint8Array(pairs.map((pair) => parseInt(pair, 16)));
    return [...new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes)];
  } catch {
    return tokenAt(position).match(/<[0-9A-F ]+>|./gu);
  }
}

function visible(character) {
  return { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍" }[character] ?? character;
}

function codePoint(character) {
  return `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

function buildEmbedding() {
  const first = `Each id selects one row of a table with ${count(sizes.V)} rows: the token embedding, ${C} learned numbers.`;
  fill(
    "embedding-text",
    rope
      ? `${first} Where a token stands is not in these numbers: positions enter later, when queries and keys are rotated.`
      : `${first} A second table has a row for each position; the two are added.`,
  );
  const names = rope ? ["token embedding"] : ["token embedding", "position embedding", "embeddings"];
  const selected = rope
    ? el("div", { class: "vector-sum" }, vectorRow("embeddings", null, { label: "token embedding" }))
    : el(
        "div",
        { class: "vector-sum" },
        vectorRow("token embedding", null),
        vectorRow("position embedding", null, { sign: "+" }),
        vectorRow("embeddings", null, { sign: "=" }),
      );
  fill(
    "embedding",
    formula(rope ? "x = E[id]" : "x = E[id] + P[t]", `→ [T ${T}, C ${C}]`),
    figures(...names.map((name) => matrixFigure(name, null))),
    el("p", { class: "label" }, "The selected token"),
    selected,
  );
}

function buildBlocks() {
  fill("blocks", ...range(0, L).map(blockElement));
  const all = (open) => () => document.querySelectorAll("details.block").forEach((block) => (block.open = open));
  fill(
    "block-tools",
    el("button", { type: "button", class: "link", onclick: all(true) }, "Expand all"),
    " ",
    el("button", { type: "button", class: "link", onclick: all(false) }, "Collapse all"),
  );
  document.getElementById("block-0").open = true;
}

/** Layers by positions: the token that each depth would predict. */
function buildLens() {
  const columns = range(0, T);
  const head = el(
    "tr",
    {},
    el("th", { scope: "col" }, "after"),
    columns.map((t) => el("th", { scope: "col" }, tokenText(tokenAt(t)))),
  );
  const rows = range(0, L + 1).map((depth) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, depth === 0 ? "embeddings" : `block ${depth - 1}`),
      columns.map((t) => {
        const probability = frame.top_probability[depth][t][0];
        const same = frame.top[depth][t][0] === frame.top[L][t][0];
        return el(
          "td",
          {
            class: same ? "final" : "",
            "--share": Math.sqrt(probability),
            title: `${percent(probability)}; the final token has rank ${frame.final_rank[depth][t]} here`,
            onclick: () => selectPosition(t),
          },
          tokenText(vocabulary[frame.top[depth][t][0]]),
        );
      }),
    ),
  );
  const table = el("table", { class: "lens-grid" }, el("thead", {}, head), el("tbody", {}, rows));
  const box = el(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "Predictions by depth and position" },
    table,
  );
  fill("lens", box);
  follow(table, ["position"], () => {
    for (const row of table.rows)
      [...row.cells].forEach((cell, i) => cell.classList.toggle("selected", i === state.position + 1));
    const cell = table.rows[0].cells[state.position + 1];
    keepInView(box, cell.offsetLeft + cell.offsetWidth / 2);
  });
}

/** How the token that is predicted in the end rises, for the selected position: probability and rank at each depth. */
function showRise() {
  const t = state.position;
  const token = tokenText(vocabulary[frame.top[L][t][0]]);
  const depths = range(0, L + 1).map((depth) => {
    const [probability, rank] = [frame.final_probability[depth][t], frame.final_rank[depth][t]];
    const name = depth === 0 ? "embeddings" : `block ${depth - 1}`;
    const label = `after ${name}: ${percent(probability)}, rank ${count(rank)}`;
    return el(
      "li",
      { title: label },
      el("span", { class: "visually-hidden" }, label),
      el("span", { class: "column", "--share": probability, "aria-hidden": "true" }),
      el("span", { class: "rank", "aria-hidden": "true" }, rank < 1000 ? `#${rank}` : "…"),
      el("span", { class: "depth", "aria-hidden": "true" }, depth === 0 ? "emb" : String(depth - 1)),
    );
  });
  fill(
    "rise",
    el(
      "p",
      { class: "label" },
      `After ${tokenLabel(t)}, the final prediction is `,
      token,
      ". Its probability and rank after each block:",
    ),
    el("div", { class: "scroll" }, el("ol", { class: "rise" }, depths)),
  );
}

function buildOutput() {
  fill(
    "final-norm",
    formula(rules["final norm"].formula),
    figures(
      matrixFigure("residual after mlp", L - 1, { caption: "residual stream" }),
      matrixFigure("final norm", null),
    ),
  );
  const holder = el("div", {});
  follow(holder, ["position"], () =>
    holder.replaceChildren(
      el("p", { class: "label" }, `After ${tokenLabel(state.position)}`),
      finalList(),
      whatCameNext(),
    ),
  );
  fill(
    "logits",
    formula(
      "logits = final norm · W_headᵀ",
      `[T ${T}, C ${C}] · [C ${C}, V ${count(sizes.V)}] → [T ${T}, V ${count(sizes.V)}]`,
    ),
    el("p", {}, el("button", { type: "button", class: "link", onclick: openLogits }, "Open all logits")),
    holder,
  );
}

/** The likeliest next tokens; each opens its logit. */
function finalList() {
  const [ids, probabilities] = [frame.top[L][state.position], frame.top_probability[L][state.position]];
  return barList(
    ids.map((id, i) => ({ text: vocabulary[id], share: probabilities[i] })),
    "Likeliest next tokens",
  );
}

/** How likely the model found the token that follows in the prompt. */
function whatCameNext() {
  const next = state.position + 1;
  if (next === T) return el("p", { class: "label" }, "Here the prompt ends: the next token is not known.");
  const [probability, rank] = [frame.next_probability[state.position], frame.next_rank[state.position]];
  return el(
    "p",
    { class: "label" },
    "In the prompt, ",
    tokenText(tokenAt(next)),
    ` comes next: ${percent(probability)}, rank ${count(rank)}; loss -ln p = ${digits(-Math.log(probability))}.`,
  );
}

async function openLogits() {
  const logits = await getTensor("logits");
  openInspector("logits", null, [Math.max(state.position - firstPosition(logits), 0), frame.top[L][state.position][0]]);
}

/** The last panel: from the logits to the next token, after the selected position if its logits are in the page. */
async function buildNextToken() {
  const row = async () => {
    const logits = await getTensor("logits");
    const kept = Math.max(state.position - firstPosition(logits), 0);
    const position = kept + firstPosition(logits);
    return {
      logits: logits.data.slice(kept * sizes.V, (kept + 1) * sizes.V),
      previousIds: about.ids.slice(0, position + 1),
      position,
    };
  };
  const panel = mountNextToken(document.getElementById("next-token"), { ...(await row()), tokens: vocabulary });
  follow(document.getElementById("sampling"), ["position"], async () => {
    const shown = await row();
    panel.show(shown);
    const only = shown.position === state.position ? "" : "Only the logits of the last token are in this page. ";
    fill("next-token-position", `${only}These follow ${tokenLabel(shown.position)}.`);
  });
}
