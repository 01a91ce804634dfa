"""Settings side by side, against a plain forward pass and against each setting by itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from glassgpt.config import ModelConfig
from glassgpt.errors import ConfigError
from glassgpt.glass.choices import compare_settings, usual_settings
from glassgpt.glass.choices.comparison import draw_comparison
from glassgpt.inference.decode import complete
from glassgpt.model import GPT
from glassgpt.sampling import SamplingConfig, probabilities
from glassgpt.tokenizer import CharTokenizer

CHARS = CharTokenizer(list("abcdefghijklmnopqr\n"))


@pytest.fixture(scope="module")
def model() -> GPT:
    model = GPT(ModelConfig(CHARS.vocab_size, 16, 2, 4, n_embd=32))
    model.init_weights(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)
    return model.eval()


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_the_numbers_are_those_of_a_plain_pass_and_the_texts_those_of_each_setting_alone(
    model: GPT, penalty: float
) -> None:
    ids = CHARS.encode("abcabd")
    settings = usual_settings(top_k=3, top_p=0.7, min_p=0.1, repetition_penalty=penalty)
    assert list(settings) == ["greedy", "T=0.5", "T=1", "T=1.5", "top-k 3", "top-p 0.7", "min-p 0.1"]
    found = compare_settings(model, CHARS, "abcabd", settings, candidates=8, num_samples=2, max_new_tokens=6, seed=5)
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0, -1]
    order = probabilities(logits, SamplingConfig(repetition_penalty=penalty), ids).argsort(descending=True)
    assert found.ids == order[:8].tolist() and found.tokens == ["abcdefghijklmnopqr"[i] for i in found.ids]
    for column, (sampling, texts) in enumerate(zip(settings.values(), found.continuations, strict=True)):
        expected = probabilities(logits, sampling, ids)
        got = torch.from_numpy(found.probabilities[:, column].copy())
        torch.testing.assert_close(got, expected[found.ids], atol=1e-5, rtol=1e-4)
        assert found.kept[column] == int((expected > 0).sum())
        alone = complete(model, CHARS, ["abcabd"] * 2, 6, sampling, seed=5)
        assert texts == alone
    assert found.probabilities[:, 0].tolist() == [1.0] + 7 * [0.0], "greedy"


def test_the_verb_shows_the_users_values_and_what_each_setting_writes(cli: Any, model: GPT, tmp_path: Path) -> None:
    import glassgpt

    glassgpt.save(model, CHARS, tmp_path / "model")
    options = ["--compare", "-p", "abcabd", "--seed", 2, "--num-samples", 2]
    found = json.loads(cli("sample", "model", *options, "--json", "--top-k", 4, "-n", 9)[1])
    assert list(found["settings"]) == ["greedy", "T=0.5", "T=1", "T=1.5", "top-k 4", "top-p 0.9"]
    for name in ("T=1.5", "top-k 4"):
        sampled = cli("sample", "model", *options[1:], "--json", "-n", 9, *flags(found["settings"][name]))[1]
        assert found["continuations"][name] == [row["text"] for row in json.loads(sampled)]
    code, out, err = cli("sample", "model", *options, "--candidates", 3, "-o", "bars.png")
    assert code == 0, err
    assert "after 'abcabd': probability in %" in out and "top-k 40" in out and "top-p 0.9" in out
    kept = next(line for line in out.splitlines() if line.startswith("tokens kept"))
    assert kept.split()[2:6] == ["1", "19", "19", "19"]
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def flags(sampling: dict[str, Any]) -> list[object]:
    return [word for name, value in sampling.items() for word in (f"--{name.replace('_', '-')}", value)]


def test_one_candidate_is_drawn_and_nothing_to_generate_is_refused(model: GPT, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_comparison(compare_settings(model, CHARS, [1], candidates=1, max_new_tokens=1), tmp_path / "a.svg", "$x 😀")
    assert (tmp_path / "a.svg").stat().st_size > 5000
    cold = compare_settings(model, CHARS, [1], {"cold": SamplingConfig(1e-6)}, candidates=2, max_new_tokens=1)
    assert (cold.probabilities.T.tolist(), cold.kept) == ([[1.0, 0.0]], [19]), "too unlikely is not dropped"
    with pytest.raises(ConfigError, match="at least 1"):
        compare_settings(model, CHARS, "a", max_new_tokens=0)
