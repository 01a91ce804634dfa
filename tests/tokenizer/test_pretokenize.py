"""Pre-tokens equal those of the published engines, for any text, chunks and number of counting processes."""

from collections import Counter
from collections.abc import Iterable
from functools import cache

import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import ANY_TEXT, AWKWARD, MIXED_TEXT, plays
from tokenizers import Regex, pre_tokenizers

from glassgpt.errors import TokenizerError
from glassgpt.tokenizer import BPETokenizer, word
from glassgpt.tokenizer.bpe.bytelevel import BYTES
from glassgpt.tokenizer.pretokenize import PATTERNS, PreTokenizer, as_unicode_16, count_pre_tokens

ALL = {**PATTERNS, "words": word.PATTERN}
SEVERAL = [*([pattern] for pattern in ALL.values()), [r"\p{N}", PATTERNS["gpt2"]], [r"\p{N}{1,3}", r"[一-龥]+", r"\s"]]
SEVERAL += [[r"x*"], [r"(a)(b)?", r"(\s)"], []]
#: Mostly places where a text may be cut.
CUTS = st.text(st.sampled_from("aab  \n\r'sé中1.\u0301\u088f\U0001e6c0"), max_size=80)
SOME = {"max_examples": 150, "deadline": None, "derandomize": True}


@cache
def pre_tokenizer(*patterns: str) -> PreTokenizer:
    return PreTokenizer(patterns)


def theirs(pattern: str, text: str, **how: bool) -> list[str]:
    """The pre-tokens of `tokenizers`; with ``invert=True``, only the matches."""
    split = pre_tokenizers.Split(Regex(pattern), "removed" if how else "isolated", **how)
    return [part for part, _ in split.pre_tokenize_str(text)]


@settings(**SOME)
@given(text=ANY_TEXT, patterns=st.sampled_from(SEVERAL))
def test_pre_tokens_joined_are_the_text(text: str, patterns: list[str]) -> None:
    parts = pre_tokenizer(*patterns).split(text)
    assert "".join(parts) == text
    assert all(parts) or text == "" or patterns == [r"x*"]


@settings(**SOME)
@given(text=ANY_TEXT)
@pytest.mark.parametrize("name", ALL)
def test_pre_tokens_are_those_of_tokenizers(name: str, text: str) -> None:
    assert pre_tokenizer(ALL[name]).split(text) == theirs(ALL[name], text)


@pytest.mark.parametrize("name", ALL)
def test_pre_tokens_of_real_and_mixed_text_are_those_of_tokenizers(name: str) -> None:
    for text in (plays(), MIXED_TEXT, AWKWARD * 3, "".join(a + b for a in AWKWARD for b in AWKWARD)):
        assert pre_tokenizer(ALL[name]).split(text) == theirs(ALL[name], text)


