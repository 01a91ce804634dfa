"""Encoded conversations in batches: only what the mask says has a gradient, and packing changes only rounding."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glassgpt.config import ModelConfig, presets
from glassgpt.data.batch import IGNORE_INDEX, Batch
from glassgpt.data.conversations.batches import ChatBatches, split_rows
from glassgpt.data.conversations.encoding import MAX_CHARACTERS_PER_TOKEN, EncodedRows, Row, encode_rows
from glassgpt.data.conversations.packing import pack
from glassgpt.data.conversations.rows import Conversation
from glassgpt.model import GPT
from glassgpt.tokenizer import BPETokenizer
from glassgpt.tokenizer.chat import CHATML, encode_trained
from glassgpt.training.objective import answer_loss, next_token_loss

TOKENIZER = BPETokenizer.train("the cat sat on the mat " * 9, 270, special=["<|im_start|>", "<|im_end|>"])
T = 96
SHAPE = {"vocab_size": TOKENIZER.vocab_size, "block_size": T, "n_layer": 2, "n_head": 2, "n_embd": 16}
CONFIGS = {"learned positions": ModelConfig(**SHAPE), "RoPE": ModelConfig(**SHAPE, **presets.MODERN)}


def talk(*contents: str, line: int = 1) -> Conversation:
    messages = tuple({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents))
    return Conversation(line, messages)


def encode(*conversations: Conversation, max_tokens: int = T + 1) -> EncodedRows:
    return encode_rows(conversations, TOKENIZER, CHATML, max_tokens)


def some_rows(count: int = 14) -> list[Row]:
    """Conversations of one to three answers, of different lengths."""
    generator = random.Random(1)
    word = lambda: " ".join(generator.choices(["the", "cat", "sat", "on", "a", "mat"], k=generator.randint(1, 3)))  # noqa: E731
    talks = [talk(*(word() for _ in range(2 * generator.randint(1, 3))), line=line) for line in range(1, count + 1)]
    encoded = encode(*talks)
    assert len(encoded.rows) == count and not encoded.problems
    return encoded.rows


ROWS = some_rows()


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> GPT:
    made = GPT(CONFIGS[request.param])
    made.init_weights(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(5)  # attention that is far from uniform
    return made.double()


def logits_of(model: GPT, batch: Batch) -> Tensor:
    return model(batch.idx, position_ids=batch.position_ids, document_ids=batch.document_ids)


def loss_alone(model: GPT, row: Row) -> Tensor:
    """By brute force: minus the log-probability of each trained token after those before it."""
    ids = torch.from_numpy(row.ids.astype(np.int64))
    log_p = model(ids[None, :-1])[0].log_softmax(-1)
    return -sum(log_p[at - 1, ids[at]] for at in range(1, len(ids)) if row.trained[at])  # type: ignore[return-value]


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [False, True])
def test_the_gradient_by_the_logits_is_zero_exactly_where_the_mask_says(model: GPT, packing: bool) -> None:
    batch = ChatBatches(ROWS, T, 6, 0, packing).get(0)
    counts = batch.targets != IGNORE_INDEX
    assert 0 < counts.float().mean() < 0.6 and batch.idx.shape == batch.targets.shape
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        return lambda module, inputs, output: (output.retain_grad(), kept.update({name: output}))[0]

    model.final_norm.register_forward_hook(keep("hidden"))  # type: ignore[arg-type]
    model.head.register_forward_hook(keep("logits"))  # type: ignore[arg-type]
    next_token_loss(model, batch).backward()
    for name in ("hidden", "logits"):
        gradient = kept[name].grad
        assert gradient is not None
        assert torch.equal(gradient.view(*batch.idx.shape, -1).abs().amax(-1) > 0, counts), name
    answer_loss(model, batch).backward()  # has no logits but those that count
    gradient = kept["hidden"].grad
    assert gradient is not None and torch.equal(gradient.abs().amax(-1) > 0, counts)
    assert len(kept["logits"]) == counts.sum()


def test_the_mask_of_a_batch_is_the_answers_of_its_conversations() -> None:
    said: Counter[str] = Counter()
    batches = ChatBatches(ROWS, T, batch_size=4, seed=0, packing=True)
    for row in range(batches.num_rows):
        batch = batches.get(row // 4, slice(row % 4, row % 4 + 1))
        for _, run in itertools.groupby(batch.targets[0].tolist(), key=lambda i: i == IGNORE_INDEX):
            ids = list(run)
            said.update([TOKENIZER.decode(ids)] if ids[0] != IGNORE_INDEX else [])
    texts = [TOKENIZER.decode(row.ids.tolist()).split("<|im_start|>assistant\n")[1:] for row in ROWS]
    assert said == Counter(f"{part.partition('<|im_end|>')[0]}<|im_end|>" for parts in texts for part in parts)


def test_the_loss_and_gradients_are_those_of_each_conversation_alone(model: GPT) -> None:
    """Packed, unpacked, and cut into micro-batches of any size; in float64."""
    alone = torch.stack([loss_alone(model, row) for row in ROWS]).sum()
    expected = torch.autograd.grad(alone, model.token_embedding.weight)[0]
    for packing, size, loss in itertools.product((False, True), (3, 99), (next_token_loss, answer_loss)):
        batches = ChatBatches(ROWS, T, batch_size=len(ROWS), seed=0, packing=packing)
        batch = batches.get(0, slice(0, batches.num_rows))  # an epoch
        assert batch.num_loss_tokens() == batches.num_trained
        total = torch.zeros((), dtype=torch.float64)
        model.zero_grad()
        for start in range(0, batches.num_rows, size):
            part = loss(model, batch.micro_batch(start, min(start + size, batches.num_rows), torch.device("cpu")))
            part.backward()
            total += part.detach()
        assert float(total) == pytest.approx(float(alone.detach()), rel=1e-6)  # the loss is computed in float32
        gradient = model.token_embedding.weight.grad
        assert gradient is not None
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


def test_packed_conversations_do_not_see_each_other(model: GPT) -> None:
    batches = ChatBatches(ROWS, T, batch_size=2, seed=0, packing=True)
    batch = batches.get(0)
    assert batch.document_ids is not None and batch.position_ids is not None
    assert (batch.document_ids.amax(1) > 0).all()
    logits = logits_of(model, batch)
    for document in range(int(batch.document_ids[0].max()) + 1):
        own = batch.document_ids[0] == document
        assert torch.equal(batch.position_ids[0][own], torch.arange(int(own.sum())))
        changed = batch.idx.clone()
        changed[0, own] = (changed[0, own] + 1) % SHAPE["vocab_size"]
        other = logits_of(model, batch._replace(idx=changed))
        torch.testing.assert_close(other[0, ~own], logits[0, ~own], rtol=0, atol=1e-12)
        assert (other[0, own] - logits[0, own]).abs().amax() > 1e-3


# --- batches ---------------------------------------------------------------------------------------------------------


def row_of(line: int, length: int) -> Row:
    return Row(line, np.arange(length, dtype=np.int32), np.arange(length) % 3 == 1)


ROW_LISTS = st.lists(st.integers(2, T + 1), min_size=1, max_size=25).map(
    lambda lengths: [row_of(line, length) for line, length in enumerate(lengths)]
)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(rows=ROW_LISTS, batch_size=st.integers(1, 7), seed=st.integers(0, 3), packing=st.booleans())
def test_every_epoch_has_each_conversation_once(rows: list[Row], batch_size: int, seed: int, packing: bool) -> None:
    batches = ChatBatches(rows, T, batch_size, seed, packing)
    seen, padding, trained = list[int](), 0, 0
    for sample in range(3 * batches.num_rows):
        k, place = divmod(sample, batch_size)
        batch, whole = batches.get(k, slice(place, place + 1)), batches.get(k)
        assert batch.idx.shape == (1, whole.idx.shape[1]) and torch.equal(batch.targets[0], whole.targets[place])
        positions = torch.arange(whole.idx.shape[1])
        document_ids = batch.document_ids[0] if batch.document_ids is not None else torch.zeros_like(positions)
        assert (batch.document_ids is None) == (batch.position_ids is None) == (not packing)
        members = [int((document_ids == d).sum()) for d in range(int(document_ids.max()) + 1)]
        if sample < batches.num_rows:
            trained += batch.num_loss_tokens()
            padding += whole.idx.shape[1]
        seen += members if packing else [whole.idx.shape[1]]
    assert trained == batches.num_trained == sum(int(row.trained[1:].sum()) for row in rows)
    assert padding - batches.num_tokens == batches.num_padding
    order = batches._order(np.arange(3 * batches.num_rows)).reshape(3, -1)
    for epoch in order:
        assert sorted(i for place in epoch for i in batches.packs[place]) == list(range(len(rows)))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 12), max_size=7))
def test_packs_hold_each_item_once_and_are_few(lengths: list[int]) -> None:
    packs = pack(lengths, 12)
    assert sorted(i for members in packs for i in members) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in members) <= 12 for members in packs)
    assert len(packs) <= 11 / 9 * fewest_packs(sorted(lengths, reverse=True)) + 1


def fewest_packs(lengths: list[int], packs: tuple[int, ...] = ()) -> int:
    """By trying all distributions."""
    if not lengths:
        return len(packs)
    first, rest = lengths[0], lengths[1:]
    fitting = {space for space in packs if space >= first}
    choices = [(*(p for j, p in enumerate(packs) if j != packs.index(s)), s - first) for s in fitting]
    return min(fewest_packs(rest, tuple(sorted(choice))) for choice in [*choices, (*packs, 12 - first)])


def test_best_fit_takes_the_fullest_pack_with_room() -> None:
    assert pack([5, 7, 6, 4, 3], 10) == [[1, 4], [2, 3], [0]]
    assert pack([], 10) == []


# --- encoding --------------------------------------------------------------------------------------------------------


def test_a_conversation_that_is_too_long_is_cut_at_a_turn() -> None:
    messages = ("a", "b", "cat", "the mat", "on", "the cat sat on a mat")
    lengths = [len(encode_trained(TOKENIZER, CHATML, talk(*messages[:n]).messages)[0]) for n in (2, 4, 6)]
    for limit in range(lengths[0] - 2, lengths[2] + 2):
        turns = 2 * sum(length <= limit for length in lengths)
        encoded = encode(talk(*messages, line=7), max_tokens=limit)
        if turns == 0:
            assert encoded.rows == [] and [(p.line, p.kind) for p in encoded.problems] == [(7, "too long")]
            continue
        ids, trained = encode_trained(TOKENIZER, CHATML, talk(*messages[:turns]).messages)
        assert encoded.rows[0].ids.tolist() == ids and encoded.rows[0].trained.tolist() == trained
        kinds = [] if turns == 6 else [(7, "cut", f"longer than {limit} tokens; {turns} of its 6 turns are kept")]
        assert [(p.line, p.kind, p.reason) for p in encoded.problems] == kinds


def test_a_plain_text_is_trained_as_a_whole_and_a_long_one_in_pieces() -> None:
    text = "the cat sat <|im_end|> on the mat. " * 3
    ids = TOKENIZER.encode(text)
    for limit in (2, 7, len(ids), len(ids) + 1):
        encoded = encode(Conversation(4, ({"role": "text", "content": text},)), max_tokens=limit)
        assert [i for row in encoded.rows for i in row.ids.tolist()] == ids[: sum(len(r.ids) for r in encoded.rows)]
        assert sum(len(row.ids) for row in encoded.rows) >= len(ids) - 1, "a last piece of one token has no target"
        assert all(row.trained[1:].all() and not row.trained[0] and row.line == 4 for row in encoded.rows)
    assert [p.kind for p in encode(Conversation(5, ({"role": "text", "content": "t"},))).problems] == [
        "nothing to train"
    ]


def test_megabytes_of_text_are_cut_without_encoding_them(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = list[int]()
    encode_plain = BPETokenizer._encode_plain

    def counting(self: BPETokenizer, text: str) -> list[int]:
        longest.append(len(text))
        return encode_plain(self, text)

    monkeypatch.setattr(BPETokenizer, "_encode_plain", counting)
    encoded = encode(talk("a", "b", "x" * 5_000_000, "c"), talk("x" * 5_000_000, "b", line=2))
    assert [len(row.ids) for row in encoded.rows] == [len(encode(talk("a", "b")).rows[0].ids)]
    assert [(p.line, p.kind) for p in encoded.problems] == [(1, "cut"), (2, "too long")]
    assert 0 < max(longest) < (T + 1) * MAX_CHARACTERS_PER_TOKEN


def test_a_conversation_that_cannot_be_encoded_is_a_problem() -> None:
    template = "{% if messages[0].content == 'x' %}{{ raise_exception('no x') }}{% endif %}" + CHATML
    encoded = encode_rows([talk("x", "b"), talk("a", "b", line=2)], TOKENIZER, template, T)
    assert [row.line for row in encoded.rows] == [2]
    assert [(p.line, p.kind) for p in encoded.problems] == [(1, "not encoded")] and "no x" in encoded.problems[0].reason


# --- validation ------------------------------------------------------------------------------------------------------


def hashed(count: int, start: int = 0) -> list[Row]:
    return [Row(n, np.array([n, 1, 2], dtype=np.int32), np.ones(3, bool)) for n in range(start, start + count)]


def test_the_split_is_by_content_and_further_conversations_move_none() -> None:
    rows = hashed(400)
    train, val = split_rows(rows, 0.1, seed=5)
    assert 20 < len(val) < 60 and sorted(row.line for row in train + val) == list(range(400))
    more_train, more_val = split_rows([*reversed(hashed(400)), *hashed(50, 400)], 0.1, seed=5)
    assert {row.line for row in val} <= {row.line for row in more_val}
    assert {row.line for row in train} <= {row.line for row in more_train}
    assert {row.line for row in split_rows(rows, 0.1, seed=6)[1]} != {row.line for row in val}
    twice = [*hashed(100), *hashed(100)]
    assert not {int(row.ids[0]) for row in split_rows(twice, 0.3, 0)[0]} & {
        int(row.ids[0]) for row in split_rows(twice, 0.3, 0)[1]
    }


@pytest.mark.parametrize("fraction", [0.0001, 0.1, 0.5])
def test_few_conversations_are_split_so_that_something_trains_and_something_validates(fraction: float) -> None:
    for count in range(2, 8):
        train, val = split_rows(hashed(count), fraction, seed=0)
        assert train and val and len(train) + len(val) == count
    assert [len(part) for part in split_rows(hashed(1), fraction, 0)] == [1, 0]
    assert [len(part) for part in split_rows([*hashed(1), *hashed(1)], fraction, 0)] == [2, 0]
    assert split_rows([], fraction, 0) == ([], [])
    assert split_rows(hashed(9), 0.0, 0)[1] == []
