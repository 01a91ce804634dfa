"""Damaged files and missing libraries give one clear error; our own tokenizers need neither libraries nor network."""

import base64
import copy
import json
import random
import socket
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gguf import BYTE, NORMAL, UNKNOWN, byte_level, proto, trained, write
from test_pretrained import SHAPES, shape
from texts import MIXED_TEXT, gpt2, plays

from glassgpt import gguf_header
from glassgpt.errors import GlassError, MissingExtraError, TokenizerError
from glassgpt.tokenizer import BPETokenizer, CharTokenizer, Tokenizer, WordTokenizer, load, pretrained, save
from glassgpt.tokenizer.bpe.bytelevel import BYTES
from glassgpt.tokenizer.gguf import PUBLISHED_KEY, tokenizer_from_metadata
from glassgpt.tokenizer.library import LibraryTokenizer, SentencePieceTokenizer
from glassgpt.tokenizer.specs import open_tokenizer
from glassgpt.tokenizer.tiktoken_file import tiktoken_files


def refused(path: Path, content: bytes | str | None = None) -> str:
    """The error message for a damaged file."""
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    with pytest.raises(TokenizerError) as caught:
        pretrained.load(path)
    said = str(caught.value)
    assert str(path) in said and "\n" not in said and len(said) < 400
    said.encode("utf-8")
    return said


# --- tokenizer.json --------------------------------------------------------------------------------------------------


def bpe_json(**changes: Any) -> dict[str, Any]:
    """A valid file with changed keys, of the model or of the file."""
    content = BPETokenizer(trained()).to_json()
    content["model"] |= {key: value for key, value in changes.items() if key in content["model"]}
    return content | {key: value for key, value in changes.items() if key not in content["model"]}


def token(name: Any, i: Any = 900, **flags: Any) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": i, "content": name, **plain, **flags}


LETTERS = {chr(code): code for code in range(0x21, 0x7F)}
JSON: dict[str, Callable[[], Any]] = {
    "no model": lambda: {"version": "1.0"},
    "a model of no type": lambda: bpe_json(model={"type": "Markov", "vocab": {}}),
    "no vocabulary": lambda: bpe_json(vocab=None),
    "a list for a vocabulary": lambda: bpe_json(vocab=["a", "b"]),
    "no merges": lambda: bpe_json(merges=None),
    "a number for merges": lambda: bpe_json(merges=7),
    "a merge of one": lambda: bpe_json(merges=["ab"]),
    "a merge of three": lambda: bpe_json(merges=[["a", "b", "c"]]),
    "a merge of numbers": lambda: bpe_json(merges=[[1, 2]]),
    "a merge of unknown tokens": lambda: bpe_json(merges=[["a", "zzzz"]]),
    "a merge that makes no token": lambda: bpe_json(merges=[["Q", "Q"]]),
    "a merge in no alphabet": lambda: bpe_json(merges=[["日", "本"]]),
    "an id twice": lambda: bpe_json(vocab=bpe_json()["model"]["vocab"] | {"a": 5}),
    "a negative id": lambda: bpe_json(vocab=bpe_json()["model"]["vocab"] | {"a": -5}),
    "a huge id": lambda: bpe_json(vocab=bpe_json()["model"]["vocab"] | {"a": 2**40}),
    "an id that is text": lambda: bpe_json(vocab=bpe_json()["model"]["vocab"] | {"a": "1"}),
    "an id that is a fraction": lambda: bpe_json(vocab=bpe_json()["model"]["vocab"] | {"a": 0.5}),
    "added tokens that are none": lambda: bpe_json(added_tokens=["<x>"]),
    "an added token without a name": lambda: bpe_json(added_tokens=[{"id": 900}]),
    "an added token with a number for a name": lambda: bpe_json(added_tokens=[token(5)]),
    "a pattern that is none": lambda: bpe_json(pre_tokenizer=split("(")),
    "a pattern that is a number": lambda: bpe_json(pre_tokenizer=split(5)),
    "a normalizer that is text": lambda: bpe_json(normalizer="NFC"),
    "a normalizer of no type": lambda: bpe_json(normalizer={"type": "NFQ"}),
    "half a character": lambda: bpe_json(added_tokens=[token("\ud800")]),
    "half a character where nobody looks": lambda: bpe_json(version="\udfff"),
    "decoders in decoders": lambda: bpe_json(decoder=nested(300), normalizer={"type": "Lowercase"}),
    "what makes the library panic": lambda: bpe_json(continuing_subword_prefix="far too long"),
    "WordPiece without words": lambda: {"model": {"type": "WordPiece"}},
    "Unigram of numbers": lambda: {"model": {"type": "Unigram", "vocab": [1, 2], "unk_id": 0}},
    "Unigram with an unknown beyond": lambda: {"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 9}},
    "no tokens": lambda: {"model": {"type": "BPE", "vocab": {}, "merges": []}},
}


def split(pattern: Any) -> dict[str, Any]:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [step, last]}


