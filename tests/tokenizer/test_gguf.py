"""Tokenizers in GGUF files and SentencePiece's own files give the ids of their originals."""

import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import ANY_TEXT, MIXED, MIXED_TEXT, gpt2, plays

from glassgpt.errors import TokenizerError
from glassgpt.inference.stream import encode_prompt
from glassgpt.tokenizer import BPETokenizer, load, pretrained, save
from glassgpt.tokenizer.base import adds_bos_token
from glassgpt.tokenizer.bpe.bytelevel import BPEModel
from glassgpt.tokenizer.gguf import tokenizer_from_metadata
from glassgpt.tokenizer.library import LibraryTokenizer, SentencePieceTokenizer
from glassgpt.tokenizer.pretokenize import PATTERNS

SOME = {"max_examples": 60, "deadline": None, "derandomize": True}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def write(path: Path, kind: str, tokens: Sequence[str], types: Sequence[int], **more: Any) -> Path:
    """Write a GGUF file with only a tokenizer; ``more`` by the names of the writer's methods."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name, value in more.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# --- byte-level BPE --------------------------------------------------------------------------------------------------

#: `tokenizer.ggml.pre` -> split patterns, and `ignore_merges`.
PRE = {
    "gpt-2": ((PATTERNS["gpt2"],), False),
    "llama-bpe": ((PATTERNS["llama3"],), True),
    "qwen2": ((PATTERNS["qwen2"],), False),
    "smollm": ((r"\p{N}", PATTERNS["gpt2"]), False),
}


def byte_level(path: Path, pre: str | None, tokenizer: BPETokenizer, **more: Any) -> Path:
    """Write our tokenizer as converters do, with padding tokens for unused ids."""
    content = tokenizer.to_json()
    tokens = {i: (token, NORMAL) for token, i in content["model"]["vocab"].items()}
    tokens |= {t["id"]: (t["content"], CONTROL if t["special"] else USER_DEFINED) for t in content["added_tokens"]}
    listed = [tokens.get(i, (f"[PAD{i}]", UNUSED)) for i in range(tokenizer.vocab_size)]
    more |= {"tokenizer_pre": pre} if pre else {}
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    return write(
        path, "gpt2", [token for token, _ in listed], [kind for _, kind in listed], token_merges=merges, **more
    )


@cache
def trained() -> BPEModel:
    model = BPETokenizer.train(plays()[:60_000] + MIXED_TEXT * 5, 900).model
    special = {"<|endoftext|>": 905, "<|im_start|>": 906}
    return BPEModel(model.vocab, model.merges, special=special, added={"<x>": 903}, eos="<|endoftext|>")


@pytest.mark.parametrize("pre", [*PRE, None])
def test_a_byte_level_tokenizer_has_its_ids(pre: str | None, tmp_path: Path) -> None:
    model = trained()
    patterns, ignore_merges = PRE[pre or "gpt-2"]
    parts = {"special": model.special, "added": model.added, "eos": "<|endoftext|>", "bos": "<|im_start|>"}
    original = BPETokenizer(BPEModel(model.vocab, model.merges, patterns, ignore_merges=ignore_merges, **parts))
    ids = {"eos_token_id": 905, "bos_token_id": 906}
    ours = pretrained.load(byte_level(tmp_path / "any.gguf", pre, original, **ids))
    assert isinstance(ours, BPETokenizer) and ours.model.patterns == patterns
    assert (ours.eos_token_id, ours.bos_token_id, ours.vocab_size) == (905, 906, 907)
    assert ours.special_ids() == original.special_ids()
    for text in (*MIXED.values(), MIXED_TEXT, plays()[-20_000:]):
        for allowed in (False, True):
            assert ours.encode(text, allowed) == original.encode(text, allowed)
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.slow
def test_gpt2_in_a_gguf_is_gpt2(tmp_path: Path) -> None:
    ours = pretrained.load(byte_level(tmp_path / "gpt2.gguf", "gpt-2", gpt2(), eos_token_id=50256, bos_token_id=50256))
    assert isinstance(ours, BPETokenizer) and ours.model == gpt2().model
    save(ours, tmp_path, 1024)
    assert json.loads((tmp_path / "tokenizer.json").read_bytes()) == json.loads(gpt2().files()["tokenizer.json"])


def test_only_control_tokens_have_roles(tmp_path: Path) -> None:
    ours = pretrained.load(byte_level(tmp_path / "a.gguf", "gpt-2", BPETokenizer(trained()), eos_token_id=5))
    assert ours.eos_token_id is None and ours.bos_token_id is None


# --- SentencePiece ---------------------------------------------------------------------------------------------------


@cache
def proto(kind: str, **options: Any) -> bytes:
    """A model trained by the library, which keeps all white space and encodes unknown characters as bytes."""
    options = {"byte_fallback": True, "normalization_rule_name": "identity", "vocab_size": 600} | options
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(plays()[:60_000].split("\n")),
        model_writer=out,
        model_type=kind,
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return out.getvalue()


@cache
def library(kind: str, **options: Any) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=proto(kind, **options))


@cache
def in_gguf(prefix: bool) -> LibraryTokenizer:
    """Our tokenizer from a GGUF file with the library's BPE model."""
    import tempfile

    pieces = library("bpe", add_dummy_prefix=prefix)
    everything = range(pieces.get_piece_size())
    kinds = [
        next((kind for kind, has in checks if has(i)), NORMAL)
        for i in everything
        for checks in [[(UNKNOWN, pieces.is_unknown), (CONTROL, pieces.is_control), (BYTE, pieces.is_byte)]]
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = write(
            Path(folder) / "llama.gguf",
            "llama",
            [pieces.id_to_piece(i) for i in everything],
            kinds,
            token_scores=[pieces.get_score(i) for i in everything],
            eos_token_id=pieces.eos_id(),
            bos_token_id=pieces.bos_id(),
            add_space_prefix=prefix,
            add_bos_token=False,
        )
        ours = pretrained.load(path)
    assert isinstance(ours, LibraryTokenizer)
    return ours


PROSE = st.lists(
    st.one_of(
        st.sampled_from([" ", "  ", " the", "king", "HAM", "ing", "<s>", "</s>", "<unk>", "<0x41>", "▁", "\n", "."]),
        st.text("etaoinshrdlu ", max_size=12),
        ANY_TEXT,
    ),
    max_size=12,
).map("".join)


@pytest.mark.parametrize(
    ("kind", "pre", "said", "first"),
    [
        ("llama", None, None, True),
        ("llama", None, False, False),
        ("gpt2", "gpt-2", None, False),
        ("gpt2", "gpt-2", True, True),
        ("gpt2", "llama-bpe", None, True),
        ("gpt2", "llama-bpe", False, False),
    ],
)
def test_which_texts_begin_with_a_token(kind: str, pre: str | None, said: bool | None, first: bool) -> None:
    values = {"model": kind, "pre": pre, "add_bos_token": said, "tokens": ["<unk>", "<s>", "</s>", "a", "b", "ab"]}
    values |= {"token_type": [2, 3, 3, 1, 1, 1], "scores": [0.0] * 6, "merges": ["a b"], "bos_token_id": 1}
    stored = {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}
    found = tokenizer_from_metadata(Path("a.gguf"), stored)
    ours, content = adds_bos_token(found), found.files()["tokenizer.json"].decode("utf-8")
    assert ours == first and found.encode("a")[0] != 1
    assert (1 in tokenizers.Tokenizer.from_str(content).encode("a").ids) == first
    assert encode_prompt(found, "ab")[0] == (1 if first else found.encode("ab")[0])


@settings(**SOME | {"max_examples": 150})
@given(text=PROSE)
@pytest.mark.parametrize("prefix", [True, False])
def test_a_llama_tokenizer_has_the_ids_of_sentencepiece(prefix: bool, text: str) -> None:
    ours, theirs = in_gguf(prefix), library("bpe", add_dummy_prefix=prefix)
    ids = theirs.encode(text)
    assert ours.encode(text) == ids
    assert ours.decode(ids) == theirs.decode(ids) == text.replace("▁", " ")
    joined = b"".join(ours.token_bytes(i) for i in ids).decode("utf-8")
    assert joined == (f" {text}" if prefix and text else text).replace("▁", " ")


def test_a_llama_tokenizer_of_real_text_and_saved(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs = in_gguf(True), library("bpe", add_dummy_prefix=True)
    assert (ours.vocab_size, ours.eos_token_id, ours.bos_token_id) == (600, 2, 1)
    assert ours.special_ids() == {"<unk>": 0, "<s>": 1, "</s>": 2}
    save(ours, tmp_path, 64)
    readers = [load(tmp_path).encode, tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode]
    readers.append(lambda text: AutoTokenizer.from_pretrained(tmp_path).encode(text, add_special_tokens=False))
    for line in [*plays()[:20_000].split("\n"), *MIXED["scripts"].split()]:
        assert ours.encode(line) == theirs.encode(line)
    for line in plays()[20_000:21_000].split("\n"):
        for read in readers:
            ids = read(line)
            assert (ids if isinstance(ids, list) else ids.ids) == theirs.encode(line)
    assert ours.encode("a</s>", allow_special=True)[-1] == 2 and 2 not in ours.encode("a</s>")


@settings(**SOME)
@given(text=PROSE)
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_sentencepiece_model_has_the_ids_of_its_library(kind: str, text: str) -> None:
    ours, theirs = SentencePieceTokenizer(proto(kind)), library(kind)
    ids = theirs.encode(text)
    assert ours.encode(text) == ours.encode_array(text).tolist() == ids
    assert ours.decode(ids) == theirs.decode(ids) == text.replace("▁", " ")
    assert b"".join(map(ours.token_bytes, ids)).decode("utf-8") == (text and f" {text}").replace("▁", " ")
    assert not {1, 2} & set(ids)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_sentencepiece_model_is_kept_as_it_is(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(proto(kind))
    ours = pretrained.load(path)
    assert isinstance(ours, SentencePieceTokenizer) and ours.kind == "sentencepiece"
    assert (ours.vocab_size, ours.bos_token_id, ours.eos_token_id) == (library(kind).get_piece_size(), 1, 2)
    assert ours.special_tokens() == {"bos_token": "<s>", "eos_token": "</s>"}
    assert ours.encode("a</s>b", allow_special=True) == [*ours.encode("a"), 2, library(kind).piece_to_id("b")]
    assert ours.decode([1, *ours.encode("a"), 2]) == "<s>a</s>"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    save(ours, tmp_path / "a", 64)
    again = load(tmp_path / "a")
    save(again, tmp_path / "b", 64)
    assert again.encode(MIXED_TEXT) == ours.encode(MIXED_TEXT)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "tokenizer.model").read_bytes() == proto(kind)


@pytest.mark.parametrize("ids", [[-1], [600], [3, 10**9]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    for tokenizer in (in_gguf(True), SentencePieceTokenizer(proto("bpe"))):
        for decode in (tokenizer.decode, lambda ids, tokenizer=tokenizer: tokenizer.token_bytes(ids[-1])):
            with pytest.raises(TokenizerError, match=f"ids are from 0 to 599, got {ids[-1]}"):
                decode(ids)
