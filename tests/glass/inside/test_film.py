"""A film is what the single functions find at each checkpoint; and induction is found when it appears."""

import gc
import json
import math
import random
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from conftest import Cli, load_model
from glassgpt import api
from glassgpt.config import ModelConfig
from glassgpt.errors import CheckpointError, ConfigError
from glassgpt.glass import inside
from glassgpt.glass.inside.film import Film, Frame, describe_induction, film
from glassgpt.glass.inside.heads import attention_maps, head_statistics
from glassgpt.glass.inside.prompt import Prompt, read_prompt
from glassgpt.glass.inside.repeated import Repeated, measure_repeated, repeated_sequences
from glassgpt.model import GPT
from glassgpt.sampling import SamplingConfig
from glassgpt.tokenizer import CharTokenizer, Tokenizer
from glassgpt.training.checkpoint import Run
from glassgpt.weights.loading import load_source

SETTINGS = {
    "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "batch_size": 4, "steps": 6, "eval_interval": 3,
    "keep_every": 4, "sample_tokens": 0, "eval_tokens": 100, "dtype": "float32", "compile": "false", "device": "cpu",
}  # fmt: skip
PROMPT = "King of the"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Run:
    """A run with checkpoints of the steps 0, 3, 4 and 6."""
    folder = tmp_path_factory.mktemp("film")
    (folder / "text.txt").write_text(prose, encoding="utf-8")
    return api.train("tiny", data=folder / "text.txt", overrides=SETTINGS, runs=folder / "runs", name="a")


def test_each_frame_is_what_the_single_functions_find_at_that_checkpoint(run: Run) -> None:
    found = inside.film(run.path, PROMPT, max_new_tokens=9, seed=3, device="cpu")
    assert found.steps == [0, 3, 4, 6] == list(run.models_by_step())
    for frame, folder in zip(found.frames, run.models_by_step().values(), strict=True):
        model, tokenizer = load_model(folder)
        text = api.generate(model, tokenizer, PROMPT, max_new_tokens=9, temperature=0.8, seed=3)
        assert (frame.text, len(frame.text)) == (text, 9)
        seen = inside.lens(model, tokenizer, PROMPT)
        assert np.array_equal(frame.lens_tokens, seen.tokens[:, -1])
        assert np.array_equal(frame.lens_probability, seen.probability[:, -1])
        maps = attention_maps(model, read_prompt(model, tokenizer, PROMPT))
        assert np.array_equal(frame.attention, maps.weights[:, :, -1])
        for name, values in measure_repeated(model, tokenizer, seed=3).statistics.items():
            assert np.array_equal(frame.repeated.statistics[name], values)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
        ids = torch.tensor([found.prompt.ids])
        with torch.no_grad():
            assert frame.loss == pytest.approx(theirs(ids, labels=ids).loss.item(), rel=1e-5)
    assert film(run, PROMPT, steps=[6, 0], max_new_tokens=1, device="cpu").steps == [0, 6]
    assert film(run, PROMPT, every=3, max_new_tokens=1, device="cpu").steps == [0, 3, 6]


