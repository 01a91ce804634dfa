"""Speculative decoding, against the same generation without it: equal tokens, logits and random numbers."""

import dataclasses
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Cli, thread_count
from glassgpt import api
from glassgpt.config import ModelConfig
from glassgpt.config.presets import MODERN
from glassgpt.errors import ConfigError, GenerationError
from glassgpt.inference.compiled import CompiledDecoder
from glassgpt.inference.conversation import ChatSession
from glassgpt.inference.decode import DecodeStep, Request, Row, generate_rows, generate_text
from glassgpt.inference.decoders import EagerDecoder
from glassgpt.inference.speculative import DraftModel, Pace, PromptLookup, SpeculativeDecoder, add_speculation
from glassgpt.model import GPT, KVCache
from glassgpt.sampling import SamplingConfig
from glassgpt.tokenizer import CharTokenizer
from talking import talker

GREEDY, SAMPLED = SamplingConfig(0.0), SamplingConfig(0.4, top_k=12, top_p=0.95)
PENALIZED = SamplingConfig(0.5, min_p=0.02, repetition_penalty=1.1)
CLASSIC = ModelConfig(vocab_size=19, block_size=24, n_layer=2, n_head=4, n_embd=32, tie_embeddings=False)
LLAMA = dataclasses.replace(CLASSIC, **{**MODERN, "qk_norm": False}, n_kv_head=2, intermediate_size=48)
CONFIGS = {
    "gpt2": CLASSIC,
    "llama": LLAMA,
    "mistral": dataclasses.replace(LLAMA, sliding_window=5),
    "qwen2": dataclasses.replace(LLAMA, qkv_bias=True, sliding_window=4, first_window_layer=1),
    "qwen3": dataclasses.replace(LLAMA, qk_norm=True, head_dim=12, tie_embeddings=True),
}
all_families = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
all_choices = pytest.mark.parametrize("choice", [GREEDY, SAMPLED, PENALIZED], ids=["greedy", "sampled", "penalized"])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with thread_count(1):
        yield


def build(config: ModelConfig, seed: int = 0, noise_scale: float = 0.0) -> GPT:
    """A model in float64, in which no rounding decides a token; ``noise_scale`` above 0 gives one that resembles it."""
    model = GPT(config)
    generator, other = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator) + noise_scale * torch.randn(p.shape, generator=other)
        p.data = 1 + 0.2 * noise if "norm" in name and name.endswith("weight") else 0.4 * noise
    model.tie_weights_and_build_rope()
    return model.eval().double()


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """Tokens in which short pieces come again and again."""
    chooser = random.Random(seed)
    pieces = [[chooser.randrange(19) for _ in range(4)] for _ in range(3)]
    return [token for _ in range(length) for token in chooser.choice(pieces)][:length]


def run(model: GPT, request: Request, decoder: Any = None, **settings: Any) -> tuple[list[int], list[DecodeStep]]:
    row = Row(request)
    steps = list(generate_rows(model, [row], decoder=decoder, **settings))
    return row.ids, steps


def assert_equal_steps(steps: Sequence[DecodeStep], expected: Sequence[DecodeStep]) -> None:
    assert [(step.tokens, step.active, step.uniform) for step in steps] == [
        (step.tokens, step.active, step.uniform) for step in expected
    ]
    torch.testing.assert_close(torch.stack([s.logits for s in steps]), torch.stack([s.logits for s in expected]))


def check(model: GPT, request: Request, *decoders: SpeculativeDecoder, **settings: Any) -> list[int]:
    expected_ids, expected = run(model, request, **settings)
    for decoder in decoders:
        ids, steps = run(model, request, decoder, **settings)
        assert ids == expected_ids
        assert_equal_steps(steps, expected)
    return expected_ids


def lookup(model: GPT) -> SpeculativeDecoder:
    return SpeculativeDecoder(EagerDecoder(model), PromptLookup())


def drafted_by(draft: GPT, model: GPT) -> SpeculativeDecoder:
    decoder = SpeculativeDecoder(EagerDecoder(model), DraftModel(draft, model))
    decoder.pace.slope = decoder.pace.first_slope = 0.0  # draft, as if the model were much larger
    return decoder


