"""Whole pages in Chromium: every number that a page shows is the one that torch has."""

import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from chromium import browser, open_glass, open_page  # noqa: F401
from models import CONFIGS, EMOJI, HOSTILE, RIGHT_TO_LEFT, TOKENIZER, make_model
from oracles import Oracle, digits

from glassgpt.glass.inside.prompt import read_prompt, token_text
from glassgpt.glass.page.writing import glass_page
from glassgpt.recording import record
from glassgpt.sampling import SamplingConfig, next_token
from glassgpt.tokenizer import BPETokenizer
from glassgpt.weights.folder import save_model

PROMPT = "To be, or not"
everywhere = pytest.mark.parametrize("shown", CONFIGS, indirect=True)


class Shown(NamedTuple):
    html: str
    oracle: Oracle


@pytest.fixture(scope="module")
def shown(request: pytest.FixtureRequest) -> Shown:
    """The page of one of the four models, and its numbers in torch."""
    model = make_model(request.param)
    recording = record(model, read_prompt(model, TOKENIZER, PROMPT).idx(model))
    return Shown(glass_page(model, TOKENIZER, PROMPT, name=request.param).html, Oracle(model, recording))


@pytest.fixture
def page(open_glass: Any, shown: Shown) -> Any:  # noqa: F811
    page = open_glass(shown.html)
    return page


def tolerance(values: torch.Tensor) -> float:
    """How far a number that the page computed may be off: float32 rounding of what it was added up from."""
    finite = values[values.isfinite()]
    return 5e-7 * max(1.0, float(finite.abs().max())) if len(finite) else 0.0


@everywhere
def test_every_tensor_of_the_page_is_that_of_the_pass(page: Any, shown: Shown) -> None:
    check_tensors(page, shown.oracle)


def check_tensors(page: Any, oracle: Oracle) -> None:
    names = oracle.names()
    answers = page.evaluate(
        """(names) => Promise.all(names.map(async ([name, layer]) => {
          const { shape, data, source } = await glass.tensor(name, layer);
          return { shape, source, data: Array.from(data, String) };  // String keeps infinities, and every digit
        }))""",
        names,
    )
    for (name, layer), answer in zip(names, answers, strict=True):
        expected = oracle.tensor(name, layer)
        actual = torch.tensor([float(x.replace("Infinity", "inf")) for x in answer["data"]]).double()
        tolerated = 0.0 if answer["source"] == "recorded" else tolerance(expected)
        assert answer["shape"] == list(expected.shape), name
        torch.testing.assert_close(actual.view(expected.shape), expected, rtol=0, atol=tolerated, msg=f"{name} {layer}")


def random_index(generator: random.Random, shape: torch.Size) -> list[int]:
    return [generator.randrange(size) for size in shape]


def check_terms(name: str, layer: int | None, index: list[int], terms: list[float], oracle: Oracle) -> None:
    """The terms are torch's, and make the number that torch has."""
    expected, value = oracle.terms(name, layer, index), float(oracle.tensor(name, layer)[tuple(index)])
    assert terms == pytest.approx(expected, rel=1e-5, abs=1e-6), (name, layer, index)
    if name == "attention weights":
        score = oracle.terms(name, layer, index)[index[2]] if index[2] <= index[1] else 0.0
        assert score / math.fsum(terms) == pytest.approx(value, abs=1e-6)
    elif name in SUMS:
        assert math.fsum(terms) == pytest.approx(value, abs=1e-5), (name, layer, index)


SUMS = {"qkv", "q", "k", "v", "rotated q", "rotated k", "scores", "head outputs", "attention output", "gate", "up"}
SUMS |= {"mlp output", "residual after attention", "residual after mlp", "logits"}


@everywhere
def test_explanations_have_the_terms_and_the_value_of_torch(page: Any, shown: Shown) -> None:
    check_explanations(page, shown.oracle)


