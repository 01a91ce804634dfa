"""Generation, against a loop that reads everything again for every token."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import thread_count
from glassgpt.config import ModelConfig
from glassgpt.config.presets import MODERN
from glassgpt.errors import TokenizerError
from glassgpt.inference.decode import Step, TextStream, complete, generate, start_ids
from glassgpt.model import GPT, ExplicitAttention
from glassgpt.runtime import Runtime
from glassgpt.sampling import SamplingConfig, UniformStreams, next_token
from glassgpt.tokenizer import CharTokenizer

CPU = Runtime(torch.device("cpu"), torch.float32, 1, compile=False, reason="test")
GREEDY, SAMPLED = SamplingConfig(0.0), SamplingConfig(0.9, top_k=12, top_p=0.95)
CLASSIC = ModelConfig(vocab_size=19, block_size=16, n_layer=2, n_head=4, n_embd=32, tie_embeddings=False)
CONFIGS = {
    "classic": CLASSIC,
    "modern-gqa": dataclasses.replace(CLASSIC, **MODERN, n_kv_head=2, head_dim=12, intermediate_size=48),
}
both_families = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
both_choices = pytest.mark.parametrize("choice", [GREEDY, SAMPLED], ids=["greedy", "sampled"])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with thread_count(1):
        yield


def build(config: ModelConfig, seed: int = 0) -> GPT:
    """A model with opinions: its next token depends on all that it sees."""
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
    """The policy, as arithmetic: how many tokens are seen at each step. Full: go on from the newest half."""
    yield from range(min(prompt, context), context + 1)
    while True:
        yield from range(max(1, context // 2), context + 1)


@torch.no_grad()
def naive(
    model: GPT, prompt: Sequence[int], n: int, choice: SamplingConfig, seed: int, row: int
) -> tuple[list[int], Tensor]:
    """Tokens, and the logits ``[n, V]`` they came from; no cache, no batch."""
    streams, seen, logits = UniformStreams(seed, row + 1), list(prompt), []
    for length in itertools.islice(window_lengths(len(prompt), model.config.block_size), n):
        logits.append(model(torch.tensor([seen[-length:]]))[0, -1])
        seen += next_token(logits[-1][None], choice, streams.next()[row:]).tolist()
    return seen[len(prompt) :], torch.stack(logits)


def by_row(steps: Sequence[Step]) -> list[list[int]]:
    return [list(row) for row in zip(*(step.tokens for step in steps), strict=True)]


def check(model: GPT, prompts: list[list[int]], n: int, choice: SamplingConfig, seed: int = 5) -> list[Step]:
    steps = list(generate(model, prompts, n, choice, seed=seed))
    assert len(steps) == n
    made, logits = by_row(steps), torch.stack([step.logits for step in steps])  # [n, B, V]
    for row, prompt in enumerate(prompts):
        tokens, expected = naive(model, prompt, n, choice, seed, row)
        torch.testing.assert_close(logits[:, row], expected, atol=1e-4, rtol=1e-4)
        assert made[row] == tokens
    return steps


# --- equal to the naive loop


@both_choices
@both_families
def test_within_the_context(config: ModelConfig, choice: SamplingConfig) -> None:
    check(build(config), [prompt_of(5), prompt_of(5, 1)], 12, choice)


@both_choices
@both_families
def test_a_ragged_batch_equals_each_prompt_alone(config: ModelConfig, choice: SamplingConfig) -> None:
    """Over several refills, which the rows reach at different steps."""
    check(build(config), [prompt_of(n, n) for n in (3, 16, 1, 40, 9, 17)], 40, choice)


@both_choices
@both_families
@pytest.mark.parametrize("context", [16, 7, 2, 1])
def test_four_contexts_long(config: ModelConfig, choice: SamplingConfig, context: int) -> None:
    model = build(dataclasses.replace(config, block_size=context))
    steps = check(model, [prompt_of(3), prompt_of(1), prompt_of(context)], 4 * context + 5, choice)
    if context == 16:
        assert min(len(set(row)) for row in by_row(steps)) > 4, "a loop of few tokens would prove little"


@pytest.mark.parametrize("length", [15, 16, 17, 50])
def test_of_a_long_prompt_the_newest_context_is_read(length: int) -> None:
    model, prompt = build(CLASSIC), prompt_of(length)
    first = check(model, [prompt], 20, SAMPLED)[0]
    other = [(token + 1) % 19 for token in prompt[:-16]] + prompt[-16:]
    again = next(iter(generate(model, [other], 1, SAMPLED, seed=5)))
    assert torch.equal(first.logits, again.logits)


def test_a_step_costs_one_tokens_work_and_a_refill_half_a_context() -> None:
    model, seen = build(CLASSIC), []
    model.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].size(1)))
    list(generate(model, [prompt_of(10)], 27, GREEDY))
    assert seen == [10, *[1] * 6, 8, *[1] * 8, 8, *[1] * 8, 8, 1]


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
    crowd = [prompt, prompt_of(15), prompt_of(1), prompt]
    made = by_row(list(generate(model, crowd, 40, SAMPLED, seed=3)))
    assert made[0] == alone
    assert made[3] != alone, "rows draw from streams of their own"
    assert by_row(list(generate(model, crowd, 40, SAMPLED, seed=4)))[0] != alone


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


def test_steps_carry_what_decided_them() -> None:
    for step in generate(build(CLASSIC), [prompt_of(3), prompt_of(7)], 20, SAMPLED, seed=2):
        assert step.tokens == next_token(step.logits, SAMPLED, step.uniform).tolist()
        assert step.logits.shape == (2, 19)
        assert step.logits.dtype == torch.float32


def test_nothing_is_made_where_nothing_is_asked() -> None:
    assert list(generate(build(CLASSIC), [prompt_of(3)], 0, GREEDY)) == []


# --- the end token


def test_a_row_that_ends_stops_while_the_others_go_on() -> None:
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
    steps = list(generate(model, prompts, 60, SAMPLED, seed=1, eos_token_id=eos))
    assert len(steps) == ends[-1] + 1
    for row, tokens in enumerate(free):
        end = tokens.index(eos)
        assert [step.active[row] for step in steps] == [i <= end for i in range(len(steps))]
        assert [step.tokens[row] for step in steps][: end + 1] == tokens[: end + 1]


class Letters(CharTokenizer):
    """Characters, the last of which ends a document."""

    def __init__(self, eos_token_id: int | None = None):
        super().__init__(list("\nabcdefghijklmnopqr"))
        self.eos_token_id = self.bos_token_id = eos_token_id


@both_choices
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


# --- text as it comes


class Bytes:
    """A byte is a token."""

    def token_bytes(self, i: int) -> bytes:
        return bytes([i])

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=12))
def test_a_character_comes_whole_with_its_last_byte(text: str) -> None:
    stream = TextStream(Bytes())
    for character in text:
        pieces = [stream.push(byte) for byte in character.encode("utf-8")]
        assert pieces == [""] * (len(pieces) - 1) + [character]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=24))
def test_of_any_bytes_the_stream_shows_a_growing_part_of_their_text(data: bytes) -> None:
    """A model may produce bytes that are no text; they neither stop the stream nor garble what follows."""
    stream = TextStream(Bytes())
    shown = ""
    for i, byte in enumerate(data, 1):
        shown += stream.push(byte)
        whole = Bytes().decode(list(data[:i]))
        assert whole.startswith(shown)
        assert set(whole[len(shown) :]) <= {"\ufffd"}
    assert shown + "".join(stream.push(byte) for byte in b"end") == data.decode("utf-8", errors="replace") + "end"


def test_tokens_of_several_characters_and_parts_of_them() -> None:
    class Pieces(Bytes):
        pieces = (b"Gr", "ü".encode()[:1], "ü".encode()[1:] + b"ns", "pa\N{EURO SIGN}".encode()[:-1], b"\xac!")

        def token_bytes(self, i: int) -> bytes:
            return self.pieces[i]

    stream = TextStream(Pieces())
    assert [stream.push(i) for i in (0, 1, 2, 3, 4, 0)] == ["Gr", "", "üns", "pa", "€!", "Gr"]


# --- where to start


def test_start_ids() -> None:
    assert start_ids(Letters(), "ab") == [1, 2]
    assert start_ids(Letters(), "") == [0], "a line end"
    assert start_ids(CharTokenizer(["x", "\n"]), "") == [1]
    assert start_ids(CharTokenizer(["x", "y"]), "") == [0], "no line end: the first token there is"
    assert start_ids(Letters(eos_token_id=18), "") == [18]
    ending = Letters(eos_token_id=18)
    ending.bos_token_id = None
    assert start_ids(ending, "") == [0], "models were not trained to go on from the end"
    assert start_ids(Letters(eos_token_id=18), "ab") == [1, 2], "a prompt is read as it is"
    with pytest.raises(TokenizerError, match="'Z'"):
        start_ids(Letters(), "aZ")