def nested(depth: int) -> Any:
    part: Any = {"type": "Fuse"}
    for _ in range(depth):
        part = {"type": "Sequence", "decoders": [part]}
    return part


@pytest.mark.parametrize("name", JSON)
def test_a_damaged_tokenizer_json(name: str, tmp_path: Path) -> None:
    refused(tmp_path / "tokenizer.json", json.dumps(JSON[name]()))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"[" * 100_000, b'{"a": 1' + b"0" * 5000 + b"}"]
)
def test_a_file_that_is_not_a_json_object(content: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "tokenizer.json", content)


@pytest.mark.parametrize("config", ["{", "[]", '{"eos_token": ["a"]}', '{"eos_token": {"content": {}}}'])
def test_a_damaged_tokenizer_config(config: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(bpe_json()), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(config, encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer(_config)?\.json"):
        load(tmp_path)


JUNK: list[Any] = [None, True, 0, -1, 1, 2**31, 2**70, 0.5, "", "x", "<x>", "Ġt h", "(", "NFC", "BPE", "ByteLevel"]
JUNK += ["\ud800", [], {}, [0], {"a": 1}, [["a", "b"]], ["a b"]]


@settings(max_examples=250, deadline=None, derandomize=True)
@given(data=st.data(), name=st.sampled_from(["GPT-2", "Llama 3", "Qwen 2", "WordPiece", "Unigram", "words", "letters"]))
def test_any_damage_to_a_tokenizer_json_gives_one_error(data: st.DataObject, name: str) -> None:
    content = copy.deepcopy(good(name))
    for _ in range(data.draw(st.integers(1, 3))):
        place, key = content, data.draw(st.sampled_from(sorted(content)))
        while isinstance(place[key], dict | list) and place[key] and data.draw(st.integers(0, 3)):
            place = place[key]
            keys = sorted(place)[:50] if isinstance(place, dict) else range(min(len(place), 50))
            key = data.draw(st.sampled_from(keys))
        if data.draw(st.booleans()):
            del place[key]
        else:
            place[key] = copy.deepcopy(data.draw(st.sampled_from(JUNK)))
        if not content:
            break
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda self, encoding: json.dumps(content))
        try:
            tokenizer = pretrained.load(Path("tokenizer.json"))
        except GlassError as error:
            assert "tokenizer.json" in str(error) and "\n" not in str(error)
            return
    tokenizer.files()
    try:
        ids = tokenizer.encode("the <x> end\n1")
    except TokenizerError:  # a word or character that it does not have
        return
    tokenizer.decode(ids)
    assert max(ids, default=0) < tokenizer.vocab_size and all(isinstance(tokenizer.token_bytes(i), bytes) for i in ids)


@cache
def good(name: str) -> dict[str, Any]:
    if name == "words":
        return WordTokenizer.train(plays()[:2000], vocab_size=50).to_json()
    if name == "letters":
        return CharTokenizer.train(plays()[:2000]).to_json()
    content: dict[str, Any] = json.loads(shape(name)[0])
    return content


# --- .tiktoken -------------------------------------------------------------------------------------------------------


def ranks(*extra: bytes, without: int = 0) -> bytes:
    lines = [base64.b64encode(token) + b" %d" % i for i, token in enumerate(BYTES)]
    return b"\n".join([*lines[without:], *extra])


RANKS = {
    "empty": (b"", "256 of the 256 bytes"),
    "bytes are missing": (ranks(without=3), "3 of the 256 bytes have no rank, the first 0x21"),
    "bad base64": (ranks(b"Y!! 256"), "line 257"),
    "half of base64": (ranks(b"YWI 256"), "line 257"),
    "no rank": (ranks(b"YWI="), "line 257"),
    "a rank that is none": (ranks(b"YWI= many"), "line 257"),
    "three columns": (ranks(b"YWI= 256 1"), "line 257"),
    "an empty line": (ranks(b"", b"YWI= 256"), "line 257"),
    "a token twice": (ranks(b"YWI= 256", b"YWI= 257"), "line 258"),
    "a rank twice": (ranks(b"YWI= 255"), "not all different"),
    "a negative rank": (ranks(b"YWI= -1"), "between 0 and"),
    "a huge rank": (ranks(b"YWI= 99999999"), "between 0 and"),
    "an endless rank": (ranks(b"YWI= " + b"9" * 10_000), "line 257"),
    "no text at all": (bytes(range(256)) * 10, "line 1"),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00\x00", "line 1"),
}


@pytest.mark.parametrize("name", RANKS)
def test_a_damaged_ranks_file(name: str, tmp_path: Path) -> None:
    content, said = RANKS[name]
    assert said in refused(tmp_path / "gpt2.tiktoken", content)


def test_a_split_pattern_is_for_ranks_files(tmp_path: Path) -> None:
    save(BPETokenizer(trained()), tmp_path, 16)
    with pytest.raises(TokenizerError, match="has its own"):
        open_tokenizer(str(tmp_path), "gpt2")


def test_a_split_pattern_that_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "a.tiktoken").write_bytes(ranks())
    with pytest.raises(TokenizerError, match="'gpt3'; there are gpt2, llama3, qwen2, o200k, or"):
        pretrained.load(tmp_path / "a.tiktoken", "gpt3")