def check_explanations(page: Any, oracle: Oracle) -> None:
    generator = random.Random(1)
    cells = [
        (name, layer, random_index(generator, oracle.tensor(name, layer).shape))
        for name, layer in oracle.names()
        for _ in range(8)
    ]
    answers = page.evaluate(
        """(cells) => Promise.all(cells.map(async (cell) => {
          const { value, recorded, terms, missing } = await glass.explain(...cell);
          const numbers = terms.map((term) => String(term.value));
          return { missing, value: String(value), recorded: String(recorded), terms: numbers };
        }))""",
        cells,
    )
    for (name, layer, index), answer in zip(cells, answers, strict=True):
        values = oracle.tensor(name, layer)
        expected = float(values[tuple(index)])
        assert answer["missing"] == "", name
        assert number(answer["value"]) == pytest.approx(expected, abs=tolerance(values)), (name, layer, index)
        assert answer["recorded"] == "undefined" or number(answer["recorded"]) == expected, (name, layer, index)
        check_terms(name, layer, index, [number(term) for term in answer["terms"]], oracle)


def number(text: str) -> float:
    """Read a number that JavaScript or the page wrote."""
    return float(text.replace("Infinity", "inf").replace("∞", "inf"))


# Open each tensor, read the table, click one cell, and read how it is explained.
INSPECT = """
(tensors) => tensors.reduce(async (before, [name, layer, index, chosen]) => {
  const answers = await before;
  await glass.open(name, layer, index);
  const cells = Array.from(document.querySelectorAll("#inspector-table td[data-row]"));
  const numbers = cells.map((cell) => [Number(cell.dataset.row), Number(cell.dataset.column), cell.textContent]);
  const clicked = Math.floor(chosen * cells.length);
  cells[clicked].click();
  await new Promise((resolve) => setTimeout(resolve));
  const { source } = await glass.tensor(name, layer);
  const title = document.querySelector("#inspector-explanation h3").textContent;
  const terms = document.querySelectorAll("#inspector-more .terms td:last-child");
  return [...answers, { numbers, clicked, source, title, terms: Array.from(terms, (cell) => cell.textContent) }];
}, Promise.resolve([]))
"""


@everywhere
def test_the_inspector_shows_the_numbers_and_explains_the_clicked_one(page: Any, shown: Shown) -> None:
    generator = random.Random(2)
    names = shown.oracle.names()
    indexes = [random_index(generator, shown.oracle.tensor(*name).shape) for name in names]
    answers = page.evaluate(
        INSPECT, [[*name, index, generator.random()] for name, index in zip(names, indexes, strict=True)]
    )
    for (name, layer), index, answer in zip(names, indexes, answers, strict=True):
        values = shown.oracle.tensor(name, layer)
        tolerated = 0.0 if answer["source"] == "recorded" else tolerance(values)
        matrix = values[index[0]] if values.dim() == 3 else values.view(values.size(0), -1)
        for row, column, text in answer["numbers"]:
            assert shows(text, float(matrix[row, column]), tolerated), (name, layer, row, column)
        row, column, text = answer["numbers"][answer["clicked"]]
        index = [*index[: values.dim() - 2], row, column][: values.dim()]
        assert answer["title"] == f"{name}[{', '.join(map(str, index))}] = {text}"
        if len(terms := shown.oracle.terms(name, layer, index)) > 1:
            for term, shown_term in zip(terms, answer["terms"], strict=True):
                assert shows(shown_term, term, tolerance(values)), (name, layer, index)


def shows(text: str, x: float, tolerated: float) -> bool:
    """Whether a text is that number, to its four digits."""
    return text == digits(x) or abs(number(text) - x) <= tolerated + (5.1e-4 * abs(x) if tolerated else 0.0)


