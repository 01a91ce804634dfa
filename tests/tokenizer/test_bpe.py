"""Byte-level BPE: learned as a naive trainer and `tokenizers` learn it, applied as a naive encoder and tiktoken do."""

import json
import time
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import ANY_TEXT, MIXED, MIXED_TEXT, gpt2, plays
from tokenizers import models, normalizers, pre_tokenizers, trainers

from glassgpt.errors import TokenizerError
from glassgpt.tokenizer import BPETokenizer, bpe, bytelevel, engine
from glassgpt.tokenizer.bytelevel import BPEModel
from glassgpt.tokenizer.normal import NormalForm, normalize
from glassgpt.tokenizer.pieces import PATTERNS, Splitter

FORMS = ["NFC", "NFD", "NFKC", "NFKD"]
SOME = {"max_examples": 100, "deadline": None, "derandomize": True}
#: Words in which merges overlap, repeat and run into each other.
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
    """All pairs counted anew for every merge: the definition, in a dozen lines."""
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
    assert bpe.learn_merges(words, merges, min_frequency) == naive_merges(words, merges, min_frequency)


def test_merges_of_real_text_are_those_of_a_naive_trainer() -> None:
    words = {piece.encode(): count for piece, count in Counter(Splitter([PATTERNS["gpt2"]]).split(MIXED_TEXT)).items()}
    learned = bpe.learn_merges(words, 10_000, 1)
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
    if vocab_size == 10**6:  # a clean end: no pair is left
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
    cut = Splitter.chunks
    monkeypatch.setattr("glassgpt.tokenizer.pieces.Splitter.chunks", lambda self, text: cut(self, text, 20_000))
    told: list[tuple[str, int, int]] = []
    trained = [
        BPETokenizer.train(plays(), 700, processes=processes, progress=lambda *what: told.append(what)).files()
        for processes in (1, 2)
    ]
    assert trained[0] == trained[1]
    assert {what for what, _, _ in told} == {"counting words", "merging"}
    assert ("merging", 443, 443) in told and all(0 < done <= total for _, done, total in told)


@pytest.mark.parametrize("text", ["", "a", "ab", " "])
def test_a_text_without_pairs_gives_bytes_and_special_tokens(text: str) -> None:
    ours = BPETokenizer.train(text, 1000, special=["<a>", "<|endoftext|>"])
    assert ours.vocab_size == 258 and ours.special_ids() == {"<a>": 256, "<|endoftext|>": 257}
    assert ours.eos_id == 257 and ours.bos_id is None
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        ({"vocab_size": 256}, "at least 257 tokens"),
        ({"vocab_size": 0, "special": ()}, "at least 256 tokens"),
        ({"vocab_size": 300, "special": ["<a>", "<a>"]}, "different"),
        ({"vocab_size": 300, "special": [""]}, "special tokens"),
        ({"vocab_size": 300, "special": ["a"]}, "'a' could be learned as a plain token"),
        ({"vocab_size": 300, "pattern": "gpt3"}, "there is no split pattern 'gpt3'; there are gpt2, llama3, qwen2"),
    ],
)
def test_what_cannot_be_trained_is_refused(settings_: dict[str, Any], said: str) -> None:
    with pytest.raises(TokenizerError, match=said):
        BPETokenizer.train("some text", **settings_)


# --- encoding --------------------------------------------------------------------------------------------------------


@cache
def trained(pattern: str = "gpt2") -> BPETokenizer:
    """Learned from English and a bit of everything."""
    return BPETokenizer.train(plays() + MIXED_TEXT * 20, 1500, pattern=pattern)


@cache
def odd() -> BPETokenizer:
    """Merges in an order that no training gives: they build on later ones, and make one token in several ways."""
    byte = {token: i for i, token in enumerate(bytelevel.BYTES)}
    merges = [(b"ab", b"ab"), (b"b", b"ab"), (b"aa", b"b"), (b"a", b"ab"), (b"b", b"a"), (b"a", b"b"), (b"ba", b"b")]
    merges += [(b"a", b"a"), (b"a", b"bab"), (b"aa", b"a"), (b"a", b"aa"), (b"aa", b"aa"), (b"a", b"b")]
    joined = dict.fromkeys(left + right for left, right in merges)
    return BPETokenizer(BPEModel(byte | {token: 256 + i for i, token in enumerate(joined)}, merges))


