"""Byte-level BPE learns the merges of a naive trainer and of `tokenizers`, and gives the ids of tiktoken."""

import json
import random
import time
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tiktoken
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from texts import ANY_TEXT, MIXED_TEXT, gpt2, plays, trained
from tokenizers import models, pre_tokenizers, trainers

from glassgpt.errors import TokenizerError
from glassgpt.tokenizer import BPETokenizer
from glassgpt.tokenizer.bpe import bytelevel, engine
from glassgpt.tokenizer.bpe import tokenizer as bpe
from glassgpt.tokenizer.bpe.bytelevel import BPEModel
from glassgpt.tokenizer.bpe.training import learn_merges
from glassgpt.tokenizer.pretokenize import PATTERNS, PreTokenizer

SOME = {"max_examples": 100, "deadline": None, "derandomize": True}
#: Pre-tokens in which merges overlap and repeat.
WORDS = st.dictionaries(
    st.one_of(
        st.text("ab", min_size=1, max_size=12),
        st.sampled_from(["aaaa", "aaaaa", "ababab", "bababa", "aabaab", "abcabcabc", "ccc", "é", "中中"]),
        st.text("abc ", min_size=1, max_size=6),
    ).map(lambda word: word.encode("utf-8")),
    st.integers(1, 5),
    max_size=8,
)


# --- learning --------------------------------------------------------------------------------------------------------


def naive_merges(words: dict[bytes, int], merges: int, min_frequency: int) -> list[tuple[int, int]]:
    """The definition: count all pairs again for every merge."""
    ids = {byte[0]: i for i, byte in enumerate(bytelevel.BYTES)}
    spelled = [([ids[byte] for byte in word], count) for word, count in words.items()]
    learned: list[tuple[int, int]] = []
    while len(learned) < merges:
        counts: Counter[tuple[int, int]] = Counter()
        for word, count in spelled:
            for pair in pairwise(word):
                counts[pair] += count
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < min_frequency:
            break
        for word, _ in spelled:
            at = 0
            while at < len(word) - 1:
                if (word[at], word[at + 1]) == best:
                    word[at : at + 2] = [256 + len(learned)]
                at += 1
        learned.append(best)
    return learned


@settings(max_examples=300, deadline=None, derandomize=True)
@given(words=WORDS, merges=st.integers(0, 30), min_frequency=st.integers(0, 4))
def test_merges_are_those_of_a_naive_trainer(words: dict[bytes, int], merges: int, min_frequency: int) -> None:
    assert learn_merges(words, merges, min_frequency) == naive_merges(words, merges, min_frequency)


def test_merges_of_real_text_are_those_of_a_naive_trainer() -> None:
    counts = Counter(PreTokenizer([PATTERNS["gpt2"]]).split(MIXED_TEXT))
    words = {pre_token.encode(): count for pre_token, count in counts.items()}
    learned = learn_merges(words, 10_000, 1)
    assert len(learned) > 400 and learned == naive_merges(words, 10_000, 1)