# All that the page shows outside the inspector, with the block (-1: none) in which it is.
READ = """
async ([position, heads]) => {
  for (const block of document.querySelectorAll("details.block")) block.open = true;
  glass.select(position);
  heads.forEach((head, layer) => glass.head(layer, head));
  const unlabelled = () => document.querySelector(".matrix:not([aria-label]), .strip:not([aria-label])");
  do await new Promise((resolve) => setTimeout(resolve, 50));
  while (unlabelled());
  const blockOf = (element) => Number(element.closest("details.block")?.id.slice("block-".length) ?? -1);
  const text = (element, part) => element.querySelector(part).textContent;
  const read = (selector, ...parts) => Array.from(document.querySelectorAll(selector), (element) =>
    [blockOf(element), ...parts.map((part) => (typeof part === "string" ? text(element, part) : part(element)))]);
  const label = (element) => (element.querySelector(".strip") ?? element).getAttribute("aria-label");
  return {
    matrices: read(".matrix", label), vectors: read(".vector", label, ".numbers", ".length"),
    mixed: read(".mixing tbody tr:not(.sum)", "th", ...[1, 2, 3].map((i) => `td:nth-of-type(${i})`)),
    predictions: read(".bars li", ".token", ".share"),
    changes: read(".meter", ".meter-name", ".meter-value"), units: read(".units .link", (link) => link.textContent),
  };
}
"""


@everywhere
def test_pictures_and_lists_show_the_numbers_of_the_pass(page: Any, shown: Shown) -> None:
    position, heads, oracle = 7, [1, 3], shown.oracle
    answer = page.evaluate(READ, [position, heads])
    checked = Counter()
    for block, label in answer["matrices"]:
        name, head, low, high = re.fullmatch(r"Open ([\w ]+?)(?:,.* (\d+))?: .* from (.*) to (.*)", label).groups()
        values = oracle.tensor(name, *layer_of(name, block, checked["matrix", name, block], oracle))
        checked["matrix", name, block] += 1
        values = values if head is None else values[int(head)]
        finite = values[values.isfinite()]
        assert shows(low, float(finite.min()), tolerance(values)) and shows(
            high, float(finite.max()), tolerance(values)
        )
        assert head is None or int(head) in (
            heads[block],
            heads[block] * oracle.config.n_kv_head // oracle.config.n_head,
        )
    for block, label, first, length in answer["vectors"]:
        name = label.removeprefix("Open ").partition(" of token")[0]
        row = oracle.tensor(name, *layer_of(name, block, checked["vector", name, block], oracle))[position]
        checked["vector", name, block] += 1
        for text, x in zip(first.removesuffix(", …").split(", "), row.tolist()[:3], strict=True):
            assert shows(text, x, tolerance(row)), label
        assert shows(length.removeprefix("‖x‖ = "), float(row.norm()), tolerance(row)), label
    for block, token, *texts in answer["mixed"]:
        for name, text in zip(("scores", "scaled scores", "attention weights"), texts, strict=True):
            row = oracle.tensor(name, block)[heads[block], position]
            tolerated = 0.0 if name == "attention weights" else tolerance(row)
            assert shows(text, float(row[int(token.split()[0])]), tolerated), (name, token)
    for block in (0, 1, -1):
        x = oracle.tensor("residual after mlp", block % 2)[position].float()
        top = oracle.model.head(oracle.model.final_norm(x)).softmax(dim=-1).sort(descending=True, stable=True)
        texts = [[token, share] for at, token, share in answer["predictions"] if at == block]
        tokens = [token_text(TOKENIZER, int(i)).replace(" ", "␣") for i in top.indices[: len(texts)]]
        assert [token for token, _ in texts] == tokens and len(texts) == 5
        assert all(share in shares(p) for (_, share), p in zip(texts, top.values.tolist(), strict=False))
    for block, name, change in answer["changes"]:
        before = oracle.tensor("residual after attention", block) if name == "MLP" else oracle.residual_before(block)
        added = oracle.tensor("mlp output" if name == "MLP" else "attention output", block)
        assert change.removeprefix("+") in shares(float(added[position].norm() / before[position].norm()))
    for block, unit in answer["units"]:
        i, _, x = unit.partition(": ")
        values = oracle.tensor("hidden", block)[position]
        assert shows(x, float(values[int(i)]), tolerance(values))
    assert len(answer["matrices"]) > 30 and len(answer["vectors"]) > 12 and len(answer["units"]) == 12