def naive_encode(tokenizer: BPETokenizer, piece: bytes) -> list[int]:
    """One merge at a time: the lowest rank, and of several places the first."""
    ranks = {pair: rank for rank, pair in enumerate(tokenizer.model.merges)}
    parts = [piece[i : i + 1] for i in range(len(piece))]
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
    pieces = Splitter([PATTERNS[pattern]]).split(text)
    expected = [i for piece in pieces for i in naive_encode(tokenizer, piece.encode("utf-8"))]
    assert tokenizer.encode(text) == expected
    assert tokenizer.encode_array(text).tolist() == expected
    assert tokenizer.decode(expected) == text
    assert b"".join(map(tokenizer.token_bytes, expected)) == text.encode("utf-8")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(word=st.one_of(st.text("ab", min_size=1, max_size=60), st.text("ab the", min_size=1, max_size=60), ANY_TEXT))
def test_long_pieces_are_merged_as_short_ones(word: str) -> None:
    piece = word.encode("utf-8")
    for tokenizer in (trained(), odd()):
        expected = naive_encode(tokenizer, piece)
        assert tokenizer._merge_long(piece.decode("latin-1").translate(tokenizer._first)) == expected
        assert tokenizer._merge(piece) == expected


def test_a_long_piece_takes_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, text = gpt2(), "abcdefgh" * 100
    short = tokenizer.encode(text, engine="python")
    fresh, called = BPETokenizer(tokenizer.model), []
    long = fresh._merge_long
    monkeypatch.setattr(fresh, "_merge_long", lambda word: called.append(len(word)) or long(word))
    assert fresh.encode(text, engine="python") == short and called == [800]
    monkeypatch.setattr(bpe, "_LONG", 10**9)
    assert BPETokenizer(tokenizer.model).encode(text, engine="python") == short


@settings(**SOME)
@given(data=st.one_of(st.binary(max_size=60), ANY_TEXT.map(lambda text: text.encode("utf-16"))))
def test_any_bytes_come_back(data: bytes) -> None:
    for tokenizer in (trained(), gpt2()):
        ids = tokenizer.encode_bytes(data)
        assert tokenizer.decode_bytes(ids) == data
        assert tokenizer.decode(ids) == data.decode("utf-8", errors="replace")


@settings(**SOME)
@given(text=ANY_TEXT)
def test_bytes_of_text_are_encoded_as_text(text: str) -> None:
    assert trained().encode_bytes(text.encode("utf-8")) == trained().encode(text)


