"""The score of a text, against full forward passes in float64, `loss.evaluate`, and the loss of `transformers`."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import published_models
from conftest import load_model
from glassgpt import inside
from glassgpt.config import ModelConfig
from glassgpt.config.presets import MODERN
from glassgpt.errors import ConfigError, GenerationError, TokenizerError
from glassgpt.glass.inside.pictures.score import draw_score
from glassgpt.loss import evaluate
from glassgpt.model import GPT
from glassgpt.tokenizer import BPETokenizer, CharTokenizer, WordTokenizer

ALPHABET = "abcdefghijklmnopqr\n"
CHARS = CharTokenizer(list(ALPHABET))
T = 8
CLASSIC = ModelConfig(vocab_size=len(ALPHABET) + 2, block_size=T, n_layer=2, n_head=4, n_embd=32)
CONFIGS = {
    "learned positions, padded vocabulary": CLASSIC,
    "grouped queries, QK-norm": dataclasses.replace(CLASSIC, **{**MODERN, "n_kv_head": 2}),
    "sliding window": dataclasses.replace(CLASSIC, **{**MODERN, "sliding_window": 3}),
}
TEXT = "".join(ALPHABET[i] for i in np.random.default_rng(0).integers(0, len(ALPHABET), 45))


def build(config: ModelConfig) -> GPT:
    """A model that is far from uniform."""
    model = GPT(config)
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.data = 1 + 0.2 * noise if "norm" in name and name.endswith("weight") else 0.4 * noise
    model.tie_weights_and_build_rope()
    return model.eval()


def start_of_window(target: int, stride: int) -> int:
    """The start of the first window of T tokens that predicts a target; the windows start at 0, stride, 2 stride..."""
    return next(start for start in range(0, 10**6, stride) if target <= start + T)


@pytest.mark.parametrize(("kind", "stride"), list(zip(CONFIGS, (1, 3, 4), strict=True)))
def test_each_token_is_predicted_once_from_its_window_as_a_full_forward_pass_in_float64_does(
    kind: str, stride: int
) -> None:
    model = build(CONFIGS[kind])
    scored = inside.score(model, CHARS, TEXT, stride=stride)
    model.double()
    starts = set()
    for target in range(1, len(TEXT)):
        starts.add(start := start_of_window(target, stride))
        with torch.no_grad():
            logits = model(torch.tensor([scored.ids[start:target]]))[0, -1]
        before = target - start
        assert before >= min(target, T - stride + 1), "enough context"
        surprise = -logits.log_softmax(-1)
        assert scored.nats[target] == pytest.approx(float(surprise[scored.ids[target]]), abs=2e-5)
        assert scored.ranks[target] == 1 + int((surprise < surprise[scored.ids[target]]).sum())
        assert scored.expected[target] == int(logits.argmax())
        assert scored.expected_probability[target] == pytest.approx(float(logits.softmax(-1).max()), abs=2e-5)
    assert scored.windows == len(starts)
    assert math.isnan(scored.nats[0]) and scored.ranks[0] == 0 and scored.expected[0] == -1
    assert scored.loss == pytest.approx(np.nanmean(scored.nats), abs=1e-12)
    assert scored.worst(3) == sorted(range(1, len(TEXT)), key=lambda i: -scored.nats[i])[:3]


def test_the_stride_is_half_a_context_by_default_and_a_full_one_gives_the_loss_of_evaluate() -> None:
    model = build(CLASSIC)
    assert dataclasses.astuple(inside.score(model, CHARS, TEXT))[6:] == dataclasses.astuple(
        inside.score(model, CHARS, TEXT, stride=T // 2)
    )[6:]  # fmt: skip
    for length in (2, 7, 8, 9, 10, 17, 45):
        scored = inside.score(model, CHARS, TEXT[:length], stride=T)
        ids = np.array(CHARS.encode(TEXT[:length]))
        evaluated = evaluate(model, ids, T, torch.device("cpu"))
        assert scored.loss == pytest.approx(evaluated.loss, abs=1e-6)
        assert len(scored.ids) - 1 == evaluated.tokens == length - 1


def test_the_loss_is_that_of_transformers_on_the_same_weights(tmp_path: Path) -> None:
    theirs, ours = published_models.make("Mistral", tmp_path)
    ids = torch.tensor([published_models.TOKENIZER.encode(TEXT.replace("\n", " "))])
    with torch.no_grad():
        expected = float(theirs(ids, labels=ids).loss)
    scored = inside.score(ours, published_models.TOKENIZER, TEXT.replace("\n", " "))
    assert expected > 3 and scored.loss == pytest.approx(expected, abs=1e-5)


def test_bits_per_byte_count_the_bytes_of_the_predicted_tokens(prose: str) -> None:
    tokenizer = BPETokenizer.train(prose, 300, processes=1)
    model = build(dataclasses.replace(CLASSIC, vocab_size=300))
    text = "é naïve — King 😀"
    scored = inside.score(model, tokenizer, text)
    size = sum(len(tokenizer.token_bytes(i)) for i in scored.ids[1:])
    assert scored.bytes == size == len(text.encode()) - len(tokenizer.token_bytes(scored.ids[0]))
    assert scored.bits_per_byte == pytest.approx(scored.bits[1:].sum() / size)
    tokenizer.bos_token_id, tokenizer.published = 256, dataclasses.replace(
        tokenizer.published, tokenizer_config={"add_bos_token": True}
    )  # fmt: skip
    after_bos = inside.score(model, tokenizer, text)
    assert after_bos.ids == [256, *scored.ids]
    assert after_bos.bytes == len(text.encode()), "the first token of the text is predicted from BOS"
    assert len(inside.score(model, tokenizer, "a").ids) == 2


def test_a_lossy_tokenizer_has_no_bits_per_byte() -> None:
    words = WordTokenizer.train("one two three", vocab_size=5)
    model = build(dataclasses.replace(CLASSIC, vocab_size=words.vocab_size))
    assert inside.score(model, words, "one two three").bits_per_byte is not None
    assert inside.score(model, words, "one zwei three").bits_per_byte is None


@pytest.mark.parametrize(
    ("text", "stride", "kind", "message"),
    [
        ("", None, ConfigError, "too short to score"),
        ("a", None, ConfigError, "too short to score"),
        ("ab", 0, ConfigError, "0 is not from 1 to 8"),
        ("ab", 9, ConfigError, "9 is not from 1 to 8"),
        ("ab😀", None, TokenizerError, "😀"),
    ],
)
def test_a_text_or_a_stride_that_cannot_be_used_is_one_message(
    text: str, stride: int | None, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        inside.score(build(CLASSIC), CHARS, text, stride=stride)


def test_a_tokenizer_of_another_model_and_damaged_weights_are_one_message() -> None:
    with pytest.raises(GenerationError, match="the model's tokens are 0 to 4; the tokenizer belongs to another model"):
        inside.score(build(dataclasses.replace(CLASSIC, vocab_size=5)), CHARS, "abcdef")
    model = build(CLASSIC)
    model.final_norm.weight.data.fill_(math.nan)
    with pytest.raises(GenerationError, match="token 1: its probability is not a positive number"):
        inside.score(model, CHARS, "abc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from glassgpt import save

    save(build(dataclasses.replace(CLASSIC, vocab_size=CHARS.vocab_size)), CHARS, tmp_path / "model")
    return tmp_path / "model"


def test_the_verb_prints_what_the_library_gives(cli: Any, folder: Path, tmp_path: Path) -> None:
    text = TEXT + "\n"
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    code, out, err = cli("score", folder, "text.txt", "--json", "--stride", 3, "-o", "a.png")
    assert code == 0, err
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    found, scored = json.loads(out), inside.score(*load_model(folder), text, stride=3)
    assert found["loss"] == scored.loss and found["predicted"] == len(text) - 1
    assert [token["nats"] for token in found["tokens"]] == [None, *scored.nats[1:].tolist()]
    assert [token["id"] for token in found["tokens"]] == scored.ids
    code, out, err = cli("score", folder, "text.txt", "--tokens", 20)
    assert code == 0, err
    assert "... and 26 more tokens" in out
    assert "45 tokens predicted; the first one is not" in out
    assert "11 windows of 8 tokens, one every 4: after the first window, each token has at least 5 tokens before" in out
    scored = inside.score(*load_model(folder), text)
    assert f"{scored.bits[scored.worst(1)[0]]:.2f}" in out.splitlines()[-10]


def test_marks_stand_under_the_surprising_tokens(cli: Any, folder: Path) -> None:
    code, out, err = cli("score", folder, "-p", "abcabc\nqqq", "--worst", 0)
    assert code == 0, err
    bits = inside.score(*load_model(folder), "abcabc\nqqq").bits
    marks = ["" if not level >= 1 else ".-=#"[sum(level >= border for border in (3, 6, 10))] for level in bits]
    lines = out.splitlines()
    at = lines.index("abcabc\\n")
    assert lines[at + 1] == "".join(mark or " " for mark in marks[:6]) + (2 * marks[6] or "").rstrip()
    for wrong, message in (
        (["-p", "abc", "x.txt"], "give FILE or --prompt, not both"),
        (["nofile.txt"], "nofile.txt"),
        ([], "there is no text to score; give FILE"),
        (["-p", "a"], "too short"),
        (["-p", "abc", "-o", "x.gif"], "should end in .png or .svg"),
    ):
        code, _, err = cli("score", folder, *wrong)
        assert (code, message in err, err.count("error")) == (2, True, 1), err


@pytest.mark.parametrize("text", ["ab", pytest.param(TEXT * 10, marks=pytest.mark.slow)], ids=["short", "long"])
def test_a_picture_is_drawn(text: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_score(inside.score(build(CLASSIC), CHARS, text), tmp_path / "a.svg", "$a_b$ 😀")
    assert (tmp_path / "a.svg").stat().st_size > 5000
