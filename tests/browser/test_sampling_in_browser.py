"""The page's sampling in JavaScript, and its panel of the next token, against sampling.py, in Chromium."""

import base64
import dataclasses
import json
import math
from importlib import resources
from typing import Any

import numpy as np
import pytest
import torch
from chromium import browser, open_page  # noqa: F401
from models import TOKENIZER, make_model

from glassgpt.glass.inside.prompt import read_prompt, token_text
from glassgpt.glass.page.writing import glass_page
from glassgpt.recording import record
from glassgpt.sampling import SamplingConfig, next_token, probabilities, sample_inverse_cdf, stages

JUST_BELOW_ONE = math.nextafter(1.0, 0.0)  # the largest random number there is
SCRIPT = (resources.files("glassgpt.glass.page") / "static" / "sampling.js").read_text(encoding="utf-8")
SIZES = (1, 2, 3, 7, 65, 1000, 5000)
CASES = 600

# [{logits, settings, previous, uniforms}] -> [{kept: [5 x V], probability: [V], chosen}], arrays as base64.
EVALUATE = """
(cases) => {
  const numbers = (text) => new Float64Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const text = (array) => btoa(Array.from(new Uint8Array(array.buffer), (b) => String.fromCharCode(b)).join(""));
  return JSON.stringify(JSON.parse(cases).map(({ logits, settings, previous, uniforms }) => {
    const stages = Sampling.stages(numbers(logits), settings, previous);
    const probability = Sampling.probabilities(numbers(logits), settings, previous);
    const cumulative = Sampling.cumulate(probability);
    const chosen = uniforms.map((u) => Sampling.choose(cumulative, u));
    const kept = stages.map((stage) => text(Uint8Array.from(stage, (x) => x > -Infinity)));
    return { kept, probability: text(probability), chosen };
  }));
}
"""


def random_logits(generator: np.random.Generator, V: int) -> np.ndarray:
    """Logits as models have them; with ties; of tokens that are never sampled; so small that the shift makes ties."""
    logits = generator.normal(size=V) * generator.choice([0.01, 1.0, 5.0, 40.0])
    kind = generator.integers(7)
    if kind == 0:
        logits = logits.round()
    elif kind == 1:
        logits[generator.random(V) < 0.4] = -np.inf
        logits[generator.integers(V)] = 3.0
    elif kind == 2:
        logits = np.zeros(V)
    elif kind == 3:
        logits = np.where(generator.random(V) < 0.5, logits, logits * 1e-30)
    elif kind == 4:
        logits = logits.astype(np.float32).astype(np.float64)
    elif kind == 5:
        logits = np.log(generator.integers(1, 9, size=V))  # probabilities that lie on the limits, but for rounding
    return logits


