"""`glassgpt sample`: min-p, repetition penalty and stop strings, from the command line and from the library."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glassgpt.cli.printing.steps import print_step
from glassgpt.cli.prompt import read_prompt_text
from glassgpt.errors import ConfigError

pytestmark = pytest.mark.usefixtures("quick_measuring")

TODAY = ["-p", "King", "-n", 5, "--temperature", 0.9, "--top-k", 6, "--top-p", 0.9, "--explain"]


@pytest.fixture
def run(cli: Any, text_file: Path, tmp_path: Path) -> Path:
    settings = "preset=tiny-modern n_layer=1 n_embd=16 n_head=2 block_size=32 batch_size=4 steps=5 eval_interval=5"
    code, _, err = cli("train", text_file, *settings.split(), "dtype=float32", "compile=false")
    assert code == 0, err
    return tmp_path / "runs" / "prose"


def sampled(cli: Any, *options: object) -> list[dict[str, Any]]:
    code, out, err = cli("sample", "prose", "--json", *options)
    assert code == 0, err
    return json.loads(out)


def test_every_setting_gives_what_the_library_gives(cli: Any, run: Path) -> None:
    import glassgpt

    model, tokenizer = glassgpt.load(run)
    options = ["-p", "King", "-n", 40, "--seed", 5, "--temperature", 1.2]
    plain = sampled(cli, *options)[0]["text"]
    settings: dict[str, Any] = {"min_p": 0.3, "repetition_penalty": 1.5, "stop": [plain[10:12], plain[5:7]]}
    for setting, value in settings.items():
        for one in value if isinstance(value, list) else [value]:
            options += [f"--{setting.replace('_', '-')}", one]
    text = glassgpt.generate(model, tokenizer, "King", max_new_tokens=40, seed=5, temperature=1.2, **settings)
    assert sampled(cli, *options)[0]["text"] == text != plain
    live = cli("sample", "prose", *options)[1]
    assert live == f"King{text}\n"


def test_stop_strings_are_repeatable_and_end_every_sample_by_itself(cli: Any, run: Path) -> None:
    options = ["-p", "King", "-n", 40, "--seed", 5, "--num-samples", 3]
    free = [row["text"] for row in sampled(cli, *options)]
    stop = [free[0][7:9], free[1][3:5]]
    rows = sampled(cli, *options, "--stop", stop[0], "--stop", stop[1])
    assert [row["text"] for row in rows] == [
        text[: min((text.index(s) for s in stop if s in text), default=None)] for text in free
    ]
    assert [len(row["text"]) < 40 for row in rows][:2] == [True, True]
    _, shown, _ = cli("sample", "prose", *options[:-2], "--stop", stop[0])
    assert shown == f"King{free[0][: free[0].index(stop[0])]}\n"
    code, _, err = cli("sample", "prose", "--stop", "")
    assert (code, "stop: an empty string" in err) == (2, True)


def test_explain_adds_columns_only_for_the_settings_in_use(cli: Any, run: Path) -> None:
    heading = f"    {'token':<10} {'logit':>9} {'temperature':>12} {'top-k':>8} {'top-p':>8}\n"
    assert heading in cli("sample", run, *TODAY)[1]
    code, out, err = cli("sample", run, *TODAY, "--min-p", 0.2, "--repetition-penalty", 1.3)
    assert code == 0, err
    longer = (
        f"    {'token':<10} {'logit':>9} {'penalized':>10} {'temperature':>12} {'top-k':>8} {'top-p':>8} {'min-p':>8}\n"
    )
    assert out.count(longer) == 5
    assert out.count("  > ") == 5


def test_explain_as_json_has_the_penalized_logit_and_min_p(cli: Any, run: Path) -> None:
    from glassgpt import load

    options = [*TODAY, "--min-p", 0.2, "--repetition-penalty", 1.3, "--candidates", 99]
    row = sampled(cli, *options)[0]
    previous = set(load(run)[1].encode("King"))
    assert len(row["steps"]) == 5
    for step, token in zip(row["steps"], row["tokens"], strict=True):
        for c in step["candidates"]:
            factor = (1 / 1.3 if c["logit"] > 0 else 1.3) if c["token"] in previous else 1
            assert c["penalized_logit"] == pytest.approx(c["logit"] * factor)
        kept = sorted((c for c in step["candidates"] if c["after_min_p"] > 0), key=lambda c: c["token"])
        assert sum(c["after_min_p"] for c in kept) == pytest.approx(1)
        largest = max(c["after_temperature"] for c in step["candidates"])
        assert all(c["after_temperature"] >= 0.2 * largest for c in kept)
        chosen = next(c for i, c in enumerate(kept) if sum(k["after_min_p"] for k in kept[: i + 1]) > step["draw"])
        assert chosen["token"] == step["chosen"] == token
        previous.add(token)


def test_settings_out_of_range_are_refused_together(cli: Any) -> None:
    code, _, err = cli("sample", "x", "--min-p", 2, "--repetition-penalty", 0, "--top-k", -1)
    assert code == 2
    assert "3 problems" in err


def test_end_tokens_and_a_minimum_of_tokens_give_what_the_library_gives(cli: Any, run: Path) -> None:
    import glassgpt

    model, tokenizer = glassgpt.load(str(run), runs="elsewhere")
    options = ["-p", "King", "-n", 40, "--seed", 5]
    free = sampled(cli, *options)[0]["text"]
    ends = {free[3], free[9]}
    text = sampled(cli, *options, *(word for end in ends for word in ("--end-token", end)))[0]["text"]
    assert text == free[: min(free.index(end) for end in ends)]
    ids = [tokenizer.encode(end)[0] for end in ends]
    assert text == glassgpt.generate(model, tokenizer, "King", max_new_tokens=40, seed=5, end_token_ids=ids)
    row = sampled(cli, *options, "--end-token", free[0], "--min-new-tokens", 7)[0]
    assert len(row["tokens"]) >= 7 and free[0] not in row["text"]
    assert row["text"] == glassgpt.generate(
        model, tokenizer, "King", max_new_tokens=40, seed=5, end_token_ids=tokenizer.encode(free[0]), min_new_tokens=7
    )
    for wrong, message in (
        (["--end-token", "King"], "--end-token: 'King' is 4 tokens, not one"),
        (["-n", 3, "--min-new-tokens", 4], "min_new_tokens: 4 is more than max_new_tokens, 3"),
    ):
        code, _, err = cli("sample", run, *wrong)
        assert (code, message in err) == (2, True), err
    (run / "best" / "chat_template.jinja").write_text("{# nothing #}")
    code, _, err = cli("sample", run, "--chat", "-p", "King")
    assert (code, "makes no tokens of this prompt" in err) == (2, True), err


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"ab\r\ncd\r\n", "ab\r\ncd"),
        (b"ab\ncd\n\n", "ab\ncd\n"),
        (b"\xef\xbb\xbfab\rcd\r", "ab\rcd\r"),
        ("\ufeff\ufeff\n".encode(), "\ufeff"),
        (b"", ""),
        (b"a\xffb", "is not UTF-8: .* 0xff in position 1"),
        (b"\xef\xbb\xbfa\xe2\x82", "is not UTF-8: .* position 4"),
    ],
)
def test_the_same_bytes_are_the_same_prompt_in_a_file_and_a_pipe(
    content: bytes, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(content)
    for prompt, prompt_file in (("", path), ("-", None)):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        if text.startswith("is not"):
            with pytest.raises(ConfigError, match=text):
                read_prompt_text(prompt, prompt_file)
        else:
            assert read_prompt_text(prompt, prompt_file) == text
    for argument in ("a\udcff", "a\ud800"):
        with pytest.raises(ConfigError, match=r"--prompt is not UTF-8: .* position 1"):
            read_prompt_text(argument, None)


def test_explain_shows_ids_without_a_token_as_holes(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from glassgpt.glass.choices.step import describe_step
    from glassgpt.inference.decode import DecodeStep
    from glassgpt.sampling import SamplingConfig
    from glassgpt.tokenizer import CharTokenizer

    class Holes(CharTokenizer):
        def unused_ids(self) -> tuple[int, ...]:
            return (1,)

        def token_bytes(self, i: int) -> bytes:
            assert i != 1
            return super().token_bytes(i)

    step = DecodeStep([2], [True], torch.tensor([[0.5, -torch.inf, 1.5]]), torch.tensor([0.5]))
    explained = describe_step(step, SamplingConfig(), [], Holes(list("abc")), 9)
    assert [(c["token"], c["text"]) for c in explained["candidates"]] == [(2, "c"), (0, "a"), (1, None)]
    print_step(1, explained, "", SamplingConfig(), Holes(list("abc")))
    assert "  (no id 1) " in capsys.readouterr().out