READ_PREDICTIONS = """
async (position) => {
  glass.select(position);
  await new Promise(requestAnimationFrame);
  const rows = Array.from(document.querySelectorAll(".lens-grid tbody tr"));
  const grid = rows.map((row) => Array.from(row.querySelectorAll("td"), (cell) => [cell.textContent, cell.title]));
  return { grid, rise: Array.from(document.querySelectorAll("#rise li"), (item) => item.title) };
}
"""


@everywhere
def test_the_predictions_at_every_depth_are_those_of_the_final_norm_and_the_head(page: Any, shown: Shown) -> None:
    oracle, position = shown.oracle, 5
    answer = page.evaluate(READ_PREDICTIONS, position)
    depths = torch.stack([oracle.residual_before(depth) for depth in range(oracle.config.n_layer + 1)]).float()
    probability = oracle.model.head(oracle.model.final_norm(depths)).softmax(dim=-1).detach()  # [L + 1, T, V]
    final = probability[-1].argmax(dim=-1)  # [T]
    of_final = probability.gather(-1, final.expand(len(depths), -1)[..., None])
    rank = (probability > of_final).sum(dim=-1) + 1  # [L + 1, T]
    for depth, cells in enumerate(answer["grid"]):
        for t, (token, title) in enumerate(cells):
            most, i = probability[depth, t].max(dim=-1)
            assert token == token_text(TOKENIZER, int(i)).replace(" ", "␣")
            assert title in {f"{p}; the final token has rank {rank[depth, t]} here" for p in shares(float(most))}
    for depth, text in enumerate(answer["rise"]):
        place = f"block {depth - 1}" if depth else "embeddings"
        near = shares(float(of_final[depth, position]))
        assert text in {f"after {place}: {p}, rank {rank[depth, position]}" for p in near}
    assert len(answer["rise"]) == len(answer["grid"]) == 3 and len(answer["grid"][0]) == 13


def layer_of(name: str, block: int, earlier: int, oracle: Oracle) -> list[int | None]:
    """The layer of a tensor that is shown in a block; a block begins with the residual stream of the one before."""
    if name.endswith("embedding") or name in ("embeddings", "final norm"):
        return [None]
    last = oracle.config.n_layer - 1
    return [last if block < 0 else block - 1 if name == "residual after mlp" and not earlier and block else block]


def shares(share: float) -> set[str]:
    """How the page may write a share, which it knows to some six digits."""
    near = [100 * share * (1 + change) for change in (-1e-5, 0, 1e-5)]
    return {"< 0.01 %" if x < 0.01 else f"{x:.0f} %" if x >= 10 else f"{x:#.2g}".rstrip(".") + " %" for x in near}


@pytest.mark.parametrize("shown", ["grouped queries"], indirect=True)
def test_the_pointer_shows_the_cell_under_it_and_a_click_opens_it(page: Any, shown: Shown) -> None:
    page.evaluate("glass.head(0, 3)")  # of query heads; its key/value head is 1
    generator = random.Random(3)
    for name, head in [("embeddings", []), ("k", [1]), ("rotated q", [3]), ("attention weights", [3]), ("hidden", [])]:
        values = shown.oracle.tensor(name, None if name == "embeddings" else 0)
        index = head + [generator.randrange(size) for size in values.shape[-2:]]
        button = page.locator("#block-0").get_by_role("button", name=re.compile(rf"^Open {name}[:,]"))
        button.scroll_into_view_if_needed()
        box = button.locator("canvas").bounding_box()
        y, x = ((i + 0.5) / size for i, size in zip(index[-2:], values.shape[-2:], strict=True))
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        number_shown = button.locator("xpath=..").get_by_text(f"[{', '.join(map(str, index))}] = ")
        value = float(values[tuple(index)])
        assert shows(number_shown.text_content().split(" = ")[1], value, tolerance(values)), (name, index)
        page.mouse.down()
        page.mouse.up()
        title = page.locator("#inspector-explanation h3")
        title.get_by_text(f"{name}[{', '.join(map(str, index))}] = ").wait_for()
        assert shows(title.text_content().split(" = ")[1], value, tolerance(values)), (name, index)
        page.get_by_role("button", name="Close", exact=True).click()