class Known:
    """Drafts the text that is known to come, with wrong tokens now and then, and as many as it likes."""

    cost = 0.0

    def __init__(self, text: Sequence[int], seed: int) -> None:
        self.text, self.chooser = text, random.Random(seed)

    def begin(self, row: Row) -> None:
        self.row = row

    def propose(self, count: int) -> list[int]:
        here = len(self.row.ids)
        drafts = self.text[here : here + self.chooser.randint(0, count)]
        return [token if self.chooser.random() < 0.7 else self.chooser.randrange(19) for token in drafts]


# --- equal to generation without speculation


@all_choices
@all_families
def test_every_family_generates_the_same(config: ModelConfig, choice: SamplingConfig) -> None:
    """Past the end of the context, several times."""
    model = build(config)
    request = Request(prompt_of(14), 60, choice, seed=14)
    text = check(model, request, lookup(model))
    decoder = SpeculativeDecoder(EagerDecoder(model), Known(text, 0))
    check(model, request, decoder)
    assert 10 < decoder.accepted < decoder.drafted


@pytest.mark.parametrize("seed", range(16))
def test_random_requests_generate_the_same(seed: int) -> None:
    """Any settings, end tokens, minimum, padded vocabulary, context and drafts."""
    chooser = random.Random(seed)
    config = dataclasses.replace(chooser.choice(list(CONFIGS.values())), block_size=chooser.randint(1, 30))
    model = build(config, seed)
    most = chooser.randint(1, 60)
    request = Request(
        prompt_of(chooser.randint(1, 40), seed), most,
        SamplingConfig(
            chooser.choice([0.0, 0.3, 1.0]), chooser.choice([0, 5]), chooser.choice([1.0, 0.9]),
            chooser.choice([0.0, 0.05]), chooser.choice([1.0, 1.2, 0.5]),
        ),
        seed, min_new_tokens=chooser.randint(0, most), end_token_ids=chooser.sample(range(25), chooser.randint(0, 3)),
    )  # fmt: skip
    draft = build(dataclasses.replace(config, block_size=chooser.randint(1, 40)), seed, noise_scale=0.02)
    settings = {"vocab_size": chooser.randint(12, 19), "unused_ids": chooser.sample(range(12), 2)}
    text = check(model, request, lookup(model), drafted_by(draft, model), **settings)
    check(model, request, SpeculativeDecoder(EagerDecoder(model), Known(text, seed)), **settings)


class Letters(CharTokenizer):
    """19 characters."""

    def __init__(self) -> None:
        super().__init__(list("\nabcdefghijklmnopqr"))


def test_stop_strings_end_the_same_text() -> None:
    """The consumer ends the row between two drafted tokens; the decoder then serves the next request."""
    model, ended = build(LLAMA), 0
    decoder = drafted_by(build(LLAMA), model)
    free = Letters().decode(run(model, Request(prompt_of(14), 60, SAMPLED))[0][14:])
    for at in range(5, 50, 6):
        request = Request(prompt_of(14), 60, SAMPLED, stop=free[at : at + 2])
        texts = []
        for decode in (None, decoder):
            *_, (_, (streamer,)) = generate_text(model, Letters(), [request], decoder=decode)
            texts.append(streamer.text)
        assert texts[0] == texts[1] == free[: free.index(request.stop)]
        ended += len(decoder._ahead) > 0
    assert ended > 3, "most texts end within the drafts"


def test_a_cache_that_is_kept_continues_the_same() -> None:
    """As in a chat: the cache holds the first tokens of the prompt, and afterwards all tokens that were read."""
    model, prompt, caches = build(LLAMA), prompt_of(12), []
    for decoder in (None, lookup(model)):
        cache = KVCache(model.config, 1, capacity=24, dtype=torch.float64)
        model(torch.tensor([prompt[:7]]), cache=cache)
        ids, _ = run(model, Request(prompt, 12, GREEDY), decoder, cache=cache)
        assert cache.lengths == [23], "the last token is chosen and not read"
        caches.append((ids, cache.keys[:, :, :, :23], cache.values[:, :, :, :23]))
    assert caches[0][0] == caches[1][0]
    torch.testing.assert_close(caches[0][1:], caches[1][1:])