def theirs(text: str, vocab_size: int, pattern: str, min_frequency: int) -> list[list[str]]:
    """The merges that `tokenizers` learns."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERNS[pattern]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator([text], trainer)
    merges: list[list[str]] = json.loads(library.to_str())["model"]["merges"]
    return merges


@pytest.mark.parametrize(
    ("pattern", "min_frequency", "vocab_size"),
    [("gpt2", 2, 3000), ("llama3", 0, 2000), ("qwen2", 1, 2000), ("gpt2", 2, 10**6), ("qwen2", 50, 10**6)],
)
def test_merges_are_those_of_tokenizers(pattern: str, min_frequency: int, vocab_size: int) -> None:
    text = plays() + MIXED_TEXT
    ours = BPETokenizer.train(text, vocab_size, pattern=pattern, min_frequency=min_frequency, special=())
    assert ours.to_json()["model"]["merges"] == theirs(text, vocab_size, pattern, min_frequency)
    if vocab_size == 10**6:  # training ends early: no pair is left
        assert 300 < ours.vocab_size < 10**5
    else:
        assert ours.vocab_size == vocab_size


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    words=st.lists(st.text("aab", min_size=1, max_size=12), max_size=20),
    min_frequency=st.integers(0, 3),
    vocab_size=st.integers(256, 300),
)
def test_equally_frequent_pairs_are_taken_as_tokenizers_takes_them(
    words: list[str], min_frequency: int, vocab_size: int
) -> None:
    text = " ".join(words)
    ours = BPETokenizer.train(text, vocab_size, min_frequency=min_frequency, special=())
    assert ours.to_json()["model"]["merges"] == theirs(text, vocab_size, "gpt2", min_frequency)


def test_training_is_the_same_in_any_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = PreTokenizer.chunks
    monkeypatch.setattr(PreTokenizer, "chunks", lambda self, text: cut(self, text, 20_000))
    reports: list[tuple[str, int, int]] = []
    trained = [
        BPETokenizer.train(plays(), 700, processes=processes, progress=lambda *report: reports.append(report)).files()
        for processes in (1, 2)
    ]
    assert trained[0] == trained[1]
    assert {label for label, _, _ in reports} == {"counting pre-tokens", "merging"}
    assert ("merging", 443, 443) in reports and all(0 < done <= total for _, done, total in reports)


@pytest.mark.parametrize("text", ["", "a", "ab", " "])
def test_a_text_without_pairs_gives_bytes_and_special_tokens(text: str) -> None:
    ours = BPETokenizer.train(text, 1000, special=["<a>", "<|endoftext|>"])
    assert ours.vocab_size == 258 and ours.special_ids() == {"<a>": 256, "<|endoftext|>": 257}
    assert ours.eos_token_id == 257 and ours.bos_token_id is None
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        ({"vocab_size": 256}, "at least 257 tokens"),
        ({"vocab_size": 0, "special": ()}, "at least 256 tokens"),
        ({"vocab_size": 300, "special": ["<a>", "<a>"]}, "different"),
        ({"vocab_size": 300, "special": [""]}, "special tokens"),
        ({"vocab_size": 300, "special": ["a"]}, "'a' could be learned as a plain token"),
        (
            {"vocab_size": 300, "pattern": "gpt3"},
            "no split pattern 'gpt3'; there are gpt2, llama3, qwen2, o200k, or",
        ),
        ({"vocab_size": 300, "pattern": r"\w+"}, "may match in another way"),
        ({"vocab_size": 300, "pattern": "("}, "not a valid regex"),
    ],
)
def test_invalid_training_settings_raise(settings_: dict[str, Any], said: str) -> None:
    with pytest.raises(TokenizerError, match=said):
        BPETokenizer.train("some text", **settings_)


# --- encoding --------------------------------------------------------------------------------------------------------


#: Merges that no training gives: they use tokens of later merges, or create one token in several ways.
ODD = [
    "ba b, a a, b a, bab b",
    "a b, ab a, a b, ab b, aba b, b aba",
    "ab ab, b ab, aa b, a ab, b a, a b, ba b, a a, a bab, aa a, a aa, aa aa, a b",
]


@cache
def odd() -> list[BPETokenizer]:
    byte = {token: i for i, token in enumerate(bytelevel.BYTES)}
    tokenizers = []
    for line in ODD:
        pairs = [tuple(part.encode() for part in pair.split()) for pair in line.split(", ")]
        joined = dict.fromkeys(left + right for left, right in pairs)
        model = BPEModel(byte | {token: 256 + i for i, token in enumerate(joined)}, pairs)
        assert not model.merges_in_order()
        tokenizers.append(BPETokenizer(model))
    return tokenizers


def naive_encode(tokenizer: BPETokenizer, pre_token: bytes) -> list[int]:
    """The definition: one merge at a time, of the lowest rank, at the first place."""
    ranks = {pair: rank for rank, pair in enumerate(tokenizer.model.merges)}
    parts = [pre_token[i : i + 1] for i in range(len(pre_token))]
    while len(parts) > 1:
        rank, at = min((ranks.get(pair, 10**9), at) for at, pair in enumerate(pairwise(parts)))
        if rank == 10**9:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [tokenizer.model.vocab[part] for part in parts]


@settings(**SOME)
@given(text=ANY_TEXT)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_ids_are_those_of_naive_merging(pattern: str, text: str) -> None:
    tokenizer = trained(pattern)
    pre_tokens = PreTokenizer([PATTERNS[pattern]]).split(text)
    expected = [i for pre_token in pre_tokens for i in naive_encode(tokenizer, pre_token.encode("utf-8"))]
    assert tokenizer.encode(text) == expected
    assert tokenizer.encode_array(text).tolist() == expected
    assert tokenizer.decode(expected) == text
    assert b"".join(map(tokenizer.token_bytes, expected)) == text.encode("utf-8")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(word=st.one_of(st.text("ab", min_size=1, max_size=60), st.text("ab the", min_size=1, max_size=60), ANY_TEXT))
def test_long_pre_tokens_are_merged_as_short_ones(word: str) -> None:
    pre_token = word.encode("utf-8")
    for tokenizer in (trained(), *odd()):
        expected = naive_encode(tokenizer, pre_token)
        assert tokenizer._merge_with_heap(tokenizer._to_symbols(pre_token)) == expected
        assert tokenizer._merge(pre_token) == expected


def test_a_long_pre_token_is_merged_with_the_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, text = gpt2(), "abcdefgh" * 100
    short = tokenizer.encode(text, engine="python")
    fresh, called = BPETokenizer(tokenizer.model), []
    long = fresh._merge_with_heap
    monkeypatch.setattr(fresh, "_merge_with_heap", lambda word: called.append(len(word)) or long(word))
    assert fresh.encode(text, engine="python") == short and called == [800]
    monkeypatch.setattr(bpe, "_HEAP_FROM", 10**9)
    assert BPETokenizer(tokenizer.model).encode(text, engine="python") == short


@settings(**SOME)
@given(data=st.one_of(st.binary(max_size=60), ANY_TEXT.map(lambda text: text.encode("utf-16"))))
def test_any_bytes_come_back(data: bytes) -> None:
    for tokenizer in (trained(), gpt2()):
        ids = tokenizer.encode_bytes(data)
        assert tokenizer.decode_bytes(ids) == data
        assert tokenizer.decode(ids) == data.decode("utf-8", errors="replace")


@settings(**SOME)
@given(text=ANY_TEXT, blank=st.text(" \n\t\r\u3000", max_size=4), rest=st.binary(max_size=6))
@example(text="  ", blank="", rest=b"\x00\x80")
@example(text="a", blank=" \n \n", rest=b" \x00\xff b")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_any_bytes_have_the_ids_of_tiktoken(pattern: str, text: str, blank: str, rest: bytes) -> None:
    data = (text + blank).encode("utf-8") + rest
    assert trained(pattern).encode_bytes(data) == trained(pattern)._engine.get("tiktoken", 0)._encode_bytes(data)


@settings(**SOME)
@given(text=ANY_TEXT)
def test_bytes_of_text_are_encoded_as_text(text: str) -> None:
    assert trained().encode_bytes(text.encode("utf-8")) == trained().encode(text)


@settings(**SOME)
@given(text=ANY_TEXT)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_engine_gives_the_same_ids(pattern: str, text: str) -> None:
    tokenizer = trained(pattern)
    assert tokenizer._engine.get("tiktoken", 0) is not None
    assert tokenizer.encode(text, engine="tiktoken") == tokenizer.encode(text, engine="python")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_long_texts_have_the_same_ids_with_every_engine(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_MIN_CHARACTERS", 50_000)
    cut = PreTokenizer.chunks
    monkeypatch.setattr(PreTokenizer, "chunks", lambda self, text: cut(self, text, 30_000))
    tokenizer = BPETokenizer(trained(pattern).model)
    text = plays() + MIXED_TEXT * 5
    assert len(text.replace("\U0001f6d8", "")) < len(text)  # a character that tiktoken may treat differently some day
    for whole in (text, text.replace("\U0001f6d8", "")):
        expected = tokenizer.encode(whole, engine="python")
        for quick in ("auto", "python", "tiktoken"):
            array = tokenizer.encode_array(whole, engine=quick)
            assert array.dtype == np.int64 and array.tolist() == tokenizer.encode(whole, engine=quick) == expected
        assert tokenizer.decode(expected) == whole


def test_the_engine_is_built_for_long_texts_only() -> None:
    tokenizer = BPETokenizer(trained().model)
    tokenizer.encode("short")
    assert tokenizer._engine._encoding is None and not tokenizer._engine._tried
    text = plays()[:1000] * 300
    assert tokenizer.encode(text) == tokenizer.encode(text, engine="python")
    assert tokenizer._engine._encoding is not None


def test_the_engine_is_taken_only_where_it_gives_the_same_ids() -> None:
    draw, byte = random.Random(4), {token: i for i, token in enumerate(bytelevel.BYTES)}
    taken = left = 0
    for _ in range(300):
        tokens, pairs = [b"a", b"b"], []
        for _ in range(draw.randint(2, 7)):
            pair = draw.choice(tokens), draw.choice(tokens)
            if draw.random() < 0.1 or b"".join(pair) not in tokens:
                tokens.append(b"".join(pair))
                pairs.append(pair)
        if draw.random() < 0.5:
            draw.shuffle(pairs)
        joined = dict.fromkeys(b"".join(pair) for pair in pairs)
        model = BPEModel(byte | {token: 256 + i for i, token in enumerate(joined)}, pairs)
        ours = BPETokenizer(model)
        ranks = tiktoken.Encoding("x", pat_str=PATTERNS["gpt2"], mergeable_ranks=dict(model.vocab), special_tokens={})
        words = ["".join(draw.choices("ab", k=draw.randint(2, 14))) for _ in range(20)]
        same = all(ours.encode(word, engine="python") == ranks.encode_ordinary(word) for word in words)
        engine_taken = ours._engine.get("auto", 10**9) is not None
        assert same or not engine_taken
        taken, left = taken + engine_taken, left + (not same)
    assert taken > 50 and left > 20


def test_no_engine_that_would_merge_or_split_differently() -> None:
    model = trained().model
    same = {"vocab": model.vocab, "merges": model.merges}
    swapped = [*model.merges[:-2], model.merges[-1], model.merges[-2]]
    for other in (
        *(tokenizer.model for tokenizer in odd()[1:]),
        BPEModel(model.vocab, swapped),
        BPEModel(model.vocab, model.merges[:-1]),
        BPEModel(**same, patterns=(r"\p{N}", PATTERNS["gpt2"])),
        BPEModel(**same, patterns=(r"\s+",)),
        BPEModel(**same, ignore_merges=True),
        BPEModel({token: i for token, i in model.vocab.items() if token != b"\xff"}, model.merges),
    ):
        tokenizer = BPETokenizer(other)
        assert tokenizer._engine.get("auto", 10**9) is None
        assert tokenizer.encode_array(plays()[:5000]).tolist() == tokenizer.encode(plays()[:5000])


@pytest.mark.parametrize("kind", ["a", " "])
def test_a_million_of_the_same_is_encoded_in_reasonable_time(kind: str) -> None:
    text = "begin" + kind * (1_000_000 // len(kind)) + " end"
    begin = time.perf_counter()
    quick = gpt2().encode(text, engine="tiktoken")  # tiktoken itself fails at a million spaces
    assert gpt2().encode_array(text).tolist() == quick
    assert gpt2().decode(quick) == text
    assert time.perf_counter() - begin < 30


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", ["a", "ab", " ", "\n", " \n", "\r\n", "! ", "!", "7", "中", "\u3000", "\u0301"])
def test_a_million_of_the_same_has_the_same_ids_by_both(kind: str, pattern: str) -> None:
    text = kind * (1_000_000 // len(kind)) + "x"
    assert trained(pattern).encode(text, engine="python") == trained(pattern).encode(text, engine="tiktoken")


def test_the_cache_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "CACHE", 10)
    tokenizer = BPETokenizer(trained().model)
    assert tokenizer.encode(MIXED_TEXT) == trained().encode(MIXED_TEXT) == tokenizer.encode(MIXED_TEXT)
    assert len(tokenizer._cache) == 10


@pytest.mark.parametrize("ids", [[-1], [1500], [0, 10**9]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    for decode in (trained().decode, trained().decode_bytes, lambda ids: trained().token_bytes(ids[-1])):
        with pytest.raises(TokenizerError, match=f"ids are from 0 to 1499, got {ids[-1]}"):
            decode(ids)


@settings(**SOME)
@given(text=ANY_TEXT)
def test_the_replay_ends_in_the_ids_and_takes_the_lowest_rank_each_time(text: str) -> None:
    for tokenizer in (trained(), *odd()):
        ids = []
        for steps in tokenizer.replay(text):
            assert all(len(token) == 1 for token in steps[0].tokens) and steps[-1].rank is None
            assert len({b"".join(step.tokens) for step in steps}) == 1
            for step, after in pairwise(steps):
                ranks = {pair: rank for rank, pair in enumerate(tokenizer.model.merges)}
                assert step.rank == min(ranks[pair] for pair in pairwise(step.tokens) if pair in ranks)
                assert len(after.tokens) < len(step.tokens)
            ids += [tokenizer.model.vocab[token] for token in steps[-1].tokens]
        assert ids == tokenizer.encode(text)
