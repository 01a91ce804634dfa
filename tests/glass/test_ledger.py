"""The ledger of a sample: exact after a round trip, each stage as in `transformers`, replayed bit for bit."""

import base64
import dataclasses
import itertools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported; nothing here has a reason to ask

import numpy as np
import pytest
import torch

from glassgpt.config import ModelConfig
from glassgpt.config.presets import MODERN
from glassgpt.errors import ConfigError, DataError, GenerationError
from glassgpt.glass.choices import ledger as ledgers
from glassgpt.glass.choices import record_choices, replay
from glassgpt.inference.decode import Request, generate_text
from glassgpt.inference.stream import encode_prompt
from glassgpt.model import GPT
from glassgpt.sampling import SamplingConfig, sample_inverse_cdf
from glassgpt.tokenizer import BPETokenizer, CharTokenizer, Tokenizer

CONTEXT = 16
CHARS = CharTokenizer(list("abcdefghijklmnopqr\n"))
ALL = SamplingConfig(0.9, top_k=12, top_p=0.9, min_p=0.02, repetition_penalty=1.2)


def build(tokenizer: Tokenizer, seed: int = 0) -> GPT:
    model = GPT(ModelConfig(tokenizer.vocab_size + 3, CONTEXT, 2, 4, n_embd=32, **MODERN))
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.data = 1 + 0.2 * noise if "norm" in name and name.endswith("weight") else 0.3 * noise
    model.tie_weights_and_build_rope()
    return model.eval()


@pytest.fixture(scope="module")
def bpe(prose: str) -> BPETokenizer:
    return BPETokenizer.train(prose, 300, processes=1)


def request(tokenizer: Tokenizer, prompt: str = "ab", count: int = 9, **changes: Any) -> Request:
    settings = {"sampling": ALL, "seed": 4} | changes
    return Request(encode_prompt(tokenizer, prompt), count, **settings)


def record(model: GPT, tokenizer: Tokenizer, asked: Request, **about: Any) -> ledgers.Ledger:
    return record_choices(model, tokenizer, **vars(asked), **about)


REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"sampling": SamplingConfig(0.0)},
    "one token": {"count": 1},
    "past the context": {"count": CONTEXT + 2, "seed": 1},
    "a prompt past the context": {"prompt": "abcdefghij" * 3},
    "an empty prompt": {"prompt": ""},
    "stop strings": {"count": 25, "stop": ["ca", "d", "jj"], "sampling": SamplingConfig(1.5)},
    "one stop string": {"count": 25, "stop": "kc", "sampling": SamplingConfig(1.5)},
    "end tokens": {"count": 25, "end_token_ids": (3, 5, 7), "min_new_tokens": 6, "sampling": SamplingConfig(1.5)},
    "another sample": {"sample_index": 7},
    "a large seed": {"seed": -(10**30)},
    "numbers of numpy": {"sampling": SamplingConfig(np.float32(0.7), np.int64(5)), "seed": np.int64(3)},
    "a huge top-k": {"sampling": SamplingConfig(0.7, 10**30)},
    "no token": {"count": 0},
}


@pytest.mark.parametrize(
    ("kind", "case"),
    [("char", case) for case in REQUESTS] + [("bpe", case) for case in ("past the context", "stop strings")],
)
def test_a_ledger_is_read_as_it_was_written_and_replayed_bit_for_bit(
    kind: str, case: str, bpe: BPETokenizer, tmp_path: Path
) -> None:
    tokenizer = bpe if kind == "bpe" else CHARS
    asked_for = REQUESTS[case]
    model, asked = build(tokenizer), request(tokenizer, **asked_for)
    text, tokens = "", []
    for step, streamers in generate_text(model, tokenizer, [asked]):
        text, tokens = streamers[0].text, [*tokens, step.tokens[0]]
    if {"stop", "end_token_ids"} & asked_for.keys():
        assert 5 < len(tokens) < asked.max_new_tokens, "it ends early"
    written = record(model, tokenizer, asked, name="a name")
    written.save(tmp_path / "l.json")
    ledger = ledgers.load(tmp_path / "l.json")
    assert ledger == written and ledger.request.prompt == asked.prompt
    assert (ledger.text, [step["chosen"] for step in ledger.steps], ledger.complete) == (text, tokens, True)
    result = replay(build(tokenizer), tokenizer, ledger)
    assert result == dataclasses.replace(result, text=text, steps=len(tokens), difference="", largest=0.0, notes=[])