def test_several_rows_are_decoded_without_speculation() -> None:
    model = build(CLASSIC)
    decoder = lookup(model)
    requests = [Request(prompt_of(14, r), 30, SAMPLED, 1, r) for r in range(3)]
    results = [[Row(request) for request in requests] for _ in range(2)]
    for rows, decode in zip(results, (None, decoder), strict=True):
        list(generate_rows(model, rows, decoder=decode))
    assert [row.ids for row in results[0]] == [row.ids for row in results[1]]
    assert (decoder.drafted, decoder.summary()) == (0, "")


def test_damaged_logits_give_the_same_error_at_the_same_step() -> None:
    model = build(LLAMA)
    free = run(model, Request(prompt_of(14), 60, SAMPLED))[0][14:]
    late = next(token for i, token in enumerate(free) if i > 4 and token not in free[:i] + prompt_of(14))
    model.token_embedding.weight.data[late] = float("nan")
    messages = []
    for decoder in (None, lookup(model)):
        with pytest.raises(GenerationError) as caught:
            run(model, Request(prompt_of(14), 60, SAMPLED), decoder)
        messages.append(str(caught.value))
    assert len(set(messages)) == 1


# --- what is drafted


@all_choices
def test_a_draft_model_that_equals_the_model_is_always_right(choice: SamplingConfig) -> None:
    """It draws with the random numbers that the model draws with."""
    config = dataclasses.replace(LLAMA, block_size=200)
    model = build(config)
    decoder = drafted_by(build(config), model)
    check(model, Request(prompt_of(14), 100, choice, seed=3), decoder)
    assert decoder.accepted == decoder.drafted == 88
    assert (decoder.tokens, decoder.passes) == (99, 11), "MAX_DRAFTS + 1 tokens per pass"


def test_prompt_lookup_equals_a_search_from_the_end() -> None:
    chooser, found = random.Random(0), 0
    row = Row(Request([0], 400, GREEDY))
    proposer = PromptLookup()
    proposer.begin(row)
    for _ in range(400):
        row.append(chooser.randrange(4))
        ids, expected = row.ids, list[int]()
        for n in (3, 2):
            ends = [end for end in range(n, len(ids)) if ids[end - n : end] == ids[-n:]]
            if len(ids) > n and ends:
                text = list(ids)
                for i in range(7):
                    text.append(text[ends[-1] + i])
                expected = text[len(ids) :]
                break
        if chooser.random() < 0.7:  # not asked after every token
            assert proposer.propose(7) == expected
            found += len(expected) > 0
    assert found > 200


def test_a_draft_model_reads_each_token_once() -> None:
    """Its own cache keeps what is right of the drafts; a second row keeps the common beginning."""
    config = dataclasses.replace(CLASSIC, block_size=200)
    model, draft, read = build(config), build(config, noise_scale=0.05), []
    draft.blocks[0].register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].size(1)))
    decoder = drafted_by(draft, model)
    prompt = prompt_of(60)
    check(model, Request(prompt, 50, SAMPLED), decoder)
    assert sum(read) < 60 + 50 + decoder.drafted
    read.clear()
    check(model, Request([*prompt, 1, 2, 3, 4], 1, SAMPLED), decoder)
    check(model, Request([*prompt, 1, 2, 3, 4], 5, SAMPLED), decoder)
    assert sum(read) < 60


# --- how many tokens are drafted


def test_drafts_that_are_rejected_become_rare() -> None:
    pace, drafted = Pace(0.1, timed=False), 0
    for _ in range(1000):
        drafted += (count := pace.count(8))
        pace.add_acceptance(count, 0)
    assert 0 < drafted * pace.slope < 0.03 * 1000


