"""The word tokenizer: a closed vocabulary raises, an open one gives <|unk|>; both give the ids of `tokenizers`."""

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import regex
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import ANY_TEXT, MIXED, MIXED_TEXT, plays

from glassgpt.errors import TokenizerError
from glassgpt.tokenizer import WordTokenizer, load, save
from glassgpt.tokenizer.library import LibraryTokenizer
from glassgpt.tokenizer.word import END_OF_TEXT, PATTERN, UNKNOWN

SOME = {"max_examples": 200, "deadline": None, "derandomize": True}


@cache
def open_words() -> WordTokenizer:
    return WordTokenizer.train(plays() + MIXED_TEXT * 9, vocab_size=500)


def library(ours: WordTokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(ours.files()["tokenizer.json"].decode("utf-8"))


@cache
def open_library() -> tokenizers.Tokenizer:
    return library(open_words())


# --- the vocabulary --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's the king's, isn't it?", ["It's", " the", " king's", ",", " isn't", " it", "?"]),
        ("a_b  c3 x’s '", ["a_b", " ", " c3", " x’s", " '"]),
        ("one\n\ntwo\t.", ["one", "\n", "\n", "two", "\t", "."]),
        ("e\u0301t 中文字 हिन्दी ½", ["e\u0301t", " 中文字", " हिन्दी", " ½"]),
        ("rock'n'roll 'tis ...", ["rock'n'roll", " '", "tis", " .", ".", "."]),
    ],
)
def test_the_words_of_a_text(text: str, words: list[str]) -> None:
    ours = WordTokenizer.train(text)
    assert [ours.tokens[i] for i in ours.encode(text)] == words


def test_the_most_frequent_words_come_first_and_equals_by_code_point() -> None:
    assert WordTokenizer.train("b a c b a d a").tokens == [" a", " b", " c", " d", "b"]
    assert WordTokenizer.train("b a c b a d a", vocab_size=4).tokens == [" a", " b", UNKNOWN, END_OF_TEXT]
    assert WordTokenizer.train("b a", " a", "a b b b").tokens == [" b", " a", "a", "b"]
    counts = Counter(regex.findall(PATTERN, plays()))
    ours = WordTokenizer.train(plays(), vocab_size=300)
    assert (ours.vocab_size, ours.unk_token_id, ours.eos_token_id) == (300, 298, 299)
    least = counts[ours.tokens[297]]
    assert all(count <= least for word, count in counts.items() if word not in ours.tokens)
    ordered = [(-counts[word], word) for word in ours.tokens[:-2]]
    assert ordered == sorted(ordered)


def test_a_vocabulary_larger_than_the_text_is_as_large_as_the_text() -> None:
    ours = WordTokenizer.train("one two", vocab_size=10**6)
    assert ours.tokens == [" two", "one", UNKNOWN, END_OF_TEXT] and ours.vocab_size == 4


@pytest.mark.parametrize(("vocab_size", "said"), [(2, "at least 3 tokens"), (0, "got 0"), (3, "the text is empty")])
def test_a_vocabulary_without_words_raises(vocab_size: int, said: str) -> None:
    with pytest.raises(TokenizerError, match=said):
        WordTokenizer.train("", vocab_size=vocab_size)
    with pytest.raises(TokenizerError, match="the text is empty"):
        WordTokenizer.train("", "")


# --- closed ----------------------------------------------------------------------------------------------------------


@settings(**SOME)
@given(text=ANY_TEXT.filter(bool))
def test_a_closed_vocabulary_gives_its_text_back(text: str) -> None:
    ours = WordTokenizer.train(text)
    ids = ours.encode(text)
    assert ours.decode(ids) == text and set(ids) == set(range(ours.vocab_size))
    assert ours.encode_array(text).tolist() == ids
    assert b"".join(map(ours.token_bytes, ids)) == text.encode("utf-8")
    assert library(ours).encode(text).ids == ids and library(ours).decode(ids) == text
    assert (ours.special_ids(), ours.special_tokens(), ours.eos_token_id, ours.bos_token_id) == ({}, {}, None, None)