def check_layout(page: Any, width: int) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("prompt", [HOSTILE, EMOJI, RIGHT_TO_LEFT, "a", "", "one\ntwo"])
def test_any_text_is_shown_as_text_on_a_narrow_screen(open_glass: Any, prompt: str) -> None:  # noqa: F811
    model = make_model("QK-norm")
    page = open_glass(glass_page(model, TOKENIZER, prompt, name=HOSTILE).html, width=390)
    check_layout(page, 390)
    assert page.locator("img").count() == 0
    assert page.title() == f"{HOSTILE}: {prompt}".replace("\n", " ").rstrip()
    assert page.locator("#model-name").text_content() == HOSTILE
    shown_prompt = page.locator("#prompt-text").text_content()
    assert shown_prompt == (prompt or "(empty)")
    T = max(len(prompt), 1)
    assert page.locator("#token-bar [role=radio]").count() == T
    page.evaluate("(cell) => glass.open(...cell)", ["attention weights", 1, [0, T - 1, 0]])
    assert page.locator("#inspector-table tbody tr").count() == T
    check_layout(page, 390)


def test_bytes_of_a_character_that_is_split_are_shown_in_hexadecimal(open_glass: Any) -> None:  # noqa: F811
    tokenizer = BPETokenizer.train("ab ab", 258, special=("<|endoftext|>",), processes=1)
    model = make_model("learned positions", vocab_size=tokenizer.vocab_size)
    page = open_glass(glass_page(model, tokenizer, "é🙂").html, width=390)
    assert page.locator("#token-bar [role=radio]").all_text_contents() == [f"<{b:02X}>" for b in "é🙂".encode()]


def test_a_page_without_room_for_everything_says_what_is_missing(open_glass: Any) -> None:  # noqa: F811
    model = make_model("grouped queries", n_embd=32, intermediate_size=8192, vocab_size=12_000)
    made = glass_page(model, TOKENIZER, PROMPT, limit=600_000)
    assert len(made.html) <= 600_000
    assert {"gate of block 1", "up of block 1", "logits", "head weight"} <= set(made.not_kept)
    page = open_glass(made.html)
    page.locator("#block-1 summary").first.click()
    page.locator("#block-1 .missing").first.wait_for()
    missing = " ".join(page.locator("#block-1 .missing").all_text_contents())
    assert "gate of block 1 is not in this page" in missing and "hidden of block 1 is not in this page" in missing
    recording = record(model, read_prompt(model, TOKENIZER, PROMPT).idx(model))
    for cell, index, absent in [(["logits", None, [0, 5]], [0, 12, 5], "head weight, 12,000 × 32,"),
                                (["mlp output", 1, [3, 2]], [0, 3, 2], "hidden of block 1")]:  # fmt: skip
        page.evaluate("(cell) => glass.open(...cell)", cell)
        value = float(recording.get(*cell[:2])[tuple(index)])
        assert page.locator("#inspector-explanation h3").text_content().endswith(f"] = {digits(value)}")
        assert f"{absent} is not in this page" in page.locator("#inspector-explanation .missing").text_content()
    page.evaluate("glass.select(3)")
    page.get_by_text("Only the logits of the last token are in this page. These follow token 12").wait_for(
        state="attached"
    )
    chosen = next_token(recording.logits[0, -1], SamplingConfig(), torch.tensor(0.5, dtype=torch.float64))
    assert f"(id {int(chosen):,})" in page.locator(".nt-sentence").text_content()


