"""The ID of a tokenizer, which decides what is prepared again: equal if and only if ids and document borders are."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from glassgpt.tokenizer import BPETokenizer, CharTokenizer, Tokenizer, WordTokenizer, load, save, specs
from glassgpt.tokenizer.bpe import bytelevel
from glassgpt.tokenizer.library import LibraryTokenizer

TRAINED = BPETokenizer.train("the cat and the hat and that", 270)


def unigram() -> LibraryTokenizer:
    vocab = [["<unk>", 0.0], ["</s>", 0.0], ["\u2581a", -1.0], ["b", -2.0]]
    added = [{"id": 1, "content": "</s>", "special": True}]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content = {"version": "1.0", "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab}, "added_tokens": added}
    return LibraryTokenizer(content | {"added_tokens": [token | flags for token in added]}, {"eos_token": "</s>"})


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "characters": lambda: CharTokenizer.train("abc"),
    "other characters": lambda: CharTokenizer.train("abcd"),
    "words": lambda: WordTokenizer.train("a b c"),
    "an open vocabulary": lambda: WordTokenizer.train("a b c", vocab_size=6),
    "words with a beginning": lambda: specs.with_eos_as_bos(WordTokenizer.train("a b c", vocab_size=6)),
    "merges": lambda: TRAINED,
    "merges in another order": lambda: BPETokenizer(replace(TRAINED.model, merges=TRAINED.model.merges[::-1])),
    "another pattern": lambda: BPETokenizer(replace(TRAINED.model, patterns=(r"\p{L}+",))),
    "another end": lambda: BPETokenizer(replace(TRAINED.model, eos=None)),
    "a beginning": lambda: specs.with_eos_as_bos(TRAINED),
    "an added token": lambda: BPETokenizer(replace(TRAINED.model, added={"<think>": 300})),
    "normalised": lambda: BPETokenizer(replace(TRAINED.model, normal_form="NFC")),
    "whole pre-tokens": lambda: BPETokenizer(replace(TRAINED.model, ignore_merges=True)),
    "unigram": unigram,
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_tokenizer_that_is_saved_and_loaded_keeps_its_identity(name: str, tmp_path: Path) -> None:
    tokenizer = MAKERS[name]()
    save(tokenizer, tmp_path, block_size=8)
    assert specs.identity_of(load(tmp_path)) == specs.identity_of(tokenizer)
    assert specs.identity(specs.parse(str(tmp_path))) == specs.identity_of(tokenizer)


def test_tokenizers_with_other_ids_or_borders_have_other_identities(tmp_path: Path) -> None:
    assert len({specs.identity_of(make()) for make in MAKERS.values()}) == len(MAKERS)


def test_the_formatting_of_a_file_does_not_change_the_identity(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(bytelevel.to_json(TRAINED.model)), encoding="utf-8")
    assert specs.identity_of(load(tmp_path)) == specs.identity_of(TRAINED)