@pytest.mark.parametrize(
    ("text", "word", "at", "hint"),
    [
        ("the queen", " queen", 3, ""),
        ("king", "king", 0, " (but ' king' is)"),
        ("the king queen king", " queen", 8, ""),
        (" the", " the", 0, " (but 'the' is)"),
        ("the king\n", "\n", 8, ""),
        ("the🦊", "🦊", 3, ""),
        ("the king <|unk|>", " <", 8, ""),
        ("the \ud800", " \ud800", 3, ""),
        ("the " + "x" * 10_000, " " + "x" * 56 + "...", 3, ""),
    ],
)
def test_an_unknown_word_is_named_with_its_place(text: str, word: str, at: int, hint: str) -> None:
    ours = WordTokenizer.train("the king")
    for encode in (ours.encode, ours.encode_array, lambda text: ours.encode(text, allow_special=True)):
        with pytest.raises(TokenizerError) as caught:
            encode(text)
        said = str(caught.value)
        assert said.startswith(
            f"the word {word!r} (at position {at}) is not among the 2 words of this closed vocabulary{hint}. Remove it"
        )
        assert "tokenizer=word:N" in said and "tokenizer=bpe:N" in said and "\n" not in said
        said.encode("utf-8")
    if "\ud800" not in text:  # not valid Unicode, so `tokenizers` cannot take it
        with pytest.raises(Exception, match="WordLevel error"):
            library(ours).encode(text)


# --- open ------------------------------------------------------------------------------------------------------------


@settings(**SOME)
@given(text=st.one_of(ANY_TEXT, st.text("the king.\n'", max_size=30)), allowed=st.booleans())
def test_an_open_vocabulary_has_the_ids_of_tokenizers(text: str, allowed: bool) -> None:
    ours, theirs = open_words(), open_library()
    theirs.encode_special_tokens = not allowed
    ids = ours.encode(text, allow_special=allowed)
    assert ids == theirs.encode(text).ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    if not allowed:
        assert ours.encode_array(text).tolist() == ids and ours.eos_token_id not in ids
    if ours.unk_token_id not in ids:
        assert ours.decode(ids) == text


@pytest.mark.parametrize("name", MIXED)
def test_mixed_text_has_the_ids_of_tokenizers(name: str) -> None:
    for ours in (open_words(), WordTokenizer.train(MIXED_TEXT)):
        theirs = library(ours)
        theirs.encode_special_tokens = True
        assert ours.encode(MIXED[name] or "\n") == theirs.encode(MIXED[name] or "\n").ids


def test_unknown_words_and_special_tokens() -> None:
    ours = WordTokenizer.train("the king the king", vocab_size=5)
    assert ours.tokens == [" king", " the", "the", UNKNOWN, END_OF_TEXT]
    assert ours.decode(ours.encode("the queen king!")) == "the<|unk|> king<|unk|>"
    assert 4 not in ours.encode("the<|endoftext|>") and ours.encode("the<|endoftext|>", allow_special=True) == [2, 4]
    assert ours.special_tokens() == {"unk_token": UNKNOWN, "eos_token": END_OF_TEXT}
    assert ours.special_ids() == {UNKNOWN: 3, END_OF_TEXT: 4}
    assert ours.decode(ours.encode("\ud800")) == UNKNOWN


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [None, 200])
def test_save_and_load_are_the_identity(vocab_size: int | None, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    text = plays()[:20_000] + MIXED_TEXT
    ours = WordTokenizer.train(text, vocab_size=vocab_size)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save(ours, tmp_path / folder, 64)
        loaded = load(tmp_path / folder)
        assert isinstance(loaded, WordTokenizer)
        assert (loaded.tokens, loaded.unk_token_id, loaded.eos_token_id) == (
            ours.tokens,
            ours.unk_token_id,
            ours.eos_token_id,
        )
        ours = loaded
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    theirs = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert theirs.encode(text) == ours.encode(text, allow_special=vocab_size is not None)
    assert len(theirs) == ours.vocab_size and theirs.eos_token_id == ours.eos_token_id


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"decoder": None},
        {"added_tokens": []},
        {"model": {"unk_token": " the"}},
    ],
)
def test_another_word_level_file_is_left_to_tokenizers(change: dict, tmp_path: Path) -> None:
    for ours in (WordTokenizer.train("The king, the", vocab_size=6), WordTokenizer.train("The king, the")):
        content = ours.to_json()
        same = {key: content[key] for key in change} == change
        content |= change | {"model": content["model"] | change.get("model", {})}
        (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        loaded = load(tmp_path)
        assert isinstance(loaded, WordTokenizer if same else LibraryTokenizer)
        theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
        theirs.encode_special_tokens = True
        for text in ("The king", " the"):
            try:
                assert loaded.encode(text) == theirs.encode(text).ids
            except TokenizerError:
                with pytest.raises(Exception, match="WordLevel error"):
                    theirs.encode(text)


@pytest.mark.parametrize("ids", [[5], [-1], [0, 99]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    ours = WordTokenizer.train("the king the king", vocab_size=5)
    for decode in (ours.decode, lambda ids: ours.token_bytes(ids[-1])):
        with pytest.raises(TokenizerError, match="ids are from 0 to 4"):
            decode(ids)