def test_the_slider_over_checkpoints_shows_the_numbers_of_each(open_glass: Any, tmp_path: Path) -> None:  # noqa: F811
    models = [make_model("learned positions", seed) for seed in (0, 1)]
    for step, model in enumerate(models):
        (tmp_path / str(step)).mkdir()
        save_model(tmp_path / str(step), model, TOKENIZER)
    checkpoints = {100 * step: tmp_path / str(step) for step in (0, 1)}
    page = open_glass(glass_page(models[1], TOKENIZER, PROMPT, checkpoints=checkpoints).html)
    page.get_by_label("Temperature, as a number").fill("0.5")
    page.get_by_label("Checkpoint").focus()
    for step, key in [(1, "End"), (0, "Home"), (1, "ArrowRight")]:
        page.keyboard.press(key)
        page.get_by_text(f"step {100 * step}", exact=True).wait_for()
        page.locator(".nt-strip").wait_for(state="attached")
        logits = record(models[step], read_prompt(models[step], TOKENIZER, PROMPT).idx(models[step])).logits[0]
        for position in (12, 5):
            chosen = next_token(logits[position], SamplingConfig(temperature=0.5), torch.tensor(0.5).double())
            page.evaluate("glass.select", position)
            page.evaluate("glass.open('logits', null, [3, 7])")
            title = f"logits[3, 7] = {digits(float(logits[3, 7]))}"
            page.locator("#inspector-explanation h3").get_by_text(title, exact=True).wait_for()
            page.keyboard.press("Escape")
            page.get_by_text(re.compile(rf"^u = 0.5 falls on .* \(id {int(chosen)}\)")).first.wait_for(state="attached")
        page.get_by_label("Checkpoint").focus()
    assert page.get_by_label("Temperature, as a number").input_value() == "0.5"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_models_of_any_shape_are_shown_and_explained(open_glass: Any, seed: int) -> None:  # noqa: F811
    generator = random.Random(seed)
    choose = generator.choice
    model = make_model(choose([*CONFIGS]), seed, **random_shape(choose))
    prompt = "".join(generator.choices("To be, or not?", k=choose([1, 2, 5, 20])))
    recording = record(model, read_prompt(model, TOKENIZER, prompt).idx(model))
    page = open_glass(glass_page(model, TOKENIZER, prompt).html, width=choose([390, 1024]))
    check_tensors(page, Oracle(model, recording))
    check_explanations(page, Oracle(model, recording))


def random_shape(choose: Any) -> dict[str, Any]:
    """Changes of a configuration: sizes, biases, windows, activations, tied weights."""
    heads, rotary, window = choose([1, 2, 6]), choose([True, False]), choose([0, 1, 4])
    linear = {"rope_scaling": "linear", "rope_factor": 2.0}
    scaling = choose([{}, linear, {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_context": 8}])
    norm = choose(["layernorm", "rmsnorm"])
    biases = {f"{name}_bias": choose([True, False]) for name in ("qkv", "attention_out", "mlp")}
    return biases | {
        "n_layer": choose([1, 3]), "n_head": heads, "n_kv_head": choose([1, heads]), "n_embd": choose([4, 12, 18]),
        "head_dim": choose([2, 8]), "intermediate_size": choose([1, 7, 40]),
        "mlp": choose(["gelu", "gelu_tanh", "swiglu"]), "qk_norm": choose([True, False]),
        "norm": norm, "norm_bias": norm == "layernorm" and choose([True, False]),
        "position": "rope" if rotary else "learned", "sliding_window": window,
        "first_window_layer": choose([0, 1]) if window else 0,
        "tie_embeddings": choose([True, False]), **(scaling if rotary else {}),
    }  # fmt: skip