@settings(**SOME)
@given(text=ANY_TEXT)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_engine_gives_the_same_ids(pattern: str, text: str) -> None:
    tokenizer = trained(pattern)
    assert tokenizer._engines.get("tiktoken", 0) is not None
    assert tokenizer.encode(text, engine="tiktoken") == tokenizer.encode(text, engine="python")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_long_texts_have_the_same_ids_by_every_way(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_WORTH", 50_000)
    cut = Splitter.chunks
    monkeypatch.setattr("glassgpt.tokenizer.pieces.Splitter.chunks", lambda self, text: cut(self, text, 30_000))
    tokenizer = BPETokenizer(trained(pattern).model)
    text = plays() + MIXED_TEXT * 5
    assert len(text.replace("\U0001f6d8", "")) < len(text)  # what tiktoken might see otherwise some day
    for whole in (text, text.replace("\U0001f6d8", "")):
        expected = tokenizer.encode(whole, engine="python")
        for quick in ("auto", "python", "tiktoken"):
            array = tokenizer.encode_array(whole, engine=quick)
            assert array.dtype == np.int64 and array.tolist() == tokenizer.encode(whole, engine=quick) == expected
        assert tokenizer.decode(expected) == whole


def test_the_engine_is_built_for_long_texts_only() -> None:
    tokenizer = BPETokenizer(trained().model)
    tokenizer.encode("short")
    assert tokenizer._engines._built is None and not tokenizer._engines._asked
    text = plays()[:1000] * 300
    assert tokenizer.encode(text) == tokenizer.encode(text, engine="python")
    assert tokenizer._engines._built is not None


def test_no_engine_where_it_would_merge_or_split_otherwise() -> None:
    model = trained().model
    same = {"vocab": model.vocab, "merges": model.merges}
    swapped = [*model.merges[:-2], model.merges[-1], model.merges[-2]]
    for other in (
        odd().model,
        BPEModel(model.vocab, swapped),
        BPEModel(model.vocab, model.merges[:-1]),
        BPEModel(**same, patterns=(r"\p{N}", PATTERNS["gpt2"])),
        BPEModel(**same, patterns=(r"\s+",)),
        BPEModel(**same, whole_pieces=True),
        BPEModel({token: i for token, i in model.vocab.items() if token != b"\xff"}, model.merges),
    ):
        tokenizer = BPETokenizer(other)
        assert tokenizer._engines.get("auto", 10**9) is None
        assert tokenizer.encode_array(plays()[:5000]).tolist() == tokenizer.encode(plays()[:5000])


@pytest.mark.parametrize("kind", ["a", " "])
def test_a_million_of_the_same_is_encoded_in_reasonable_time(kind: str) -> None:
    text = "begin" + kind * (1_000_000 // len(kind)) + " end"
    begin = time.perf_counter()
    quick = gpt2().encode(text, engine="tiktoken")  # tiktoken itself gives up at a million spaces
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


# --- special tokens, normal forms, refusals --------------------------------------------------------------------------


def with_special(**changes: Any) -> BPETokenizer:
    model = trained().model
    special = {"<|endoftext|>": 5000, "<|end|>": 5001, "<|end|>x": 5002, " <a b> ": 5003, "<|<x>|>": 5004}
    added = {"<x>": 6000, "t|": 6001, "\n\n\n": 6002, "ée": 6003}
    parts: dict[str, Any] = {"special": special, "added": added, "eos": "<|endoftext|>", **changes}
    return BPETokenizer(BPEModel(model.vocab, model.merges, **parts))


SPECIAL_PARTS = ["<|endoftext|>", "<|end|>", "<|end|>x", " <a b> ", "<|<x>|>", "<x>", "t|", "\n\n\n", "ée"]
SPECIAL_PARTS += ["<|", "é", "|>", "<", "e\u0301", "end", "\n", " ", "x", "the "]
SPECIAL_TEXT = st.lists(st.one_of(st.sampled_from(SPECIAL_PARTS), ANY_TEXT), max_size=12).map("".join)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(text=SPECIAL_TEXT, allowed=st.booleans())
@pytest.mark.parametrize("form", [None, "NFC"])
def test_special_and_added_tokens_are_found_as_tokenizers_finds_them(form: str, text: str, allowed: bool) -> None:
    ours, library = with_special_beside_theirs(form)
    library.encode_special_tokens = not allowed
    ids = ours.encode(text, allow_special=allowed)
    assert library.encode(text, add_special_tokens=False).ids == ids
    if form is None:
        assert ours.decode(ids) == text
    if not allowed:
        assert not set(ids) & set(ours.special_ids().values())
        assert ours.encode_array(text).tolist() == ids


@cache
def with_special_beside_theirs(form: str | None) -> tuple[BPETokenizer, tokenizers.Tokenizer]:
    ours = with_special(normal_form=form)
    return ours, tokenizers.Tokenizer.from_str(ours.files()["tokenizer.json"].decode("utf-8"))


def test_text_of_users_never_becomes_a_control_token() -> None:
    text = "a<|endoftext|>b"
    for tokenizer in (trained(), gpt2(), with_special()):
        end = tokenizer.eos_id
        assert end is not None and tokenizer.special_ids()["<|endoftext|>"] == end
        for quick in ("python", "tiktoken"):
            assert end not in tokenizer.encode(text, engine=quick)
            assert end not in tokenizer.encode_array(text * 10, engine=quick)
        assert tokenizer.encode(text, allow_special=True) == [*tokenizer.encode("a"), end, *tokenizer.encode("b")]
        assert tokenizer.decode([end]) == "<|endoftext|>" and tokenizer.token_bytes(end) == b"<|endoftext|>"


#: What normal forms take apart, put together and reorder, and what did so only after Unicode 9.
MARKED = st.text(
    "aeAEoui "
    "\u0301\u0323\u0307\u0345\u0334\u1100\u1161\u11a8\uac00\u0958\u212b\ufb01\u2460\u1e9b\u09fe\u0898\u1dfa\u08cf"
    "\u0c3c\U000105d2\U00016121\U00016d67\U00011938\U00011935\U00011930\U0001e6e3\U00010d69\u32ff\ua7f1",
    max_size=12,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=st.one_of(MARKED, ANY_TEXT))
@pytest.mark.parametrize("form", FORMS)
def test_normal_forms_are_those_of_tokenizers(form: NormalForm, text: str) -> None:
    assert normalize(form, text) == getattr(normalizers, form)().normalize_str(text)


@pytest.mark.parametrize("form", FORMS)
def test_every_character_has_the_normal_form_of_tokenizers(form: NormalForm) -> None:
    library = getattr(normalizers, form)()
    codes = [*range(0xD800), *range(0xF900, 0x20000), *range(0x2F800, 0x2FA20)]
    for begin in range(0, len(codes), 50):
        text = "".join(f" {chr(code)} " for code in codes[begin : begin + 50] if not 0xD800 <= code < 0xE000)
        assert normalize(form, text) == library.normalize_str(text)


@pytest.mark.parametrize("form", FORMS)
def test_normal_forms_come_before_merging_by_every_way(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_WORTH", 1000)
    text = "e\u0301 \u00e9 \u1100\u1161\u11a8 ﬁ ① a\u0323\u0307 a\u0307\u0323 \u212b \u0958 ②\ufb20 " + MIXED["scripts"]
    model = trained().model
    ours = BPETokenizer(BPEModel(model.vocab, model.merges, normal_form=form))
    library = tokenizers.Tokenizer.from_str(ours.files()["tokenizer.json"].decode("utf-8"))
    expected = library.encode(text).ids
    assert expected != trained().encode(text)
    for quick in ("python", "tiktoken"):
        assert ours.encode(text, engine=quick) == expected
        assert ours.encode_array(text * 20, engine=quick).tolist() == library.encode(text * 20).ids
    replayed = [token for steps in ours.replay(text) for token in steps[-1].tokens]
    assert [model.vocab[token] for token in replayed] == expected


@pytest.mark.parametrize("text", ["\ud800", "ab\udfffc", "the" * 100_000 + "\udc80"])
def test_half_a_character_is_refused_with_its_place(text: str) -> None:
    at = next(i for i, character in enumerate(text) if 0xD800 <= ord(character) < 0xE000)
    for tokenizer in (trained(), with_special(), with_special(normal_form="NFC")):
        for encode in (tokenizer.encode, tokenizer.encode_array, tokenizer.replay):
            with pytest.raises(TokenizerError) as caught:
                encode(text)
            said = str(caught.value)
            assert f"U+{ord(text[at]):04X} at position {at}," in said and "encode_bytes" in said
            said.encode("utf-8")


@pytest.mark.parametrize("ids", [[-1], [1500], [0, 10**9]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    for decode in (trained().decode, trained().decode_bytes, lambda ids: trained().token_bytes(ids[-1])):
        with pytest.raises(TokenizerError, match=f"ids are from 0 to 1499, got {ids[-1]}"):
            decode(ids)


@settings(**SOME)
@given(text=ANY_TEXT)
def test_the_replay_ends_in_the_ids_and_takes_the_lowest_rank_each_time(text: str) -> None:
    for tokenizer in (trained(), odd()):
        ids = []
        for steps in tokenizer.replay(text):
            assert all(len(token) == 1 for token in steps[0].tokens) and steps[-1].rank is None
            assert len({b"".join(step.tokens) for step in steps}) == 1
            for step, after in pairwise(steps):
                ranks = [r for r, pair in enumerate(tokenizer.model.merges) if pair in set(pairwise(step.tokens))]
                assert tokenizer.model.merges[step.rank] == tokenizer.model.merges[ranks[0]] or tokenizer is odd()
                assert len(after.tokens) < len(step.tokens)
            ids += [tokenizer.model.vocab[token] for token in steps[-1].tokens]
        assert ids == tokenizer.encode(text)