def test_the_stages_of_a_ledger_are_those_of_transformers() -> None:
    from transformers import (
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    model = build(CHARS)
    for seed in range(2):
        ledger = record(model, CHARS, request(CHARS, count=10, seed=seed))
        theirs = {
            "repetition penalty": RepetitionPenaltyLogitsProcessor(ALL.repetition_penalty),
            "temperature": TemperatureLogitsWarper(ALL.temperature),
            "top-k": TopKLogitsWarper(ALL.top_k),
            "top-p": TopPLogitsWarper(ALL.top_p),
            "min-p": MinPLogitsWarper(ALL.min_p),
        }
        for number, step in enumerate(ledger.steps):
            before, ids = ledger.logits(number).double()[None], torch.tensor([ledger.previous_ids(number)])
            for cut, (name, ours) in zip(step["cuts"], ledger.stages(number).items(), strict=True):
                expected = theirs[name](ids, before)
                torch.testing.assert_close(ours.softmax(-1), expected[0].softmax(-1), atol=1e-12, rtol=1e-9)
                gone = (expected[0] == -torch.inf) & (before[0] > -torch.inf)
                assert cut["stage"] == name and cut["dropped"] == int(gone.sum())
                assert cut["kept"] == int((expected[0] > -torch.inf).sum())
                assert cut["mass"] == pytest.approx(float(before[0].softmax(-1)[gone].sum()), abs=1e-12)
                if cut["dropped"]:
                    assert before[0, cut["first_dropped"]] == before[0][gone].max()
                    assert before[0, cut["last_kept"]] == before[0][expected[0] > -torch.inf].min()
                before = expected
            shares = before[0].softmax(-1)
            begin, end = step["interval"]
            assert begin <= step["draw"] < end
            assert end - begin == pytest.approx(float(shares[step["chosen"]]), abs=1e-12)
            assert int(sample_inverse_cdf(shares, torch.tensor(step["draw"], dtype=torch.float64))) == step["chosen"]
            logits = [logit.tolist() for logit in ledger.stages(number).values()]
            for candidate in step["candidates"]:
                token = candidate["token"]
                assert candidate["after_min_p"] == pytest.approx(float(shares[token]), abs=1e-12)
                listed = [value for name, value in candidate.items() if name.startswith(("penalized", "logit_after"))]
                assert listed == [None if logit[token] == -math.inf else logit[token] for logit in logits]


def change_logit(step: dict[str, Any]) -> None:
    logits = np.frombuffer(base64.b64decode(step["logits"]), "<f4").copy()
    logits[2] += 0.5
    step["logits"] = base64.b64encode(logits.tobytes()).decode()


TAMPERED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a logit": (change_logit, "the logits differ by up to 0.5, at token 2 'c'"),
    "a draw": (lambda step: step.update(draw=0.123), "the random number is 0.123 in the ledger"),
    "a token": (lambda step: step.update(chosen=(step["chosen"] + 1) % 19), "the chosen token is token"),
    "an interval": (lambda step: step["interval"].reverse(), "in the ledger, interval is not what follows"),
    "a cut": (lambda step: step["cuts"][2].update(dropped=0), "in the ledger, cuts is not what follows"),
    "a candidate": (lambda step: step["candidates"].pop(), "in the ledger, candidates is not what follows"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_the_first_step_that_differs_is_named(what: str, tmp_path: Path) -> None:
    model, path = build(CHARS), tmp_path / "l.json"
    change, message = TAMPERED[what]
    record(model, CHARS, request(CHARS)).save(path)
    for number in (0, 4, 8):
        content = json.loads(path.read_text())
        for step in content["steps"][number:]:
            change(step)
        (tmp_path / "tampered.json").write_text(json.dumps(content))
        result = replay(model, CHARS, ledgers.load(tmp_path / "tampered.json"))
        assert result.difference.startswith(f"step {number + 1}: ") and message in result.difference
        assert result.steps == number and result.notes == []


def test_steps_too_many_or_too_few_and_another_text_are_named() -> None:
    model = build(CHARS)
    ledger = record(model, CHARS, request(CHARS))
    assert len(ledger.steps) == 9
    shorter, longer = dataclasses.replace(ledger, steps=ledger.steps[:4]), dataclasses.replace(
        ledger, steps=[*ledger.steps, ledger.steps[0]]
    )  # fmt: skip
    assert replay(model, CHARS, shorter).difference == "step 5: the ledger ends, the text goes on"
    assert replay(model, CHARS, longer).difference == "step 10: the text ends, the ledger has 10 steps"
    assert "not that of its tokens" in replay(model, CHARS, dataclasses.replace(ledger, text="x")).difference


def test_a_difference_by_rounding_is_no_difference_and_another_model_is_noted() -> None:
    model = build(CHARS)
    ledger = record(model, CHARS, request(CHARS))
    with torch.no_grad():
        model.final_norm.weight *= 1 + 1e-5
    result = replay(model, CHARS, ledger)
    assert (result.difference, result.steps, result.text) == ("", 9, ledger.text)
    assert 0 < result.largest < 1e-3 and result.largest_at.startswith("step ")
    assert "other weights or another configuration" in result.notes[0]
    result = replay(build(CHARS, seed=1), CharTokenizer(list("ABCDEFGHIJKLMNOPQR\n")), ledger)
    assert len(result.notes) == 2 and result.difference.startswith("step 1: the logits differ by up to ")
    larger = CharTokenizer(list("abcdefghijklmnopqrstuvw\n"))
    assert "step 1: the ledger has 22 logits, the model 27" in replay(build(larger), larger, ledger).difference


def test_an_interrupted_generation_keeps_its_steps_and_they_are_replayed(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import glassgpt
    from glassgpt.inference import decode

    chars = CHARS
    model = GPT(ModelConfig(chars.vocab_size, CONTEXT, 2, 4, n_embd=32, **MODERN))
    glassgpt.save(model, chars, tmp_path / "model")

    def until(count: int, error: BaseException) -> Any:
        def generate(*arguments: Any, **options: Any) -> Any:
            yield from itertools.islice(generate_text(*arguments, **options), count)
            raise error

        return generate

    for count, error in ((3, GenerationError("NaN")), (2, KeyboardInterrupt()), (0, GenerationError("NaN"))):
        monkeypatch.setattr(decode, "generate_text", until(count, error))
        code, out, err = cli("sample", "model", "-p", "ab", "-n", 9, "--ledger", "l.json")
        assert code != 0 and "as far as it came" in err
        ledger = ledgers.load(tmp_path / "l.json")
        assert len(ledger.steps) == count and not ledger.complete
        code, out, err = cli("sample", "model", "--replay", "l.json")
        assert code == 0 and f"replayed {count} step" in err and "all equal" in err, err
        assert out == f"ab{ledger.text}\n"


def test_from_the_command_line_a_ledger_is_replayed_and_a_difference_is_exit_code_1(cli: Any, tmp_path: Path) -> None:
    import glassgpt

    glassgpt.save(build_saveable(), CHARS, tmp_path / "model")
    code, text, err = cli("sample", "model", "-p", "ab", "-n", 9, "--seed", 3, "--top-k", 5, "--ledger", "l.json")
    assert code == 0 and "ledger: l.json, 9 steps, " in err, err
    code, out, err = cli("sample", "model", "--replay", "l.json")
    assert (code, out) == (0, text) and "replayed 9 steps: all equal" in err
    found = json.loads(cli("sample", "model", "--replay", "l.json", "--json")[1])
    assert (found["prompt"] + found["text"] + "\n", found["difference"]) == (text, "")
    content = json.loads((tmp_path / "l.json").read_text())
    assert content["sampling"]["top_k"] == 5 and content["prompt"] == "ab" and content["model"].endswith("model")
    content["steps"][4]["draw"] = 0.5
    (tmp_path / "l.json").write_text(json.dumps(content))
    code, out, err = cli("sample", "model", "--replay", "l.json")
    assert code == 1 and "replayed 4 equal steps, then a difference: step 5: the random number is 0.5 in" in err


def build_saveable() -> GPT:
    model = GPT(ModelConfig(CHARS.vocab_size, CONTEXT, 2, 4, n_embd=32, **MODERN))
    model.init_weights(0)
    return model


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--replay", "l.json", "--temperature", 0.8, "-p", "x"], ["leave out --prompt, --temperature"]),
        (["--replay", "l.json", "--compare"], ["leave out --compare"]),
        (["--compare", "--ledger", "l.json", "--explain"], ["--compare and --explain", "--compare and --ledger"]),
        (["--compare", "--greedy", "--temperature", 1], ["--compare and --temperature", "--compare and --greedy"]),
        (["--greedy", "--temperature", 1], ["leave out --temperature"]),
        (["-o", "x.png"], ["add --compare"]),
        (["--ledger", "l.json", "--num-samples", 2], ["--ledger shows one sample"]),
        (["--ledger", "l.txt"], ["should end in .json"]),
        (["--ledger", "no/l.json"], ["there is no folder no"]),
        (["--replay", "no.json"], ["no.json cannot be read"]),
    ],
)
def test_options_that_do_not_go_together_are_one_message(cli: Any, options: list[object], named: list[str]) -> None:
    code, _, err = cli("sample", "model", *options)
    assert code == 2 and err.count("error: ") == 1
    assert all(part in err for part in named), err


def test_a_file_that_is_no_ledger_or_a_damaged_one_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "l.json"
    record(build(CHARS), CHARS, request(CHARS, count=2)).save(path)
    good = json.loads(path.read_text())
    damages: list[Any] = [[], {}, {**good, "version": 2}, {**good, "format": "x"}, {**good, "prompt_ids": []}]
    damages += [{**good, "sampling": {}}, {**good, "sampling": {**good["sampling"], "top_p": 7}}, {**good, "steps": {}}]
    fields = [name for name in good if name != "about"]
    damages += [{key: value for key, value in good.items() if key != name} for name in fields]
    damages += [{**good, "steps": [{**good["steps"][0], "logits": text}]} for text in ("?", "AAAA", "é")]
    damages += [{**good, "steps": [{**good["steps"][0], name: None}]} for name in good["steps"][0]]
    for damaged in damages:
        path.write_text(json.dumps(damaged))
        with pytest.raises(DataError, match=r"l\.json"):
            ledgers.load(path)
    with pytest.raises(ConfigError, match="not valid Unicode"):
        record(build(CHARS), CHARS, request(CHARS, stop="\udcff"))