def test_heads_on_repeated_tokens_equal_a_count_by_hand_from_the_attention_of_transformers(run: Run) -> None:
    folder = run.at_step(6)
    model, tokenizer = load_model(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    scores, losses, chance = [], [], []
    for ids in repeated_sequences(model, tokenizer, 5):
        n = len(ids) // 2
        assert ids[:n] == ids[n:]
        assert len(set(ids)) == n
        with torch.no_grad():
            output = theirs(torch.tensor([ids]), output_attentions=True)
        weights = torch.cat(output.attentions)  # [L, H, T, T]
        scores.append(torch.stack([weights[..., n + i, i + 1] for i in range(n)]).mean(dim=0).numpy())
        log_p = output.logits[0].log_softmax(-1)
        losses.append(np.mean([-log_p[n + i, ids[n + i + 1]].item() for i in range(n - 1)]))
        chance.append(np.mean([1 / (n + i + 1) for i in range(n)]))
    found = measure_repeated(model, tokenizer, 5)
    np.testing.assert_allclose(found.statistics["induction"], np.mean(scores, axis=0), atol=1e-6)
    assert found.second_loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert found.chance == pytest.approx(np.mean(chance), rel=1e-5)


@pytest.mark.parametrize("context", [10, 16, 64, 1000])
def test_a_head_that_looks_back_by_a_fixed_distance_is_no_induction_head(context: int) -> None:
    tokenizer = CharTokenizer([chr(i) for i in range(0x4E00, 0x4E00 + 90)])
    model = GPT(ModelConfig(vocab_size=90, block_size=context, n_layer=1, n_head=1, n_embd=8))
    sequences = repeated_sequences(model, tokenizer, 0)
    frame = replace(FRAME, repeated=replace(FRAME.repeated, chance=measure_repeated(model, tokenizer).chance))
    threshold = Film(Run(Path("a")), Prompt([0], ["a"]), [frame]).threshold
    for distance in range(1, max(map(len, sequences))):
        scores = []
        for ids in sequences:
            weights = torch.diag(torch.ones(max(0, len(ids) - distance)), -distance)[: len(ids), : len(ids)]
            weights = weights if len(weights) == len(ids) else torch.eye(len(ids))
            scores.append(head_statistics(weights, ids)["induction"])
        assert np.mean(scores) < threshold, distance


FRAME = Frame(
    step=0, text="", loss=1.0, lens_tokens=np.array([1, 2, 2]), lens_probability=np.ones(3), lens_texts=["a", "b", "b"],
    attention=np.zeros((2, 2, 1)), repeated=Repeated({}, 1.0, 1.0, 0.1),
)  # fmt: skip


def with_scores(*scores: list[list[float]]) -> Film:
    """A film whose heads have these induction scores, at the steps 0, 10, ..."""
    frames = [
        replace(FRAME, step=10 * i, repeated=Repeated({"induction": np.array(values)}, 1.0, 1.0, 0.1))
        for i, values in enumerate(scores)
    ]
    return Film(Run(Path("a")), Prompt([0], ["a"]), frames)


def test_induction_appears_at_the_first_step_at_which_a_head_is_above_the_threshold() -> None:
    low, high = [[0.1, 0.2], [0.0, 0.3]], [[0.1, 0.5], [0.33, 0.2]]
    assert with_scores(low).threshold == pytest.approx(0.325)
    found = with_scores(low, low, high, low)
    assert (found.induction, found.frames[2].best_head("induction")) == (2, (0, 1))
    assert describe_induction(found).startswith(
        "induction appears between step 10 and 20 in head 0.1: the largest score rises from 0.300 to 0.500 "
    )
    assert with_scores(low, low).induction is None
    assert describe_induction(with_scores(low, low)).startswith("no induction head up to step 10; the largest score is")
    assert describe_induction(with_scores(high)).startswith("head 0.1 is an induction head at step 0, the first shown")


@pytest.mark.parametrize(
    ("tokens", "row"), [([5, 5, 5], 0), ([1, 5, 5], 1), ([5, 1, 5], 2), ([5, 1, 1, 5, 5], 3), ([5], 0)]
)
def test_the_lens_decides_where_its_prediction_stays_to_the_end(tokens: list[int], row: int) -> None:
    assert replace(FRAME, lens_tokens=np.array(tokens)).decided_in == row


def test_one_model_at_a_time_is_in_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[GPT]] = []

    def load(*arguments: Any, **named: Any) -> tuple[GPT, Tokenizer]:
        assert [model() for model in loaded] == [None] * len(loaded)
        model, tokenizer = load_source(*arguments, **named)
        loaded.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setattr(sys.modules["glassgpt.glass.inside.film"], "load_source", load)  # not the function `film`
    gc.disable()  # a model is freed by its last reference, at once
    try:
        film(run, PROMPT, max_new_tokens=1, device="cpu")
    finally:
        gc.enable()
    assert len(loaded) == 4


def test_a_prompt_of_one_token_has_no_loss_and_tiny_contexts_are_refused(run: Run) -> None:
    found = film(run, "", steps=[6], max_new_tokens=1, device="cpu", sampling=SamplingConfig(0.0))
    assert math.isnan(found.frames[0].loss)
    assert found.frames[0].attention.shape == (2, 2, 1)
    model = GPT(ModelConfig(vocab_size=3, block_size=3, n_layer=1, n_head=1, n_embd=8))
    with pytest.raises(ConfigError, match="a context of 3 and 3 tokens that are not special"):
        measure_repeated(model, CharTokenizer(list("abc")))


