"""Older folders (vocab.json with merges.txt, tokenizer.model in tiktoken's format) are read as by `transformers`."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from texts import MIXED_TEXT

from glassgpt.errors import TokenizerError
from glassgpt.tokenizer import BPETokenizer, Tokenizer, load, save
from glassgpt.tokenizer.base import adds_bos_token
from glassgpt.tokenizer.bpe.bytelevel import bytes_to_unicode
from glassgpt.tokenizer.library import LibraryTokenizer
from glassgpt.tokenizer.pretokenize import PATTERNS
from glassgpt.tokenizer.specs import open_tokenizer
from glassgpt.tokenizer.tiktoken_file import tiktoken_files

END, IM_END, BEGIN = "<|endoftext|>", "<|im_end|>", "<|begin_of_text|>"
TEXT = MIXED_TEXT + f" don't e\u0301 {END} {IM_END} x{BEGIN} a <|eot_id|> there<pad>"


@cache
def learned(pattern: str) -> BPETokenizer:
    tokenizer = BPETokenizer.train(MIXED_TEXT * 2 + "hello there", 400, pattern=pattern, special=())
    assert tokenizer.vocab_size == 400
    return tokenizer


def older_folder(folder: Path, pattern: str, config: Any, model: Any = None, more: tuple[str, ...] = (END,)) -> Path:
    """Write vocab.json, in which the tokens of ``more`` follow the 400 learned ones, merges.txt and the JSON files."""
    vocab = {bytes_to_unicode(token): i for token, i in learned(pattern).model.vocab.items()}
    vocab |= {name: 400 + i for i, name in enumerate(more)}
    merges = [f"{bytes_to_unicode(left)} {bytes_to_unicode(right)}\n" for left, right in learned(pattern).model.merges]
    (folder / "merges.txt").write_text("".join(["#version: 0.2\n", *merges]), encoding="utf-8")
    for name, content in {"vocab": vocab, "tokenizer_config": config, "config": model}.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def llama_folder(folder: Path, config: Any = None) -> Path:
    """Write a tokenizer.model in tiktoken's format, and the configuration."""
    path = folder / "tokenizer.model"
    path.write_bytes(tiktoken_files(learned("llama3"), path)[path])
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def assert_equal_to_theirs(folder: Path, kind: type[Tokenizer] = BPETokenizer, bos: bool = False) -> Tokenizer:
    from transformers import AutoTokenizer

    ours, theirs = load(folder), AutoTokenizer.from_pretrained(folder)
    assert type(ours) is kind
    ids = ours.encode(TEXT, allow_special=True)
    assert ids == theirs(TEXT, add_special_tokens=False)["input_ids"]
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert adds_bos_token(ours) == (bos or theirs("a")["input_ids"][0] == theirs.bos_token_id)
    again = folder / "again"
    again.mkdir()
    save(ours, again, 64)
    assert load(again).encode(TEXT, allow_special=True) == ids and adds_bos_token(load(again)) == adds_bos_token(ours)
    return ours