# --- GGUF and SentencePiece ------------------------------------------------------------------------------------------


@cache
def good_gguf() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return byte_level(Path(folder) / "a.gguf", "gpt-2", BPETokenizer(trained()), eos_token_id=905).read_bytes()


GGUF: dict[str, Callable[[Path], object]] = {
    "a split pattern that is not known": lambda path: byte_level(path, "gpt-5", BPETokenizer(trained())),
    "another type": lambda path: write(path, "bert", ["a"], [1]),
    "no merges": lambda path: write(path, "gpt2", ["a", "b"], [1, 1]),
    "merges of nothing": lambda path: write(path, "gpt2", ["a", "b"], [1, 1], token_merges=["a c"]),
    "merges of one": lambda path: write(path, "gpt2", ["a", "b"], [1, 1], token_merges=["ab"]),
    "no tokens": lambda path: write(path, "gpt2", [], [], token_merges=[]),
    "a token twice": lambda path: write(path, "gpt2", ["a", "a<", "a<"], [1, 3, 3], token_merges=["a a"]),
    "fewer types than tokens": lambda path: write(path, "gpt2", ["a", "b"], [1], token_merges=["a b"]),
    "an end beyond": lambda path: byte_level(path, "gpt-2", BPETokenizer(trained()), eos_token_id=10**6),
    "no scores": lambda path: write(path, "llama", ["<unk>", "a"], [UNKNOWN, NORMAL]),
    "fewer scores than tokens": lambda path: write(path, "llama", ["<unk>", "a", "aa"], [2, 1, 1], token_scores=[0.0]),
    "llama with fewer types": lambda path: write(path, "llama", ["a", "b"], [1], token_scores=[0.0, 0.0]),
    "llama with an end beyond": lambda path: write(
        path, "llama", ["<unk>", "a"], [UNKNOWN, BYTE], token_scores=[0.0, 0.0], eos_token_id=7
    ),
}


