"""The page's sampling in JavaScript against sampling.py, in Chromium."""

import base64
import json
import math
from importlib import resources
from typing import Any

import numpy as np
import pytest
import torch
from chromium import browser, open_page  # noqa: F401

from glassgpt.sampling import SamplingConfig, probabilities, sample_inverse_cdf, stages

JUST_BELOW_ONE = math.nextafter(1.0, 0.0)  # the largest random number there is
SCRIPT = (resources.files("glassgpt.glass.page") / "static" / "sampling.js").read_text(encoding="utf-8")
SIZES = (1, 2, 3, 7, 65, 1000, 5000)
CASES = 900

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