DECODER = {"400": {"content": END, "special": True}, "401": {"content": IM_END, "special": True, "lstrip": True}}
GPT2, QWEN = {"tokenizer_class": "GPT2Tokenizer"}, {"tokenizer_class": "Qwen2Tokenizer"}
FOLDERS: dict[str, tuple[str, Any, Any, type[Tokenizer]]] = {
    "the family alone": ("gpt2", None, {"model_type": "gpt2"}, BPETokenizer),
    "the class": ("gpt2", GPT2, None, BPETokenizer),
    "other roles": ("gpt2", GPT2 | {"eos_token": IM_END, "bos_token": None, "pad_token": "<pad>"}, None, BPETokenizer),
    "a beginning": ("gpt2", GPT2 | {"add_bos_token": True}, None, BPETokenizer),
    "a space before": ("gpt2", GPT2 | {"add_prefix_space": True}, None, LibraryTokenizer),
    "tokens that take spaces": ("gpt2", GPT2 | {"added_tokens_decoder": DECODER}, None, LibraryTokenizer),
    "Qwen": ("qwen2", QWEN, {"model_type": "qwen2"}, BPETokenizer),
    "Qwen that ends messages": (
        "qwen2",
        QWEN | {"eos_token": IM_END, "added_tokens_decoder": {"400": {"content": END, "special": True}}},
        None,
        BPETokenizer,
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_vocab_and_merges_give_the_ids_of_transformers(name: str, tmp_path: Path) -> None:
    pattern, config, model, kind = FOLDERS[name]
    assert_equal_to_theirs(older_folder(tmp_path, pattern, config, model), kind)


def test_tokens_of_added_tokens_json_have_its_ids(tmp_path: Path) -> None:
    (tmp_path / "added_tokens.json").write_text(json.dumps({IM_END: 401}), encoding="utf-8")
    ours = assert_equal_to_theirs(older_folder(tmp_path, "gpt2", GPT2 | {"eos_token": IM_END}))
    assert ours.special_ids() == {END: 400, IM_END: 401}


def test_a_folder_of_two_files_is_gpt2s(tmp_path: Path) -> None:
    from transformers import GPT2Tokenizer

    older_folder(tmp_path, "gpt2", None)
    theirs = GPT2Tokenizer.from_pretrained(tmp_path)
    for ours in (load(tmp_path), load(tmp_path / "vocab.json"), open_tokenizer(str(tmp_path))):
        assert ours.encode(TEXT, allow_special=True) == theirs(TEXT)["input_ids"]
        assert ours.bos_token_id == ours.eos_token_id == theirs.eos_token_id == 400


def test_tiktoken_ranks_give_the_ids_of_transformers(tmp_path: Path) -> None:
    tokens = {400: BEGIN, 401: "<|end_of_text|>", 409: "<|eot_id|>"}
    decoder = {str(i): {"content": name, "special": True} for i, name in tokens.items()}
    for number, name in enumerate(("PreTrainedTokenizerFast", "LlamaTokenizer")):
        config = {
            "tokenizer_class": name,
            "bos_token": BEGIN,
            "eos_token": "<|eot_id|>",
            "added_tokens_decoder": decoder,
        }
        (folder := tmp_path / str(number)).mkdir()
        ours = assert_equal_to_theirs(llama_folder(folder, config), bos=True)
        assert ours.special_ids() == {name: i for i, name in tokens.items()} and adds_bos_token(ours)


def test_tiktoken_ranks_alone_have_the_special_tokens_of_llama_3(tmp_path: Path) -> None:
    ours = load(llama_folder(tmp_path))
    special, ranks = ours.special_ids(), dict(learned("llama3").model.vocab)
    theirs = tiktoken.Encoding("llama3", pat_str=PATTERNS["llama3"], mergeable_ranks=ranks, special_tokens=special)
    assert ours.encode(TEXT, allow_special=True) == theirs.encode(TEXT, allowed_special="all")
    assert sorted(special.values()) == [*range(400, 656)] and adds_bos_token(ours)
    numbered = {BEGIN: 0, "<|end_of_text|>": 1, "<|start_header_id|>": 6, "<|end_header_id|>": 7, "<|eot_id|>": 9}
    assert numbered == {name: special[name] - 400 for name in numbered}
    assert (ours.bos_token_id, ours.eos_token_id) == (400, 401)


def test_damaged_older_folders_are_one_message(tmp_path: Path) -> None:
    older_folder(tmp_path, "gpt2", {"tokenizer_class": "CLIPTokenizer"})
    with pytest.raises(TokenizerError, match=r"of the class CLIPTokenizer; .* GPT2Tokenizer and Qwen2Tokenizer"):
        load(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    for name, content in {"merges.txt": "a b c\n", "vocab.json": '{"a": "b"}'}.items():
        kept = (tmp_path / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(TokenizerError, match=r"does not join two tokens|an id is not a whole number"):
            load(tmp_path)
        (tmp_path / name).write_text(kept, encoding="utf-8")
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(TokenizerError, match=r"merges\.txt cannot be read"):
        load(tmp_path / "vocab.json")
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json"):
        load(tmp_path)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg= 1\n", encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer\.model is damaged: line 2"):
        load(tmp_path)