def random_settings(generator: np.random.Generator, V: int) -> SamplingConfig:
    return SamplingConfig(
        temperature=float(
            generator.choice([0.0, 1e-300, 1e-3, 0.3, 0.7, 1.0, 1.0, 1.0, 1.7, 5.0, generator.uniform(0, 2)])
        ),
        top_k=int(generator.choice([0, 0, 1, 2, (V + 1) // 2, V, V + 5])),
        top_p=float(generator.choice([1.0, 1.0, 0.95, 0.8, 0.5, 0.3, 1e-15, generator.uniform(1e-3, 1)])),
        min_p=float(generator.choice([0.0, 0.0, 0.02, 0.125, 0.25, 0.5, 1.0, generator.random()])),
        repetition_penalty=float(generator.choice([1.0, 1.3, 0.7, 5.0])),
    )


def packed(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


@pytest.mark.parametrize("seed", range(3))
def test_the_page_samples_what_sampling_py_samples(open_page: Any, seed: int) -> None:  # noqa: F811
    generator = np.random.default_rng(seed)
    cases = []
    for number in range(CASES // 3):
        V = SIZES[number % len(SIZES)]
        previous = generator.integers(V, size=generator.integers(5)).tolist()
        uniforms = [0.0, *generator.random(6).tolist(), JUST_BELOW_ONE]
        cases.append((random_logits(generator, V), random_settings(generator, V), previous, uniforms))
    # a token on the limit of min-p, but for rounding
    cases.extend(
        (np.log(np.arange(1.0, 41.0)), SamplingConfig(min_p=share / 40), [], [0.0, JUST_BELOW_ONE])
        for share in range(1, 41)
    )
    page = open_page("<title>sampling</title>")
    page.add_script_tag(content=SCRIPT)
    sent = [{"logits": packed(x), "settings": in_javascript(s), "previous": p, "uniforms": u} for x, s, p, u in cases]
    answers = json.loads(page.evaluate(EVALUATE, json.dumps(sent)))
    for (logits, sampling, previous, uniforms), answer in zip(cases, answers, strict=True):
        row = torch.from_numpy(logits)
        for stage, kept in zip(stages(row, sampling, previous), answer["kept"], strict=True):
            assert base64.b64decode(kept) == (stage > -math.inf).numpy().tobytes(), sampling
        expected = probabilities(row, sampling, previous)
        actual = torch.frombuffer(bytearray(base64.b64decode(answer["probability"])), dtype=torch.float64)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
        chosen = [int(sample_inverse_cdf(expected, torch.tensor(u, dtype=torch.float64))) for u in uniforms]
        assert answer["chosen"][:-1] == chosen[:-1], sampling
        between = sorted((answer["chosen"][-1], chosen[-1]))  # the last tokens may differ by rounding of their sum
        assert expected[between[0] + 1 : between[1] + 1].sum() <= 1e-12 and expected[between].all(), sampling


def in_javascript(sampling: SamplingConfig) -> dict[str, float]:
    return {
        "temperature": sampling.temperature,
        "topK": sampling.top_k,
        "topP": sampling.top_p,
        "minP": sampling.min_p,
        "repetitionPenalty": sampling.repetition_penalty,
    }


# What the panel shows: the lines of its chart, its table, what each stage cuts, and the token that is chosen.
READ_PANEL = """
async () => {
  await new Promise(requestAnimationFrame);
  const texts = (elements) => Array.from(elements, (element) => element.textContent);
  const lines = Array.from(document.querySelectorAll(".nt-chart .nt-line:not([hidden])"));
  return {
    chart: lines.map((line) => texts(line.querySelectorAll(".nt-token, .nt-value"))),
    table: Array.from(document.querySelectorAll(".nt-table tbody tr"), (row) => texts(row.cells)),
    notes: texts(document.querySelectorAll(".nt-control:not(.nt-model) .nt-note")),
    sentence: document.querySelector(".nt-sentence").textContent,
    chosen: texts(document.querySelectorAll(".nt-line.nt-chosen:not([hidden]) .nt-token")),
  };
}
"""
STAGES = ["repetition penalty", "temperature", "top-k", "top-p", "min-p"]
MOVES = [
    ("Temperature", 0.7, {"temperature": 0.7}),
    ("Repetition penalty", 1.3, {"repetition_penalty": 1.3}),
    ("Top-k", 40, {"top_k": 40}),
    ("Top-p", 0.9, {"top_p": 0.9}),
    ("Min-p", 0.05, {"min_p": 0.05}),
    ("Temperature", 0, {"temperature": 0.0}),
]


def percent(probability: float) -> str:
    """Write a probability as the panel does."""
    x = 100 * probability
    if 0 < x < 0.001:
        return "<0.001\u00a0%"
    return f"{x:.{1 if x >= 10 else 2 if x >= 1 or x == 0 else 3}f}\u00a0%"


def test_the_panel_shows_the_probabilities_and_cuts_of_sampling_py(open_page: Any) -> None:  # noqa: F811
    model, prompt = make_model("sliding window"), "To be, or not"
    ids = read_prompt(model, TOKENIZER, prompt).ids
    recorded = record(model, torch.tensor([ids])).logits[0]
    page = open_page(glass_page(model, TOKENIZER, prompt).html)
    page.get_by_text("These numbers as a table").click()
    sampling, generator = SamplingConfig(), np.random.default_rng(0)
    for label, value, change in MOVES:
        sampling = dataclasses.replace(sampling, **change)
        position, uniform = int(generator.integers(len(ids))), round(float(generator.random()), 6)
        page.evaluate("glass.select", position)
        page.get_by_label(f"{label}, as a number").fill(str(value))
        page.get_by_label("Random number u, as a number").fill(str(uniform))
        shown = page.evaluate(READ_PANEL)
        check_panel(shown, recorded[position], sampling, ids[: position + 1])
        chosen = int(next_token(recorded[position], sampling, torch.tensor(uniform).double(), ids[: position + 1]))
        assert f"(id {chosen})" in shown["sentence"] and shown["chosen"] == [visible(chosen)]
    assert page.get_by_label("Temperature", exact=True).input_value() == "0"


def visible(token: int) -> str:
    return token_text(TOKENIZER, token).replace(" ", "␣")


def check_panel(shown: Any, logits: torch.Tensor, sampling: SamplingConfig, previous: list[int]) -> None:
    """The panel shows these logits after every stage of these settings."""
    after = [logits.double(), *stages(logits, sampling, previous)]
    probability = torch.stack([stage.softmax(dim=-1) for stage in after])  # [6, V]
    never = torch.stack([stage == -math.inf for stage in after])  # [6, V]
    most_likely = after[1].sort(descending=True, stable=True).indices[:16].tolist()
    tokens = [int(cells[1].replace(",", "")) for cells in shown["table"]]
    assert tokens[:16] == most_likely
    for token, cells, line in zip(tokens, shown["table"], shown["chart"], strict=False):
        cut = int(never[:, token].int().argmax()) if never[-1, token] else 6  # the stage that cuts it; 6: none
        numbers = [percent(float(p)) for p in probability[:cut, token]]
        assert cells == [visible(token), f"{token}", f"{logits[token]:.4f}", *numbers, *["cut"] * (6 - cut)]
        reason = [*["cut", "", "", "", ""][: 5 - cut], f"cut by {STAGES[cut - 1]}"] if cut < 6 else []
        assert line == [visible(token), *numbers, *reason]
    others = (1 - probability[:, tokens].sum(dim=-1)).clamp(min=0)
    name, *masses = shown["chart"][-1]
    assert name == f"{logits.numel() - len(tokens)} others"
    assert masses == [percent(float(mass) if mass > 1e-12 else 0.0) for mass in others]
    for stage, note in enumerate(shown["notes"], start=1):
        cuts = never[stage] & ~never[stage - 1]
        mass = percent(float(probability[stage - 1, cuts].sum()))
        if cuts.any():
            assert f"cuts {int(cuts.sum())} token" in note and f"with {mass} of the probability" in note
