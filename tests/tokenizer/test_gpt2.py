"""GPT-2's tokenizer gives the ids of tiktoken and transformers for any text and any bytes."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import ANY_TEXT, AWKWARD, MIXED, MIXED_TEXT, gpt2, plays
from tiktoken.load import data_gym_to_mergeable_bpe_ranks, load_tiktoken_bpe

from glassgpt import assets
from glassgpt.tokenizer import BPETokenizer, pretrained, save
from glassgpt.tokenizer.bpe.engine import PROVEN, agrees, fingerprint
from glassgpt.tokenizer.pretokenize import PATTERNS
from glassgpt.tokenizer.tiktoken_file import tiktoken_files

SOME = {"max_examples": 60, "deadline": None, "derandomize": True}


@cache
def tiktoken_gpt2() -> tiktoken.Encoding:
    gpt2()
    files = assets.paths("gpt2-bpe")
    ranks = data_gym_to_mergeable_bpe_ranks(
        vocab_bpe_file=str(files["vocab.bpe"]), encoder_json_file=str(files["encoder.json"])
    )
    special = {"<|endoftext|>": 50256}
    return tiktoken.Encoding("gpt2", pat_str=PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens=special)


def spaces() -> str:
    """Runs of white space of all lengths and kinds, before letters and before the end of a line."""
    kinds = [" ", "\n", "\t", "\r\n", " \n", "\n ", "\u00a0", " \u3000"]
    return "".join(kind * n + end for kind in kinds for n in range(1, 40) for end in ("x", "\n", "1", "!"))


def test_vocabulary_of_gpt2() -> None:
    assert (gpt2().vocab_size, gpt2().eos_token_id, gpt2().bos_token_id, gpt2().kind) == (50257, 50256, 50256, "bpe")
    assert gpt2().special_tokens() == {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    assert gpt2().encode("Hello, world!") == [15496, 11, 995, 0]
    for i in range(50257):
        assert tiktoken_gpt2().decode_single_token_bytes(i) == gpt2().token_bytes(i)


@pytest.mark.parametrize("engine", ["python", "tiktoken"])
def test_gpt2_gives_the_ids_of_tiktoken(engine: Any) -> None:
    plane = "".join(chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000)
    beyond = "".join(chr(code) for code in range(0x10000, 0x20000, 7))
    for text in (*MIXED.values(), MIXED_TEXT, AWKWARD * 3, spaces(), plays(), plane, " ".join(plane), beyond):
        ids = tiktoken_gpt2().encode_ordinary(text)
        assert gpt2().encode(text, engine=engine) == gpt2().encode_array(text, engine=engine).tolist() == ids
        assert gpt2().decode(ids) == text


@settings(**SOME | {"max_examples": 200})
@given(text=ANY_TEXT)
def test_gpt2_gives_the_ids_of_tiktoken_on_random_unicode(text: str) -> None:
    assert gpt2().encode(text) == tiktoken_gpt2().encode_ordinary(text)
    assert gpt2().encode(text, allow_special=True) == tiktoken_gpt2().encode(text, allowed_special="all")


BROKEN = st.one_of(
    st.binary(max_size=40),
    st.tuples(ANY_TEXT, st.integers(1, 3)).map(lambda cut: cut[0].encode("utf-8")[: -cut[1]]),
    st.tuples(ANY_TEXT, st.binary(min_size=1, max_size=3), ANY_TEXT).map(
        lambda parts: parts[0].encode("utf-8") + parts[1] + parts[2].encode("utf-8")
    ),
    st.tuples(ANY_TEXT, st.sampled_from([" \n\n\t ", "\n\n", "  ", " \u3000 "]), st.binary(max_size=3)).map(
        lambda parts: parts[0].encode("utf-8") + parts[1].encode("utf-8") + b"\xe4" + parts[2]
    ),
)


@settings(**SOME | {"max_examples": 400})
@given(data=BROKEN)
def test_gpt2_gives_the_ids_of_tiktoken_for_invalid_utf8(data: bytes) -> None:
    ids = gpt2().encode_bytes(data)
    assert ids == tiktoken_gpt2()._encode_bytes(data)
    assert gpt2().decode_bytes(ids) == data
    assert gpt2().decode(ids) == tiktoken_gpt2().decode(ids) == data.decode("utf-8", errors="replace")


@settings(**SOME)
@given(ids=st.lists(st.integers(0, 50256), max_size=20))
def test_any_ids_are_decoded_as_by_tiktoken(ids: list[int]) -> None:
    assert gpt2().decode_bytes(ids) == tiktoken_gpt2().decode_bytes(ids)
    assert gpt2().decode(ids) == tiktoken_gpt2().decode(ids)


def test_gpt2_gives_the_ids_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GPT2TokenizerFast

    content = json.loads(gpt2().files()["tokenizer.json"])["model"]
    merges = [tuple(pair) for pair in content["merges"]]
    save(gpt2(), tmp_path, block_size=1024)
    for theirs in (GPT2TokenizerFast(vocab=content["vocab"], merges=merges), AutoTokenizer.from_pretrained(tmp_path)):
        assert (len(theirs), theirs.eos_token_id) == (50257, 50256)
        for text in (*MIXED.values(), spaces()[:2000]):
            assert theirs.encode(text, add_special_tokens=False) == gpt2().encode(text, allow_special=True)
            assert theirs.decode(theirs.encode(text)) == text


def test_the_ranks_of_gpt2_are_its_merges(tmp_path: Path) -> None:
    path = tmp_path / "gpt2.tiktoken"
    path.write_bytes(tiktoken_files(gpt2(), path)[path])
    assert load_tiktoken_bpe(str(path)) == tiktoken_gpt2()._mergeable_ranks
    again = pretrained.load(path)
    assert isinstance(again, BPETokenizer)
    assert again.model.merges == gpt2().model.merges and again.special_ids() == {"<|endoftext|>": 50256}


def test_the_proven_vocabularies_agree_with_tiktoken() -> None:
    tokenizer = gpt2()
    assert {fingerprint(tokenizer.model)} == PROVEN and agrees(tokenizer.model, tokenizer._merge)
    model = tokenizer.model
    others = [
        replace(model, merges=[model.merges[1], model.merges[0], *model.merges[2:]]),
        replace(model, merges=model.merges[:-1]),
        replace(model, ignore_merges=True),
        replace(model, vocab={**model.vocab, b"a": model.vocab[b"b"], b"b": model.vocab[b"a"]}),
    ]
    assert not PROVEN & {fingerprint(other) for other in others}