def test_the_verb_prints_tables_json_and_pictures(run: Run, cli: Cli) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("rich")
    command = ["film", run.path, "-p", PROMPT, "-n", 3, "--device", "cpu"]
    code, out, _ = cli(*command, "--head", "1.0", "--head", "0.1", "-o", "film.png")
    assert code == 0
    assert Path("film.png").read_bytes().startswith(b"\x89PNG")
    assert "Head 1.0 on repeated random tokens" in out
    assert "no induction head up to step 6" in out
    code, out, _ = cli(*command[:2], "-p", "K", "--steps", "0", "--device", "cpu")
    assert code == 0 and out.splitlines()[1].startswith("   0     -"), "one token has no loss"
    code, out, _ = cli(*command, "--steps", "4,0", "--head", "1.0", "--json", "-o", "film.svg")
    found = json.loads(out)
    assert [frame["step"] for frame in found["checkpoints"]] == [0, 4]
    assert found["induction"]["step"] is None
    weights = found["checkpoints"][1]["heads"]["1.0"]["attention"]
    assert (len(weights), sum(weights)) == (len(PROMPT), pytest.approx(1, abs=1e-5))
    assert b"<svg" in Path("film.svg").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "5"], "has no checkpoint of step 5; those there are: 0, 3, 4, 6"),
        (["--steps", "4", "--every", "2"], "give --steps or --every, not both"),
        (["--steps", "0-5"], "--steps '0-5' is not a list of steps; write --steps 0,100,500"),
        (["--head", "2.0"], "--head 2.0: the model's heads are 0.0 to 1.1 (layer.head)"),
        (["--head", "3"], "--head '3' is not a head"),
        (["-p", "e" * 33], "the prompt has 33 tokens; the model reads 32"),
        (["-p", "😀"], "is not among the"),
        (["-o", "film.txt"], "should end in .png or .svg"),
        (["--temperature", "-1"], "temperature"),
    ],
)
def test_a_mistake_is_one_message(arguments: list[str], message: str, run: Run, cli: Cli) -> None:
    code, out, error = cli("film", run.path, *arguments)
    assert (code, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1


def test_what_is_no_run_is_refused(run: Run, cli: Cli) -> None:
    assert "there is no run" in cli("film", run.last)[2]
    assert "glassgpt quickstart` makes one" in cli("film", "--runs-dir", "nowhere")[2]
    with pytest.raises(CheckpointError, match="is not a run"):
        film(run.last, "a")


@pytest.mark.slow
def test_induction_is_found_in_a_model_that_learns_it_and_not_in_one_of_a_single_layer(tmp_path: Path) -> None:
    """Words that are repeated within a line teach it to two layers; one layer cannot have it (Olsson et al., 2022)."""
    draw = random.Random(0)
    lines = []
    for _ in range(6000):
        words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 8))) for _ in range(3)]
        lines.append(" ".join(draw.choice(words) for _ in range(12)))
    text = tmp_path / "repeats.txt"
    text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = SETTINGS | {"n_head": 4, "n_embd": 64, "block_size": 64, "batch_size": 32, "steps": 400}
    settings |= {"eval_interval": 400, "keep_every": 50, "keep_checkpoints": 0}
    films = []
    for layers in (1, 2):
        run = api.train(
            "tiny-modern", data=text, overrides=settings | {"n_layer": layers}, runs=tmp_path, name=str(layers)
        )
        films.append(film(run, "qwerty abcd qwe", max_new_tokens=3, sampling=SamplingConfig(0.0), device="cpu"))
    one, two = films
    assert one.induction is None
    assert two.induction is not None
    assert 0 < two.induction < len(two.frames) - 1
    assert two.frames[two.induction].best_head("induction")[0] == 1, "it needs a layer before it"
    assert two.frames[-1].text.startswith("r")
    gains = [frame.repeated.first_loss - frame.repeated.second_loss for frame in (two.frames[0], two.frames[-1])]
    assert abs(gains[0]) < 0.1
    assert gains[1] > 0.4