@pytest.mark.parametrize("name", GGUF)
def test_a_gguf_without_a_tokenizer_that_can_be_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    GGUF[name](path)
    refused(path)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"tokenizer_config": 5}', '{"roles": {"pad_token": 5}}', '{"more": {}}']
)
def test_damaged_settings_in_a_gguf(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(good_gguf())
    metadata = gguf_header.read_header(tmp_path / "a.gguf", TokenizerError).metadata
    with pytest.raises(TokenizerError, match="damaged"):
        tokenizer_from_metadata(tmp_path / "a.gguf", {**metadata, PUBLISHED_KEY: content})


def test_a_gguf_without_any_tokenizer(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert "None; gpt2 and llama can be read" in refused(tmp_path / "a.gguf")


def test_any_damage_to_binary_files_gives_one_error(tmp_path: Path) -> None:
    draw = random.Random(11)
    for path, content in ((tmp_path / "a.gguf", good_gguf()), (tmp_path / "tokenizer.model", proto("bpe"))):
        path.write_bytes(content)
        pretrained.load(path)
        damaged = [b"", b"\x00", b"GGUF", draw.randbytes(100), draw.randbytes(1000)]
        damaged += [content[: draw.randrange(1, 400)] for _ in range(20)]
        damaged += [content[: draw.randrange(1, len(content))] for _ in range(20)]
        for _ in range(80):
            changed = bytearray(content)
            for _ in range(draw.randint(1, 4)):
                changed[draw.choice([draw.randrange(400), draw.randrange(len(content))])] = draw.randrange(256)
            damaged.append(bytes(changed))
        count = 0
        for some in damaged:
            path.write_bytes(some)
            try:
                pretrained.load(path).encode("some text")
            except TokenizerError as error:
                assert str(path) in str(error) and "\n" not in str(error)
                count += 1
        assert count > 60
        for some in damaged[:5]:
            refused(path, some)


@pytest.mark.parametrize("name", ["a.txt", "tokenizer.bin", "noname", "vocab.bpe"])
def test_a_file_of_an_unknown_format(name: str, tmp_path: Path) -> None:
    assert ".json, .gguf, .model, .tiktoken, or a model folder" in refused(tmp_path / name, b"anything")


@pytest.mark.parametrize("name", ["tokenizer.json", "a.tiktoken", "a.gguf", "tokenizer.model"])
def test_a_file_that_is_not_there(name: str, tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / "nowhere" / name)


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model"):
        (tmp_path / "a" / name).mkdir(parents=True)
        with pytest.raises(TokenizerError, match="cannot be read"):
            load(tmp_path / "a")
        (tmp_path / "a" / name).rmdir()
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json"):
        load(tmp_path / "a")


# --- what is not installed, and no network ---------------------------------------------------------------------------


def every_kind() -> list[Tokenizer]:
    libraries = [shape(name)[1] for name in ("WordPiece", "Unigram", "Metaspace with bytes", "Bloom")]
    ours = [BPETokenizer(trained()), WordTokenizer.train(plays()[:2000], vocab_size=50)]
    return [*ours, *libraries, SentencePieceTokenizer(proto("bpe")), SentencePieceTokenizer(proto("unigram"))]


def test_half_a_character_is_one_message_or_an_unknown_word() -> None:
    for tokenizer in every_kind():
        for encode in (tokenizer.encode, tokenizer.encode_array):
            if isinstance(tokenizer, WordTokenizer):
                assert tokenizer.decode(list(encode("\ud800"))) == "<|unk|>"
            else:
                with pytest.raises(TokenizerError) as caught:
                    encode("ab\ud800")
                str(caught.value).encode("utf-8")


@pytest.mark.parametrize(
    ("library", "extra", "read"),
    [
        ("tokenizers", "hf", lambda folder: load(folder)),
        ("sentencepiece", "sentencepiece", lambda folder: pretrained.load(folder / "tokenizer.model")),
        ("tiktoken", "tiktoken", lambda _: BPETokenizer(trained()).encode("a", engine="tiktoken")),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    library: str, extra: str, read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.json").write_text(shape("WordPiece")[0], encoding="utf-8")
    (tmp_path / "tokenizer.model").write_bytes(proto("bpe"))
    (tmp_path / "a.gguf").write_bytes(good_gguf())
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError) as caught:
        read(tmp_path)
    assert f"needs the library {library!r}" in str(caught.value) and f"[{extra}]'" in str(caught.value)


def test_everything_of_ours_needs_none_of_the_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: shape(name)[0] for name, (_, kind) in SHAPES.items() if kind is BPETokenizer}
    text = plays()[:300_000] + MIXED_TEXT
    expected = gpt2().encode(text)
    for library in ("tokenizers", "tiktoken", "gguf", "sentencepiece", "transformers"):
        monkeypatch.setitem(sys.modules, library, None)
    for shaped in files.values():
        (tmp_path / "tokenizer.json").write_text(shaped, encoding="utf-8")
        ours = load(tmp_path)
        assert ours.decode(ours.encode("the end")) == "the end"
    fresh = pretrained.gpt2()
    assert fresh.encode(text) == fresh.encode_array(text).tolist() == expected
    for path, content in tiktoken_files(BPETokenizer.train(text, 300), tmp_path / "a.tiktoken").items():
        path.write_bytes(content)
    made = [pretrained.load(tmp_path / "a.tiktoken"), WordTokenizer.train(text), CharTokenizer.train(text)]
    for tokenizer in made:
        save(tokenizer, tmp_path, 64)
        assert load(tmp_path).encode(text) == tokenizer.encode(text)
        assert not isinstance(load(tmp_path), LibraryTokenizer)


def test_nothing_uses_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("GLASSGPT_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    gpt2()
    fresh = pretrained.gpt2()
    assert fresh.encode("no network", engine="tiktoken") == gpt2().encode("no network", engine="python")
    for tokenizer in every_kind():
        save(tokenizer, tmp_path, 64)
        load(tmp_path)
        for name in ("tokenizer.json", "tokenizer.model"):
            (tmp_path / name).unlink(missing_ok=True)
