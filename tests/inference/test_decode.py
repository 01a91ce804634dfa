"""Generation, against a loop that runs a full forward pass for every token."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import thread_count
from glassgpt.config import ModelConfig, RuntimeConfig, TrainConfig
from glassgpt.config.presets import MODERN
from glassgpt.errors import ConfigError, GenerationError, TokenizerError
from glassgpt.inference.decode import DecodeStep, Request, Row, complete, generate, generate_rows, generate_text
from glassgpt.inference.stream import encode_prompt
from glassgpt.model import GPT, ExplicitAttention
from glassgpt.runtime import Runtime
from glassgpt.sampling import SamplingConfig, next_token, next_uniform, row_generator
from glassgpt.tokenizer import CharTokenizer
from glassgpt.training.pretraining import Pretraining

CPU = Runtime(torch.device("cpu"), torch.float32, 1, compile=False, reason="test")
GREEDY, SAMPLED = SamplingConfig(0.0), SamplingConfig(0.9, top_k=12, top_p=0.95)
NEVER = float("-inf")
PENALIZED = SamplingConfig(1.1, min_p=0.02, repetition_penalty=1.3)
CLASSIC = ModelConfig(vocab_size=19, block_size=16, n_layer=2, n_head=4, n_embd=32, tie_embeddings=False)
CONFIGS = {
    "classic": CLASSIC,
    "modern-gqa": dataclasses.replace(CLASSIC, **MODERN, n_kv_head=2, head_dim=12, intermediate_size=48),
}
both_families = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
all_choices = pytest.mark.parametrize("choice", [GREEDY, SAMPLED, PENALIZED], ids=["greedy", "sampled", "penalized"])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with thread_count(1):
        yield


def build(config: ModelConfig, seed: int = 0) -> GPT:
    """A model whose next token depends on every token that it sees."""
    model = GPT(config)
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.data = 1 + 0.2 * noise if "norm" in name and name.endswith("weight") else 0.4 * noise
    model.tie_weights_and_build_rope()
    return model.eval()


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return torch.randint(19, (length,), generator=torch.Generator().manual_seed(100 + seed)).tolist()


def window_lengths(prompt: int, context: int) -> Iterator[int]:
    """How many tokens the model sees at each step. When the context is full, the newest half is kept."""
    yield from range(min(prompt, context), context + 1)
    while True:
        yield from range(max(1, context // 2), context + 1)


@torch.no_grad()
def naive(
    model: GPT, prompt: Sequence[int], n: int, choice: SamplingConfig, seed: int, row: int
) -> tuple[list[int], Tensor]:
    """Tokens, and the logits ``[n, V]`` they came from; no cache, no batch."""
    generator, seen, logits = row_generator(seed, row), list(prompt), []
    for length in itertools.islice(window_lengths(len(prompt), model.config.block_size), n):
        logits.append(model(torch.tensor([seen[-length:]]))[0, -1])
        seen.append(int(next_token(logits[-1], choice, next_uniform(generator), seen)))
    return seen[len(prompt) :], torch.stack(logits)


def by_row(steps: Sequence[DecodeStep]) -> list[list[int]]:
    return [list(row) for row in zip(*(step.tokens for step in steps), strict=True)]


def check(model: GPT, prompts: list[list[int]], n: int, choice: SamplingConfig, seed: int = 5) -> list[DecodeStep]:
    steps = list(generate(model, prompts, n, choice, seed=seed))
    assert len(steps) == n
    generated, logits = by_row(steps), torch.stack([step.logits for step in steps])  # [n, B, V]
    for row, prompt in enumerate(prompts):
        tokens, expected = naive(model, prompt, n, choice, seed, row)
        torch.testing.assert_close(logits[:, row], expected, atol=1e-4, rtol=1e-4)
        assert generated[row] == tokens
    return steps


# --- equal to the naive loop


@all_choices
@both_families
def test_within_the_context(config: ModelConfig, choice: SamplingConfig) -> None:
    check(build(config), [prompt_of(5), prompt_of(5, 1)], 12, choice)


@all_choices
@both_families
def test_a_ragged_batch_equals_each_prompt_alone(config: ModelConfig, choice: SamplingConfig) -> None:
    """Over several refills, which the rows reach at different steps."""
    check(build(config), [prompt_of(n, n) for n in (3, 16, 1, 40, 9, 17)], 40, choice)


@all_choices
@both_families
@pytest.mark.parametrize("context", [16, 7, 2, 1])
def test_four_contexts_long(config: ModelConfig, choice: SamplingConfig, context: int) -> None:
    model = build(dataclasses.replace(config, block_size=context))
    steps = check(model, [prompt_of(3), prompt_of(1), prompt_of(context)], 4 * context + 5, choice)
    if context == 16:
        assert min(len(set(row)) for row in by_row(steps)) > 4, "a loop of few tokens would prove little"


@pytest.mark.parametrize("length", [15, 16, 17, 50])
def test_a_long_prompt_is_cut_to_the_newest_context(length: int) -> None:
    model, prompt = build(CLASSIC), prompt_of(length)
    first = check(model, [prompt], 20, SAMPLED)[0]
    other = [(token + 1) % 19 for token in prompt[:-16]] + prompt[-16:]
    again = next(iter(generate(model, [other], 1, SAMPLED, seed=5)))
    assert torch.equal(first.logits, again.logits)


def test_a_step_computes_one_token_and_a_refill_half_a_context() -> None:
    model, seen = build(CLASSIC), []
    model.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].size(1)))
    list(generate(model, [prompt_of(10)], 27, GREEDY))
    assert seen == [10, *[1] * 6, 8, *[1] * 8, 8, *[1] * 8, 8, 1]


@all_choices
@both_families
def test_equal_prompts_are_prefilled_once_and_generate_as_before(config: ModelConfig, choice: SamplingConfig) -> None:
    """Also among others of other lengths, and after the context was full."""
    model, prefilled = build(config), []
    model.blocks[0].register_forward_pre_hook(lambda module, inputs: prefilled.append(tuple(inputs[0].shape[:2])))
    one, two = prompt_of(6), prompt_of(30, 1)
    list(generate(model, [one, two, one, one, two], 40, choice))
    assert prefilled[0] == (2, 16), "two different prompts, of which the longer one fills the context"
    model.blocks[0]._forward_pre_hooks.clear()
    check(model, [one, two, one, one, two], 40, choice)
    greedy = by_row(list(generate(model, [one] * 3, 40, GREEDY)))
    assert greedy[0] == greedy[1] == greedy[2]


def test_the_explicit_attention_generates_the_same() -> None:
    fused, explicit = build(CONFIGS["modern-gqa"]), build(CONFIGS["modern-gqa"])
    for block in explicit.blocks:
        block.attention.attend = ExplicitAttention()
    prompts = [prompt_of(3), prompt_of(11)]
    one, two = (by_row(list(generate(m, prompts, 30, SAMPLED))) for m in (fused, explicit))
    assert one == two


@both_families
def test_bfloat16_stays_near_float32(config: ModelConfig) -> None:
    """Ragged, with refills: at every step the logits are about those of a full forward in float32."""
    model, half = build(config), build(config).to(torch.bfloat16)
    half.tie_weights_and_build_rope()
    prompts = [prompt_of(3), prompt_of(14)]
    steps = list(generate(half, prompts, 20, SAMPLED, seed=5))
    for row, prompt in enumerate(prompts):
        seen = prompt + by_row(steps)[row]
        for i, length in enumerate(itertools.islice(window_lengths(len(prompt), 16), 20)):
            end = len(prompt) + i
            with torch.no_grad():
                full = model(torch.tensor([seen[end - length : end]]))[0, -1]
            assert steps[i].logits.dtype == torch.float32
            assert (steps[i].logits[row] - full).norm() < 0.05 * full.norm()


# --- independence and determinism


def test_a_row_does_not_depend_on_the_others() -> None:
    model, prompt = build(CLASSIC), prompt_of(6)
    alone = by_row(list(generate(model, [prompt], 40, SAMPLED, seed=3)))[0]
    batch = [prompt, prompt_of(15), prompt_of(1), prompt]
    generated = by_row(list(generate(model, batch, 40, SAMPLED, seed=3)))
    assert generated[0] == alone
    assert generated[3] != alone, "every row has its own random numbers"
    assert by_row(list(generate(model, batch, 40, SAMPLED, seed=4)))[0] != alone


def test_generation_touches_no_global_state_and_no_argument() -> None:
    model, prompts = build(CLASSIC), [prompt_of(3), prompt_of(30)]
    copies = [list(prompt) for prompt in prompts]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    steps = generate(model, prompts, 30, SAMPLED)
    first = next(steps)
    assert not torch.is_inference_mode_enabled(), "between steps the caller may train"
    list(steps)
    assert torch.equal(torch.get_rng_state(), state)
    assert prompts == copies
    assert first.tokens == next(iter(generate(model, prompts, 30, SAMPLED))).tokens
    assert all(p.grad is None and not p.is_inference() for p in model.parameters())
    assert not any(block.attention.qkv._forward_hooks for block in model.blocks)


def test_steps_have_the_logits_and_random_numbers_of_their_tokens() -> None:
    for step in generate(build(CLASSIC), [prompt_of(3), prompt_of(7)], 20, SAMPLED, seed=2):
        assert step.tokens == next_token(step.logits, SAMPLED, step.uniform).tolist()
        assert step.logits.shape == (2, 19)
        assert step.logits.dtype == torch.float32


def test_no_tokens_wanted_gives_no_steps() -> None:
    assert list(generate(build(CLASSIC), [prompt_of(3)], 0, GREEDY)) == []


# --- the end tokens


def test_a_row_that_ends_stops_while_the_others_continue() -> None:
    model, prompts = build(CLASSIC), [prompt_of(n, n) for n in (3, 9, 14)]
    free = by_row(list(generate(model, prompts, 60, SAMPLED, seed=1)))
    ends, eos = max(
        (
            sorted(row.index(token) if token in row else 60 for row in free),
            token,
        )
        for token in range(19)
        if all(token in row for row in free)
    )
    assert len(set(ends)) == 3, "rows that end at different steps, the last one too"
    steps = list(generate(model, prompts, 60, SAMPLED, seed=1, end_token_ids=[eos]))
    assert len(steps) == ends[-1] + 1
    for row, tokens in enumerate(free):
        end = tokens.index(eos)
        assert [step.active[row] for step in steps] == [i <= end for i in range(len(steps))]
        assert [step.tokens[row] for step in steps][: end + 1] == tokens[: end + 1]


def test_a_row_ends_at_any_of_its_end_tokens() -> None:
    model, prompts = build(CLASSIC), [prompt_of(3), prompt_of(9, 1)]
    free = by_row(list(generate(model, prompts, 60, SAMPLED, seed=1)))
    ends = [free[0][5], free[1][2], 99]
    rows = [Row(Request(ids, 60, SAMPLED, 1, r, end_token_ids=ends)) for r, ids in enumerate(prompts)]
    list(generate_rows(model, rows))
    for row, prompt, tokens in zip(rows, prompts, free, strict=True):
        assert row.ids == prompt + tokens[: 1 + min(tokens.index(end) for end in ends if end in tokens)]


@pytest.mark.parametrize("choice", [SAMPLED, PENALIZED], ids=["sampled", "penalized"])
def test_the_minimum_of_new_tokens_equals_transformers(choice: SamplingConfig) -> None:
    """Before it, no end token has any probability; the others keep their shares."""
    from transformers.generation import MinNewTokensLengthLogitsProcessor

    model, prompt, ends, generated = build(CLASSIC), prompt_of(5), [*range(9), 99], []
    row = Row(Request(prompt, 60, choice, 3, min_new_tokens=7, end_token_ids=ends))
    processor = MinNewTokensLengthLogitsProcessor(len(prompt), 7, ends[:-1])
    for step in generate_rows(model, [row]):
        seen = torch.tensor([prompt + generated])
        with torch.no_grad():
            expected = processor(seen, model(seen[:, -16:])[:, -1])
        torch.testing.assert_close(step.logits, expected, atol=1e-4, rtol=1e-4)
        generated += step.tokens
    assert 7 < len(generated) < 60
    assert [i for i, token in enumerate(generated) if token in ends] == [len(generated) - 1]


class Letters(CharTokenizer):
    """Characters, the last of which ends a document; some ids may have no token."""

    def __init__(self, eos_token_id: int | None = None, unused: Sequence[int] = ()):
        super().__init__(list("\nabcdefghijklmnopqr"))
        self.eos_token_id = self.bos_token_id = eos_token_id
        self.unused = tuple(unused)

    def unused_ids(self) -> tuple[int, ...]:
        return self.unused

    def token_bytes(self, i: int) -> bytes:
        if i in self.unused:
            raise TokenizerError(f"no token has the id {i}")
        return super().token_bytes(i)


@all_choices
def test_complete_gives_the_text_before_the_end(choice: SamplingConfig) -> None:
    model, prompts = build(CLASSIC), ["abc", "", "hijklmnopqrabcdefghijk"]
    ids = [[1, 2, 3], [0], Letters().encode(prompts[2])]
    free = by_row(list(generate(model, ids, 50, choice, seed=8)))
    assert complete(model, Letters(), prompts, 50, choice, seed=8) == [Letters().decode(row) for row in free]
    eos = free[0][7]
    rows = by_row(list(generate(model, [ids[0], [eos], ids[2]], 50, choice, seed=8)))
    cut = [row[: row.index(eos)] if eos in row else row for row in rows]
    assert complete(model, Letters(eos), prompts, 50, choice, seed=8) == [Letters().decode(row) for row in cut]
    assert len(cut[0]) < 50


# --- requests


MIXED = [
    Request(prompt_of(3, 3), 30, SamplingConfig(0.0), seed=1),
    Request(prompt_of(16, 16), 12, SAMPLED, seed=2, sample_index=5),
    Request(prompt_of(1, 1), 45, PENALIZED, seed=2),
    Request(prompt_of(40, 40), 1, SamplingConfig(2.0, min_p=0.1), seed=4),
    Request(prompt_of(9, 9), 21, SamplingConfig(0.0, repetition_penalty=1.5)),
    Request(prompt_of(4), 0, SAMPLED),
]


def run(model: GPT, requests: Sequence[Request]) -> tuple[list[Row], list[DecodeStep]]:
    rows = [Row(request) for request in requests]
    return rows, list(generate_rows(model, rows))


@both_families
def test_rows_with_different_settings_equal_each_request_alone(config: ModelConfig) -> None:
    """Also equal to the loop without a cache. Rows end at different steps, and the context is refilled."""
    model = build(config)
    rows, steps = run(model, MIXED)
    assert len(steps) == 45
    for r, (row, request) in enumerate(zip(rows, MIXED, strict=True)):
        count = request.max_new_tokens
        assert [step.active[r] for step in steps] == [i < count for i in range(45)]
        generated = row.ids[len(request.prompt) :]
        assert generated == [step.tokens[r] for step in steps][:count]
        assert generated == run(model, [request])[0][0].ids[len(request.prompt) :]
        if count:
            expected = naive(model, request.prompt, count, request.sampling, request.seed, request.sample_index)
            assert generated == expected[0]


def test_a_request_can_be_run_again() -> None:
    model = build(CLASSIC)
    assert [row.ids for row in run(model, MIXED)[0]] == [row.ids for row in run(model, MIXED)[0]]


def test_a_row_ended_by_the_caller_stops_at_once() -> None:
    model, rows = build(CLASSIC), [Row(Request(prompt_of(3), 20, SAMPLED)), Row(Request(prompt_of(5), 9, SAMPLED))]
    count = 0
    for count, _ in enumerate(generate_rows(model, rows), 1):
        rows[0].active = rows[0].active and count < 6
    assert (len(rows[0].ids), len(rows[1].ids), count) == (3 + 6, 5 + 9, 9)


@pytest.mark.parametrize(
    "wrong",
    [{"max_new_tokens": v} for v in (1.0, -1, True, None, "3")]
    + [{"min_new_tokens": v} for v in (4, -1, 1.5)]
    + [{"seed": v} for v in (1.5, None, "1")]
    + [{"stop": v} for v in (3, None, [3], "", ["a", ""])]
    + [{"end_token_ids": v} for v in (3, None, "3", [3.0], [True])],
    ids=str,
)
def test_a_request_of_wrong_types_or_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Request(**{"prompt": [1], "max_new_tokens": 3, "sampling": GREEDY} | wrong)


# --- what no token can be chosen from


@pytest.mark.parametrize(("value", "found"), [(math.nan, "1 logits are NaN"), (math.inf, "1 +inf"), (NEVER, "-inf")])
@pytest.mark.parametrize("choice", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_logits_that_are_not_numbers_are_named_by_step_and_row(
    value: float, found: str, choice: SamplingConfig
) -> None:
    """A row that has ended does not matter."""
    model = build(CLASSIC)
    calls: list[int] = []

    def spoil(module: object, inputs: object, logits: Tensor) -> Tensor:
        logits = logits.clone()
        calls.append(1)
        if len(calls) >= 3:
            logits[1, ..., slice(None) if value == NEVER else 4] = value
        return logits

    model.head.register_forward_hook(spoil)
    with pytest.raises(GenerationError, match=f"step 3, row 1: .*{re.escape(found)}"):
        list(generate(model, [prompt_of(3), prompt_of(5)], 6, choice))
    calls.clear()
    rows = [Row(Request(prompt_of(3), 6, choice)), Row(Request(prompt_of(5), 1, choice))]
    list(generate_rows(model, rows))
    assert len(rows[0].ids) == 3 + 6


def test_a_sample_of_a_model_without_numbers_does_not_end_the_training() -> None:
    model = build(CLASSIC)
    model.head.weight.data.fill_(math.nan)
    task = SimpleNamespace(config=SimpleNamespace(train=TrainConfig(), runtime=RuntimeConfig()), tokenizer=Letters())
    assert "19 logits are NaN" in Pretraining.sample(task, model, seed=0)


def test_a_prompt_beyond_the_model_is_refused_with_its_token() -> None:
    for token in (19, -1):
        with pytest.raises(GenerationError, match=f"row 1: the prompt has the token {token}, but .* 0 to 18"):
            list(generate(build(CLASSIC), [[1], [2, token]], 4, GREEDY))


@all_choices
def test_ids_without_a_token_are_never_generated(choice: SamplingConfig) -> None:
    model = build(CLASSIC)
    free = complete(model, Letters(), ["abc"], 50, choice)[0]
    unused = [0, *{Letters().encode(character)[0] for character in free[:3]}]
    full = complete(model, Letters(unused=unused), ["abc", ""], 50, choice)
    assert all(len(text) == 50 and not set(unused) & set(Letters().encode(text)) for text in full)


# --- stop strings


def test_stop_strings_end_the_text_of_their_own_row() -> None:
    model, tokenizer = build(CLASSIC), Letters()
    free = complete(model, tokenizer, ["abc", "hij"], 50, SAMPLED, seed=8)
    assert [len(text) for text in free] == [50, 50]
    stop = free[0][20:23]
    end = free[0].index(stop)
    requests = [
        Request(encode_prompt(tokenizer, "abc"), 50, SAMPLED, 8, 0, [stop, "never"]),
        Request(encode_prompt(tokenizer, "hij"), 50, SAMPLED, 8, 1),
    ]
    steps = list(generate_text(model, tokenizer, requests))
    streamers = steps[-1][1]
    assert [streamer.text for streamer in streamers] == [free[0][:end], free[1]]
    assert len(streamers[0].tokens) == end + 3, "the tokens of the stop string were generated"
    assert [step.active[0] for step, _ in steps] == [i < end + 3 for i in range(50)]
    assert complete(model, tokenizer, ["abc"], 50, SAMPLED, seed=8, stop=stop) == [free[0][:end]], "one string will do"
    assert len(list(generate_text(model, tokenizer, requests[:1]))) == end + 3, "then there is no more to generate"


def test_text_is_complete_at_every_end() -> None:
    """Held back as the beginning of a stop string; final when the tokens or the text end."""
    model, tokenizer = build(CLASSIC), Letters()
    free = complete(model, tokenizer, ["abc"], 12, SAMPLED, seed=8)[0]
    assert complete(model, tokenizer, ["abc"], 12, SAMPLED, seed=8, stop=[free[-2:] + "x"]) == [free]
    ending = Letters(tokenizer.encode(free[-1])[0])
    ending.bos_token_id = None
    cut = free[: free.index(free[-1])]
    assert complete(model, ending, ["abc"], 12, SAMPLED, seed=8, stop=[cut[-2:] + "x"]) == [cut]
    assert complete(model, tokenizer, ["abc", ""], 0, SAMPLED) == ["", ""]
    with pytest.raises(ConfigError, match="empty"):
        complete(model, tokenizer, ["abc"], 5, SAMPLED, stop=["x", ""])


# --- prompts


def test_encode_prompt() -> None:
    assert encode_prompt(Letters(), "ab") == [1, 2]
    assert encode_prompt(Letters(), "") == [0], "a line end"
    assert encode_prompt(CharTokenizer(["x", "\n"]), "") == [1]
    assert encode_prompt(CharTokenizer(["x", "y"]), "") == [0], "no line end: the first token there is"
    assert encode_prompt(Letters(eos_token_id=18), "") == [18]
    ending = Letters(eos_token_id=18)
    ending.bos_token_id = None
    assert encode_prompt(ending, "") == [0], "models were not trained to continue after the end token"
    assert encode_prompt(Letters(eos_token_id=18), "ab") == [1, 2], "a prompt is encoded as it is"
    with pytest.raises(TokenizerError, match="'Z'"):
        encode_prompt(Letters(), "aZ")


def test_a_prompt_without_tokens_is_as_an_empty_one() -> None:
    class Stripping(Letters):
        def encode(self, text: str, allow_special: bool = False) -> list[int]:
            return super().encode(text.strip(" "))

    for prompt in ("", " ", "   "):
        assert encode_prompt(Stripping(), prompt) == [0]
        assert encode_prompt(Stripping(eos_token_id=18), prompt) == [18]
        assert encode_prompt(Stripping(unused=[0, 1]), prompt) == [2], "the first that is a token"
    assert complete(build(CLASSIC), Stripping(), [" "], 9, GREEDY) == complete(
        build(CLASSIC), Letters(), [""], 9, GREEDY
    )