KINDS = [r"\p{L}", r"\p{Ll}", r"\p{Lo}", r"\p{Lm}", r"\p{Lt}", r"\p{Lu}", r"\p{M}", r"\p{N}", r"\p{P}", r"\p{S}", r"\s"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_assigned_character_is_of_the_kind_of_the_published_engines(kind: str) -> None:
    assert_of_one_kind(kind, [*range(0xE000), *range(0xF900, 0x34000), *range(0xE0000, 0xE0200)], least=20)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_code_point_is_of_the_kind_of_the_published_engines(kind: str) -> None:
    assert_of_one_kind(kind, range(0x34000, 0x110000), least=0)


def assert_of_one_kind(kind: str, codes: Iterable[int], least: int) -> None:
    """The same characters are of this kind for tiktoken, `tokenizers` and us."""
    text = "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)
    ranks = {token: i for i, token in enumerate(BYTES)}
    engine = tiktoken.Encoding("one kind", pat_str=kind, mergeable_ranks=ranks, special_tokens={})
    ours = "".join(text[match.start()] for match in regex.finditer(kind, as_unicode_16(text)))
    assert len(ours) >= least
    assert engine.decode(engine.encode_ordinary(text)) == ours  # tiktoken drops characters that do not match
    assert "".join(theirs(kind, text, invert=True)) == ours


def test_groups_in_a_pattern_change_nothing() -> None:
    for pattern, text, parts in ((r"(a)(b)", "abab", ["ab", "ab"]), (r"(?:x)?(\w)", "xay", ["xa", "y"])):
        assert pre_tokenizer(pattern).split(text) == theirs(pattern, text) == parts


def test_text_without_newer_characters_is_left_as_it_is() -> None:
    for text in ("", "plain", MIXED_TEXT.replace("\U0001f6d8", ""), "\ud800 half a character"):
        assert as_unicode_16(text) is text
    assert as_unicode_16("a\U0001f6d8\ud800b") == "a\ue000\ud800b"
    assert pre_tokenizer(PATTERNS["o200k"]).split("aʕA") == theirs(PATTERNS["o200k"], "aʕA") == ["aʕ", "A"]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(text=CUTS, size=st.integers(1, 12))
@pytest.mark.parametrize("pattern", PATTERNS)
def test_chunks_have_the_pre_tokens_of_the_whole(pattern: str, text: str, size: int) -> None:
    splitter = pre_tokenizer(PATTERNS[pattern])
    chunks = list(splitter.chunks(text, size))
    assert "".join(chunks) == text and all(chunks)
    assert [part for chunk in chunks for part in splitter.split(chunk)] == splitter.split(text)


def test_chunks_of_real_text_are_about_as_long_as_asked() -> None:
    text = plays()
    lengths = [len(chunk) for chunk in pre_tokenizer(PATTERNS["llama3"]).chunks(text, 1000)]
    assert min(lengths[:-1]) >= 1000 and max(lengths) < 1200


def test_a_text_without_a_safe_cut_is_one_chunk() -> None:
    text = "one two three 1 2 3 " * 10
    for patterns in ([r"\p{N}", PATTERNS["gpt2"]], [word.PATTERN], []):
        assert list(pre_tokenizer(*patterns).chunks(text, 5)) == [text]
    assert list(pre_tokenizer(PATTERNS["gpt2"]).chunks("1" * 100, 5)) == ["1" * 100]


@pytest.mark.parametrize("processes", [1, 3])
def test_counts_are_those_of_all_pre_tokens_with_any_number_of_processes(
    processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glassgpt.tokenizer.pretokenize.PreTokenizer.chunks", in_chunks_of_5000)
    monkeypatch.setattr("glassgpt.tokenizer.pretokenize.CHUNK", 5000)
    progress: list[tuple[int, int]] = []
    text = plays() + MIXED_TEXT + "\ud800"
    splitter = pre_tokenizer(PATTERNS["gpt2"])
    counts = count_pre_tokens(text, splitter, processes, lambda _, *done: progress.append(done))
    assert counts == Counter(splitter.split(text))
    assert progress == sorted(progress) and progress[-1] == (len(text), len(text)) and len(progress) > 30


cut = PreTokenizer.chunks


def in_chunks_of_5000(self: PreTokenizer, text: str) -> "list[str]":
    return list(cut(self, text, 5000))


@pytest.mark.parametrize("pattern", ["(", "[a", r"\p{Klingon}", "a{2,1}", "*"])
def test_an_invalid_pattern_raises(pattern: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        PreTokenizer([pattern])
    assert repr(pattern) in str(caught.value) and "\n" not in str(caught.value)


def test_pre_tokens_do_not_reach_from_one_text_into_the_next() -> None:
    texts = ["the king", "s of", " ", " France", "", "s"] * 5
    splitter = pre_tokenizer(PATTERNS["gpt2"])
    expected = Counter(part for text in texts for part in splitter.split(text))
    assert count_pre_tokens(iter(texts), splitter, 1) == count_pre_tokens(iter(texts), splitter, 2) == expected
    together, apart = (BPETokenizer.train(text, 300).model.merges for text in ("ab ab ab", iter(["ab ab", "ab"])))
    assert len(together) == 2 and apart == together[:1]  # " ab" occurs twice, and once