@pytest.mark.parametrize("slope", [0.02, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("right", [0.1, 0.5, 0.8, 0.95])
def test_the_measured_pace_is_near_the_best_and_never_slow(slope: float, right: float) -> None:
    """Simulated time: drafts are right with a probability, each costs a part of a pass, some passes are interrupted."""
    chooser, pace, tokens, seconds = random.Random(1), Pace(0.1, timed=True), 0, 0.0
    for _ in range(600):
        count = pace.count(8)
        accepted = next((i for i in range(count) if chooser.random() > right), count)
        cost = 1 + slope * count
        pace.add_acceptance(count, accepted)
        pace.add_seconds(cost * (20 if chooser.random() < 0.02 else chooser.uniform(0.95, 1.1)), count)
        tokens, seconds = tokens + 1 + accepted, seconds + cost
    best = max(sum(right**i for i in range(n + 1)) / (1 + slope * n) for n in range(9))
    assert tokens / seconds > max(0.97, 0.85 * best)


class OneByOne(EagerDecoder):
    """Reads the tokens of a pass one after the other, as if by the kernels."""

    name = "kernels"

    def __call__(self, idx: torch.Tensor, cache: KVCache) -> torch.Tensor:
        return torch.cat([EagerDecoder.__call__(self, token, cache) for token in idx.split(1, dim=1)], dim=1)


class Together(EagerDecoder):
    """Depends on the number of tokens in the pass, in the last bits."""

    name = "kernels"

    def __call__(self, idx: torch.Tensor, cache: KVCache) -> torch.Tensor:
        return super().__call__(idx, cache) * (1 + 1e-6 * idx.size(1))


def test_time_decides_only_where_it_cannot_change_a_token() -> None:
    """Then the text is the same to the last bit, whatever the time. Elsewhere "auto" is off."""
    model, tokenizer = build(LLAMA), Letters()
    for decoder in (EagerDecoder(model), Together(model)):
        assert add_speculation(decoder, "auto", model, tokenizer) is decoder
        explicit = add_speculation(decoder, "lookup", model, tokenizer)
        assert isinstance(explicit, SpeculativeDecoder)
        assert not explicit.pace.timed
    decoder = add_speculation(OneByOne(model), "auto", model, tokenizer)
    assert isinstance(decoder, SpeculativeDecoder)
    assert decoder.pace.timed
    request = Request(prompt_of(14), 80, SAMPLED)
    steps = [run(model, request, decode)[1] for decode in (OneByOne(model), decoder)]
    assert decoder.drafted
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(*steps, strict=True))


# --- where it is used


def test_a_chat_answers_the_same() -> None:
    """Over several answers, for which the caches of both models are kept."""
    model, tokenizer = talker(ends=False)
    settings, answers = Request((), 30, SAMPLED), []
    for decoder in (None, lookup(model), drafted_by(talker(ends=False)[0], model)):
        session = ChatSession(model, tokenizer, settings, decoder=decoder)
        answers.append(["".join(session.stream(session.ask(text))) for text in ("abcabc", "no", "abcabcabc")])
        assert decoder is None or decoder.accepted
    assert answers[0] == answers[1] == answers[2]


def test_the_options_of_the_command_and_of_generate(cli: Cli, tmp_path: Path) -> None:
    model, tokenizer = talker(ends=False)
    api.save(model, tokenizer, tmp_path / "model")
    smaller = build(dataclasses.replace(CLASSIC, n_layer=1, tie_embeddings=True))
    api.save(smaller, Letters(), tmp_path / "letters")
    command = ["sample", "model", "-p", "abcabcabc", "-n", 60, "--temperature", 0.3, "--decode", "eager"]
    code, plain, error = cli(*command)
    assert (code, "speculation" in error) == (0, False), "auto is off where rounding may change the text"
    code, text, error = cli(*command, "--speculate", "lookup")
    assert (code, text) == (0, plain)
    assert re.search(r"speculation: 1\.\d tokens per pass of the model; \d+ of \d+ drafted tokens accepted", error)
    code, text, error = cli(*command, "--speculate", "model")
    assert (code, text, "nothing was drafted" in error) == (0, plain, True), "a pass of the same model saves no time"
    for wrong, message in (("letters", "its 19 tokens are not the 258"), ("x", "lookup or a model"), ("", "is empty")):
        code, text, error = cli(*command, f"--speculate={wrong}")
        assert (code, text, message in error) == (2, "", True)
    code, text, error = cli(*command, "--speculate", "lookup", "--num-samples", 2)
    assert (code, "without speculation" in error) == (0, True)
    arguments: dict[str, Any] = {"max_new_tokens": 60, "temperature": 0.3, "decode": "eager"}
    for how in ("lookup", (model, tokenizer)):
        assert "abcabcabc" + api.generate(model, tokenizer, "abcabcabc", speculate=how, **arguments) + "\n" == plain
    with pytest.raises(ConfigError, match="compiled do not go together"):
        add_speculation(CompiledDecoder(model, compile=False), "lookup", model, tokenizer)
    with pytest.raises(ConfigError, match="speculate: expected off, auto, lookup"):
        api.generate(model, tokenizer, "a", speculate="on")
