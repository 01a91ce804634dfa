"""The character tokenizer gives the ids of the `tokenizers` library, and clear errors."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from glassgpt.errors import TokenizerError
from glassgpt.tokenizer import BPETokenizer, CharTokenizer, WordTokenizer, load, save
from glassgpt.tokenizer.library import LibraryTokenizer

TEXTS = {
    "newlines": "one\ntwo\n\nthree\r\nfour\rfive\n\r\x0b\x0c\x85\u2028\u2029 end",
    "spaces": "  a   b\tc\u00a0d\u3000e\u200b\u202f  ",
    "combining": "e\u0301 \u00e9 n\u0303 Z\u0351\u036b\u0343 \u1100\u1161 \ud55c",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽 🦊",
    "quotes": "\"'`„“«»\\ \\n \\u0041 {}[]<unk> <|endoftext|> #@!",
    "scripts": "Größe Ünïcode Ωμέγα Привет שלום سلام हिन्दी 日本語 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
    "controls": "\x00\x01\x1b\x7f\ufeff\ufffe\uffff\U0010ffff",
    "single": "a",
    "": "\x00",
}
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


def saved(tokenizer: CharTokenizer, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    save(tokenizer, folder, block_size=32)
    return folder


def ours_and_theirs(text: str, folder: Path) -> tuple[CharTokenizer, tokenizers.Tokenizer]:
    ours = CharTokenizer.train(text)
    return ours, tokenizers.Tokenizer.from_file(str(saved(ours, folder) / "tokenizer.json"))


def assert_same(ours: CharTokenizer, theirs: tokenizers.Tokenizer, text: str) -> None:
    ids = ours.encode(text)
    assert theirs.encode(text).ids == ids
    assert theirs.decode(ids) == ours.decode(ids) == text


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=ANY_TEXT)
def test_round_trip_and_sorted_ids(text: str) -> None:
    tokenizer = CharTokenizer.train(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text) and tokenizer.vocab_size == len(set(text))
    assert sorted(text, key=ord) == [character for _, character in sorted(zip(ids, text, strict=True))]
    assert set(ids) == set(range(tokenizer.vocab_size))
    assert tokenizer.encode_array(text).tolist() == ids


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=ANY_TEXT)
def test_equals_tokenizers_on_random_unicode(text: str) -> None:
    ours = CharTokenizer.train(text)
    assert_same(ours, tokenizers.Tokenizer.from_str(json.dumps(ours.to_json())), text)


@pytest.mark.parametrize("name", TEXTS)
def test_equals_tokenizers(name: str, tmp_path: Path) -> None:
    ours, theirs = ours_and_theirs("".join(TEXTS.values()), tmp_path)
    assert theirs.get_vocab_size() == ours.vocab_size
    assert_same(ours, theirs, TEXTS[name])
    assert_same(ours, theirs, TEXTS[name][::-1])


def test_equals_auto_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    everything = "".join(TEXTS.values())
    ours = CharTokenizer.train(everything)
    theirs = AutoTokenizer.from_pretrained(saved(ours, tmp_path))
    assert theirs.model_max_length == 32 and len(theirs) == ours.vocab_size
    for text in [*TEXTS.values(), " ,  . n't 's", everything]:
        if set(text) <= set(ours.tokens):
            ids = ours.encode(text)
            assert theirs(text)["input_ids"] == theirs.encode(text) == ids
            assert theirs.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == text


def test_the_empty_text(tmp_path: Path) -> None:
    ours, theirs = ours_and_theirs("ab", tmp_path)
    assert_same(ours, theirs, "")
    assert ours.encode("") == [] and ours.encode_array("").shape == (0,)


@pytest.mark.parametrize("unknown", ["x", "\n", "é", "\u0301", "🦊", "\U0010ffff", "\x00", "'", "\ud800"])
def test_an_unknown_character_is_named(unknown: str, tmp_path: Path) -> None:
    ours, theirs = ours_and_theirs("ab 🐙", tmp_path)
    for text in (unknown, f"ab 🐙{unknown}ab{unknown}"):
        with pytest.raises(TokenizerError) as caught:
            ours.encode(text)
        message = str(caught.value)
        assert f"{unknown!r} (U+{ord(unknown):04X}, at position {text.index(unknown)})" in message
        assert "4 characters" in message and "ab" in message
        if unknown != "\ud800":  # not valid Unicode, so `tokenizers` cannot take it
            with pytest.raises(Exception, match="WordLevel error"):
                theirs.encode(text)


def test_the_message_stays_short_for_large_alphabets() -> None:
    tokenizer = CharTokenizer([chr(0x4E00 + i) for i in range(20_000)])
    with pytest.raises(TokenizerError) as caught:
        tokenizer.encode("a")
    assert len(str(caught.value)) < 400 and "20000 characters" in str(caught.value)


def test_the_message_can_be_printed_anywhere() -> None:
    with pytest.raises(TokenizerError) as caught:
        CharTokenizer(["a"]).encode("\ud800")
    str(caught.value).encode("utf-8")


def test_save_and_load_are_the_identity(tmp_path: Path) -> None:
    tokenizer = CharTokenizer(["z", "🦊", "\n", "a", '"', "\\", "\x00", "\u2028"])  # ids need not be sorted
    loaded = load(saved(tokenizer, tmp_path / "a"))
    assert isinstance(loaded, CharTokenizer) and loaded.tokens == tokenizer.tokens
    assert loaded.eos_token_id is None and loaded.special_tokens() == {}
    again = saved(loaded, tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = (again / name).read_bytes()
        assert content == (tmp_path / "a" / name).read_bytes() and b"\r" not in content


def with_model(**changes: Any) -> dict[str, Any]:
    content = CharTokenizer(["a", "b", "c"]).to_json()
    content["model"] |= changes
    return content


MALFORMED = {
    "not JSON": "{",
    "empty file": "",
    "not UTF-8": b"\xff\xfe{}",
    "a list": [1, 2],
    "null": None,
    "a number": 3,
    "no model": {"version": "1.0"},
    "model is null": {"model": None},
    "model is a string": {"model": "WordLevel"},
    "model without type": {"model": {"vocab": {"a": 0}}},
    "type is a number": {"model": {"type": 5, "vocab": {"a": 0}}},
    "an unknown type": {"model": {"type": "Markov", "vocab": {"a": 0}}},
    "no vocab": {"model": {"type": "WordLevel"}},
    "vocab is null": with_model(vocab=None),
    "vocab is a list": with_model(vocab=["a", "b"]),
    "vocab is a string": with_model(vocab="ab"),
    "empty vocab": with_model(vocab={}),
    "an id twice": with_model(vocab={"a": 0, "b": 0}),
    "a negative id": with_model(vocab={"a": 0, "b": -1}),
    "ids are strings": with_model(vocab={"a": "0", "b": "1"}),
    "ids are floats": with_model(vocab={"a": 0.0, "b": 1.0}),
    "ids are bools": with_model(vocab={"a": False, "b": True}),
    "ids are null": with_model(vocab={"a": None}),
    "ids are lists": with_model(vocab={"a": [0], "b": [1]}),
    "ids of all kinds": with_model(vocab={"a": 0, "b": "1", "c": None, "d": {}}),
}
#: Files that are not a plain character tokenizer, and the class that reads them.
OTHER: dict[str, tuple[dict[str, Any], type]] = {
    "a normalizer": (CharTokenizer(["a", "b"]).to_json() | {"normalizer": {"type": "Lowercase"}}, LibraryTokenizer),
    "words between spaces": (
        CharTokenizer([" ", "a", "b"]).to_json() | {"pre_tokenizer": {"type": "Whitespace"}},
        LibraryTokenizer,
    ),
    "added tokens": (
        CharTokenizer(["a", "b"]).to_json()
        | {
            "added_tokens": [
                {"id": 2, "content": "<s>", "special": True}
                | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            ]
        },
        LibraryTokenizer,
    ),
    "a character for the unknown": (with_model(unk_token="b"), LibraryTokenizer),
    "another decoder": (CharTokenizer(["a", "b"]).to_json() | {"decoder": None}, LibraryTokenizer),
    "a word of two letters": (with_model(vocab={"a": 0, "be": 1}), LibraryTokenizer),
    "the empty word": (with_model(vocab={"a": 0, "": 1}), LibraryTokenizer),
    "Unigram": ({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}}, LibraryTokenizer),
    "BPE of letters": ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, LibraryTokenizer),
    "words": (WordTokenizer.train("a ab b").to_json(), WordTokenizer),
    "bytes": (BPETokenizer.train("a ab b", 260).to_json(), BPETokenizer),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_one_clear_error(name: str, tmp_path: Path) -> None:
    content = MALFORMED[name]
    raw = content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content))
    path = tmp_path / "tokenizer.json"
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode("utf-8"))
    with pytest.raises(TokenizerError) as caught:
        load(tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", OTHER)
def test_another_file_is_read_by_the_right_class(name: str, tmp_path: Path) -> None:
    content, kind = OTHER[name]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    loaded = load(tmp_path)
    assert type(loaded) is kind
    theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
    theirs.encode_special_tokens = True
    for text in ("a", "ab", "a ab b", "b<s>a", "AB", "", "abc"):
        try:
            expected = theirs.encode(text).ids
        except Exception as error:
            assert "WordLevel error" in str(error)
            with pytest.raises(TokenizerError):
                loaded.encode(text)
        else:
            assert loaded.encode(text) == expected


def test_a_missing_file_and_a_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(TokenizerError, match="cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize("ids", [[3], [0, -1], [-100]])
def test_ids_outside_the_vocabulary_do_not_decode(ids: list[int]) -> None:
    with pytest.raises((TokenizerError, IndexError)):
        CharTokenizer(["a", "b", "c"]).decode(ids)
