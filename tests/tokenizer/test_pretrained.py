"""Published tokenizer.json and .tiktoken files give the ids of the libraries that wrote them."""

import json
import re
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import ANY_TEXT, MIXED, MIXED_TEXT, gpt2, plays
from tiktoken.load import load_tiktoken_bpe
from tiktoken_ext import openai_public
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from glassgpt.errors import TokenizerError
from glassgpt.tokenizer import BPETokenizer, CharTokenizer, Tokenizer, WordTokenizer, load, pretrained, save, specs
from glassgpt.tokenizer.bpe.bytelevel import BPEModel
from glassgpt.tokenizer.bpe.tokenizer import require_bpe
from glassgpt.tokenizer.library import LibraryTokenizer
from glassgpt.tokenizer.pretokenize import PATTERNS
from glassgpt.tokenizer.tiktoken_file import tiktoken_files

SOME = {"max_examples": 40, "deadline": None, "derandomize": True}


# --- tokenizer.json --------------------------------------------------------------------------------------------------

DEEPSEEK = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
]
BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"


def byte_level(
    *steps: Any, special: tuple[str, ...] = ("<|endoftext|>",), complete: bool = True, **options: Any
) -> tokenizers.Tokenizer:
    """A small byte-level BPE tokenizer, trained by `tokenizers`; ``steps`` split before the step ByteLevel."""
    library = tokenizers.Tokenizer(models.BPE(**options))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not steps or steps[-1] is None)
    splits = [
        pre_tokenizers.Split(Regex(step), "isolated") if isinstance(step, str) else step for step in steps if step
    ]
    library.pre_tokenizer = pre_tokenizers.Sequence([*splits, last]) if splits else last
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if complete else [],
        show_progress=False,
    )
    library.train_from_iterator([plays()[:30_000], MIXED_TEXT if complete else ""], trainer)
    return library


def llama3() -> tokenizers.Tokenizer:
    library = byte_level(PATTERNS["llama3"], special=(), ignore_merges=True)
    library.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    begin = ("<|begin_of_text|>", library.token_to_id("<|begin_of_text|>"))
    library.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin]),
        ]
    )
    return library


def llama3_converted() -> tokenizers.Tokenizer:
    """As converted from a ranks file: every way to split a token is a merge."""
    content = json.loads(llama3().to_str())
    ids = content["model"]["vocab"]
    splits = [(token[:cut], token[cut:]) for token in ids for cut in range(1, len(token))]
    splits = [(left, right) for left, right in splits if left in ids and right in ids]
    content["model"]["merges"] = sorted(splits, key=lambda pair: (ids["".join(pair)], ids[pair[0]], ids[pair[1]]))
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def qwen2() -> tokenizers.Tokenizer:
    library = byte_level(PATTERNS["qwen2"], special=())
    library.normalizer = normalizers.NFC()
    library.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    library.add_tokens([AddedToken("<x>", normalized=False), AddedToken("[UNK]", normalized=False)])
    return library


def with_tokens(*tokens: Any, **options: Any) -> tokenizers.Tokenizer:
    library = byte_level(**options)
    library.add_tokens(list(tokens))
    return library


def word_piece() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    library.train_from_iterator([plays()[:30_000]], trainer)
    return library


def unigram() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.Unigram())
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    library.train_from_iterator(plays()[:30_000].split("\n"), trainer)
    return library


def llama2() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    library.train_from_iterator(plays()[:5_000].split("\n"), trainer)
    content = json.loads(library.to_str())
    content["added_tokens"] = content["added_tokens"][:3]  # bytes are in the vocabulary and not special
    return tokenizers.Tokenizer.from_str(json.dumps(content))


END = AddedToken("<|endoftext|>", normalized=False, special=False)
ODD_TOKENS = [AddedToken("<x>", normalized=False), AddedToken("\n\n", normalized=False), "  ", "@@", "日本"]
#: Shapes of Hugging Face's files: a function that builds one, and the class of ours that reads it.
SHAPES: dict[str, tuple[Callable[[], tokenizers.Tokenizer], type]] = {
    "GPT-2": (byte_level, BPETokenizer),
    "Llama 3": (llama3, BPETokenizer),
    "Llama 3, converted": (llama3_converted, BPETokenizer),
    "Qwen 2": (qwen2, BPETokenizer),
    "SmolLM 2": (lambda: byte_level(pre_tokenizers.Digits(individual_digits=True), None), BPETokenizer),
    "numbers": (lambda: byte_level(pre_tokenizers.Digits(), None), BPETokenizer),
    "DeepSeek": (lambda: byte_level(*DEEPSEEK), BPETokenizer),
    "plain added tokens": (lambda: with_tokens(*ODD_TOKENS), BPETokenizer),
    "not all bytes": (lambda: byte_level(complete=False), BPETokenizer),
    "a literal split": (lambda: byte_level(pre_tokenizers.Split("e", "isolated"), None), BPETokenizer),
    "an end that is not special": (lambda: with_tokens(END, special=()), BPETokenizer),
    "cut short": (lambda: shortened(byte_level()), BPETokenizer),
    "Bloom": (lambda: byte_level(BLOOM), LibraryTokenizer),
    "GPT-4o": (lambda: byte_level(PATTERNS["o200k"]), BPETokenizer),
    "word characters": (lambda: byte_level(r"\w+"), LibraryTokenizer),
    "a space before": (lambda: byte_level_with_prefix(), LibraryTokenizer),
    "stripping tokens": (lambda: with_tokens(AddedToken("<x>", lstrip=True, rstrip=True)), LibraryTokenizer),
    "single words": (lambda: with_tokens(AddedToken("the", single_word=True)), LibraryTokenizer),
    "not all bytes, and a token for them": (
        lambda: byte_level(complete=False, unk_token="<|endoftext|>"),
        LibraryTokenizer,
    ),
    "an added byte": (lambda: with_tokens("Ā"), LibraryTokenizer),  # the byte 0 in the byte alphabet
    "an added token in normal form": (lambda: with_normal_form("ée"), LibraryTokenizer),
    "an added word": (lambda: with_tokens("the", " the"), LibraryTokenizer),
    "two passes": (lambda: with_tokens("<x>", AddedToken("x>y", normalized=False), "<|x"), LibraryTokenizer),
    "Metaspace with bytes": (llama2, LibraryTokenizer),
    "WordPiece": (word_piece, LibraryTokenizer),
    "WordPiece, cut short": (lambda: shortened(word_piece()), LibraryTokenizer),
    "Unigram": (unigram, LibraryTokenizer),
}


def with_normal_form(*tokens: Any) -> tokenizers.Tokenizer:
    library = with_tokens(*tokens, special=())
    library.normalizer = normalizers.NFC()
    return library


def shortened(library: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    library.enable_truncation(5)
    library.enable_padding(length=9, pad_id=1)
    return library


def byte_level_with_prefix() -> tokenizers.Tokenizer:
    library = byte_level()
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return library


@cache
def shape(name: str) -> tuple[str, Tokenizer, tokenizers.Tokenizer]:
    """The file, our tokenizer, and that of `tokenizers`."""
    import tempfile

    build, kind = SHAPES[name]
    text = build().to_str()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(text, encoding="utf-8")
        ours = load(Path(folder))
    assert type(ours) is kind
    theirs = tokenizers.Tokenizer.from_str(text)
    theirs.no_truncation()
    theirs.no_padding()
    return text, ours, theirs


def their_ids(name: str, text: str, allowed: bool = True) -> list[int]:
    theirs = shape(name)[2]
    theirs.encode_special_tokens = not allowed
    ids: list[int] = theirs.encode(text, add_special_tokens=False).ids
    return ids


@settings(**SOME)
@given(text=ANY_TEXT, allowed=st.booleans())
@pytest.mark.parametrize("name", SHAPES)
def test_a_tokenizer_json_gives_the_ids_of_tokenizers(name: str, text: str, allowed: bool) -> None:
    _, ours, theirs = shape(name)
    ids = their_ids(name, text, allowed)
    assert ours.encode(text, allow_special=allowed) == ids
    if not allowed:
        assert ours.encode_array(text).tolist() == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


@settings(**SOME)
@given(ids=st.lists(st.integers(0, 300), max_size=20))
@pytest.mark.parametrize("name", [name for name, (_, kind) in SHAPES.items() if kind is BPETokenizer])
def test_any_ids_are_decoded_as_by_tokenizers(name: str, ids: list[int]) -> None:
    _, ours, theirs = shape(name)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("name", SHAPES)
def test_a_saved_tokenizer_is_read_by_all_with_the_same_ids(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    text, ours, _ = shape(name)
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, tokenizer in ((first, ours), (second, None)):
        folder.mkdir()
        save(tokenizer or load(first), folder, block_size=64)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    assert json.loads((first / "tokenizer.json").read_bytes()) == json.loads(text)
    again, auto = load(second), AutoTokenizer.from_pretrained(second)
    library = tokenizers.Tokenizer.from_file(str(second / "tokenizer.json"))
    library.no_truncation()
    library.no_padding()
    for mixed in MIXED.values():
        ids = their_ids(name, mixed)
        assert library.encode(mixed, add_special_tokens=False).ids == ids
        assert again.encode(mixed, allow_special=True) == auto.encode(mixed, add_special_tokens=False) == ids
    assert (again.vocab_size, again.special_ids(), type(again)) == (ours.vocab_size, ours.special_ids(), type(ours))


@pytest.mark.parametrize("name", SHAPES)
def test_merges_written_as_strings_are_the_same_merges(name: str, tmp_path: Path) -> None:
    text, ours, _ = shape(name)
    content = json.loads(text)
    if "merges" not in content["model"]:
        return
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    old = load(tmp_path)
    assert type(old) is type(ours) and old.encode(MIXED_TEXT) == ours.encode(MIXED_TEXT)


@settings(**SOME)
@given(text=ANY_TEXT)
@pytest.mark.parametrize(
    "name", ["GPT-2", "Llama 3", "SmolLM 2", "plain added tokens", "Bloom", "Metaspace with bytes"]
)
def test_the_bytes_of_tokens_joined_are_those_of_the_text(name: str, text: str) -> None:
    _, ours, _ = shape(name)
    joined = b"".join(ours.token_bytes(i) for i in ours.encode(text))
    if name == "Metaspace with bytes":
        text = text and f" {text}".replace("▁", " ")
    assert joined == text.encode("utf-8")


def test_bytes_of_word_piece_and_unigram_tokens() -> None:
    for name, text in (("WordPiece", "the king is dead , long live the king"), ("Unigram", "the king is dead")):
        _, ours, _ = shape(name)
        assert b"".join(map(ours.token_bytes, ours.encode(text))) == f" {text}".encode()


def test_added_tokens_have_the_ids_that_tokenizers_gives_them(tmp_path: Path) -> None:
    """The library numbers them after the vocabulary and ignores the ids in the file."""
    content = json.loads(byte_level(special=()).to_str())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] = [{"id": 5000, "content": "<x>", "special": True, **flags}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
    ours = load(tmp_path)
    assert ours.encode("a<x>b", allow_special=True) == theirs.encode("a<x>b").ids
    assert ours.special_ids() == {"<x>": 600}


WORDS_WITH_HOLES = {"model": {"type": "WordLevel", "vocab": {"a": 1, "b": 3, "[UNK]": 5}, "unk_token": "[UNK]"}}
BPE_WITH_HOLES = BPETokenizer(BPEModel({bytes([i]): 2 * i for i in range(256)}, [], special={"</s>": 600}, eos="</s>"))


@pytest.mark.parametrize("content", [WORDS_WITH_HOLES, BPE_WITH_HOLES.to_json()], ids=["words", "bytes"])
@pytest.mark.parametrize("by_library", [True, False])
def test_ids_without_a_token_are_named_and_empty(by_library: bool, content: Any, tmp_path: Path, cli: Any) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", **content}), encoding="utf-8")
    ours, theirs = load(tmp_path), tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ours = LibraryTokenizer({"version": "1.0", **content}) if by_library else ours
    holes = tuple(i for i in range(ours.vocab_size) if theirs.id_to_token(i) is None)
    assert ours.unused_ids() == holes != () and all(ours.token_bytes(i) == b"" for i in holes)
    assert ours.decode(holes) == ""
    for i in (ours.vocab_size, -1):
        with pytest.raises(TokenizerError, match="ids are from 0 to"):
            ours.token_bytes(i)
        with pytest.raises(TokenizerError, match="ids are from 0 to"):
            ours.decode([i])
    code, out, err = cli("tokenizer", "show", tmp_path / "tokenizer.json")
    assert (code, err) == (0, "") and f"{len(holes)} ids below {ours.vocab_size} without a token" in out


def test_tokenizers_without_holes_have_no_unused_ids(tmp_path: Path) -> None:
    for tokenizer in (gpt2(), CharTokenizer.train("ab"), WordTokenizer.train("a b", vocab_size=5)):
        assert tokenizer.unused_ids() == ()


FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
THINK = {"id": 256, "content": "<think>", "special": False, **FLAGS}
STOP = {"id": 257, "content": "<stop>", "special": True, **FLAGS}
BYTES_JSON = BPETokenizer.train("a", 256, special=()).to_json()
NOT_PLAIN: dict[str, tuple[dict[str, Any], str]] = {
    "beside another": ({"added_tokens": [{**THINK, "normalized": True}, STOP]}, "has normalized: true, and may"),
    "normalized": (
        {"added_tokens": [{**THINK, "normalized": True}], "normalizer": {"type": "NFC"}},
        "'<think>' has normalized: true, and there is a normalizer",
    ),
    "strips": ({"added_tokens": [{**THINK, "lstrip": True}]}, "its added token '<think>' has lstrip: true"),
    "numbers": ({"added_tokens": [{**THINK, "id": 300}]}, "gets another id than 300"),
    "a normalizer": ({"normalizer": {"type": "Lowercase"}}, "its normalizer is Lowercase"),
    "prefix": (
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        "has the step ByteLevel (add_prefix_space: true",
    ),
    "no pre-tokenizer": ({"pre_tokenizer": None}, "it has no pre-tokenizer"),
    "byte fallback": ({"model": {**BYTES_JSON["model"], "byte_fallback": True}}, "its model has byte_fallback"),
    "another model": ({"model": {"type": "WordPiece", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]",
        "continuing_subword_prefix": "##", "max_input_chars_per_word": 9}}, "its model is of the type WordPiece"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_export_says_why_a_tokenizer_is_not_plain_byte_level_bpe(name: str, tmp_path: Path) -> None:
    changes, said = NOT_PLAIN[name]
    (tmp_path / "tokenizer.json").write_text(json.dumps(BYTES_JSON | changes), encoding="utf-8")
    ours = load(tmp_path)
    assert isinstance(ours, LibraryTokenizer)
    with pytest.raises(
        TokenizerError, match="tiktoken runs plain byte-level BPE, and this tokenizer is not: "
    ) as caught:
        require_bpe(ours, "tiktoken runs")
    assert said in str(caught.value)


def test_converted_merges_work_with_both_engines() -> None:
    _, ours, _ = shape("Llama 3, converted")
    assert isinstance(ours, BPETokenizer) and not ours.model.merges_in_order() and ours.ranks_are_ids()
    text = plays()[-50_000:] + MIXED_TEXT
    ids = ours.encode(text, engine="tiktoken")
    assert ours.encode(text, engine="python") == ids == their_ids("Llama 3, converted", text)


def test_the_end_need_not_be_special() -> None:
    _, ours, theirs = shape("an end that is not special")
    assert ours.eos_token_id == theirs.token_to_id("<|endoftext|>") == ours.encode("<|endoftext|>")[0]


@pytest.mark.parametrize(
    ("config", "eos", "bos"),
    [
        (None, "<|endoftext|>", None),
        ({}, None, None),
        ({"eos_token": "<|im_end|>", "bos_token": None}, "<|im_end|>", None),
        ({"eos_token": {"content": "<|im_end|>"}, "bos_token": "<|im_start|>"}, "<|im_end|>", "<|im_start|>"),
        ({"eos_token": "<nowhere>", "pad_token": "<|im_end|>"}, None, None),
    ],
)
def test_eos_and_bos_come_from_tokenizer_config(
    config: dict[str, Any] | None, eos: str | None, bos: str | None, tmp_path: Path
) -> None:
    library = byte_level(special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    library.save(str(tmp_path / "tokenizer.json"))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    ours = load(tmp_path)
    assert ours.eos_token_id == (library.token_to_id(eos) if eos else None)
    assert ours.bos_token_id == (library.token_to_id(bos) if bos else None)


# --- .tiktoken -------------------------------------------------------------------------------------------------------


def write(tokenizer: BPETokenizer, path: Path, beside: bool = True) -> bytes:
    """Write a .tiktoken file, and the file beside it; give the former's content."""
    files = tiktoken_files(tokenizer, path)
    for file, content in files.items():
        if beside or file == path:
            file.write_bytes(content)
    return files[path]


def ranks_of(path: Path) -> dict[bytes, int]:
    """Read the file with tiktoken, without its cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")
        return load_tiktoken_bpe(str(path))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_ranks_file_gives_the_same_ids_to_all(pattern: str, tmp_path: Path) -> None:
    ours = BPETokenizer.train(plays()[:60_000] + MIXED_TEXT * 3, 900, pattern=pattern)
    path = tmp_path / "mine.tiktoken"
    write(ours, path, beside=False)
    assert specs.identity_of(pretrained.load(path, pattern)) == specs.identity_of(ours)
    write(ours, path)
    again = pretrained.load(path)
    assert isinstance(again, BPETokenizer) and again.model == ours.model
    assert write(again, path) == path.read_bytes()
    beside = json.loads((tmp_path / "mine.tiktoken.json").read_text(encoding="utf-8"))
    arguments = {name: beside[name] for name in ("pat_str", "special_tokens")}
    theirs = tiktoken.Encoding("mine", mergeable_ranks=ranks_of(path), **arguments)
    for text in (MIXED_TEXT, plays()[-20_000:]):
        ids = theirs.encode(text, allowed_special="all")
        assert ours.encode(text, allow_special=True) == again.encode(text, allow_special=True) == ids


def test_special_and_added_tokens_are_read_back_from_beside_the_ranks(tmp_path: Path) -> None:
    model = BPETokenizer.train("any text", 256, special=()).model
    special, added = {"<s>": 300, "</s>": 302}, {"<think>": 304}
    model = replace(model, patterns=(r"\p{L}+|\s",), special=special, added=added, eos="</s>", bos="<s>")
    write(BPETokenizer(model), tmp_path / "gpt2.tiktoken")  # what is beside it comes before the name
    again = pretrained.load(tmp_path / "gpt2.tiktoken")
    assert isinstance(again, BPETokenizer) and again.model == model
    assert (again.eos_token_id, again.bos_token_id) == (302, 300)


@pytest.mark.parametrize("name", ["gpt2", "r50k_base", "p50k_base", "cl100k_base", "o200k_base"])
def test_a_published_name_has_the_pattern_and_the_special_tokens_of_tiktoken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = BPETokenizer.train(plays()[:20_000], 300, special=())
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: dict(learned.model.vocab))
    monkeypatch.setattr(openai_public, "data_gym_to_mergeable_bpe_ranks", lambda **_: dict(learned.model.vocab))
    arguments = getattr(openai_public, name)() | {"explicit_n_vocab": None}
    theirs = tiktoken.Encoding(**arguments)
    path = tmp_path / f"{name}.tiktoken"
    write(learned, path, beside=False)
    ours = pretrained.load(path)
    assert ours.special_ids() == arguments["special_tokens"] and ours.eos_token_id == theirs.eot_token
    for text in MIXED.values():
        assert ours.encode(text, allow_special=True) == theirs.encode(text, allowed_special="all")


def test_an_unknown_name_has_no_pattern(tmp_path: Path) -> None:
    path = tmp_path / "mine.tiktoken"
    write(BPETokenizer.train("any text", 260), path, beside=False)
    with pytest.raises(
        TokenizerError, match=r"does not say how text is split.*--pattern.*mine\.tiktoken\.json"
    ) as caught:
        pretrained.load(path)
    example = re.search(r"\{.*\}", str(caught.value))
    assert example
    (tmp_path / "mine.tiktoken.json").write_text(example[0], encoding="utf-8")
    assert pretrained.load(path).encode("any text") == pretrained.load(path, "gpt2").encode("any text")


DAMAGED = ["", "[]", "{}", '{"pat_str": 5}', '{"pat_str": "("}', '{"pat_str": "gpt5"}']
DAMAGED += [f'{{"pat_str": "gpt2", "special_tokens": {wrong}}}' for wrong in ('{"a": "b"}', '{"a": 5}', "5")]
DAMAGED += ['{"pat_str": "gpt2", "eos_token": "<eos>"}', '{"pat_str": "gpt2", "special_tokens": {"\\ud800": 900}}']
DAMAGED += ["[" * 10**5]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_beside_the_ranks_is_one_message(content: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.tiktoken"
    write(BPETokenizer.train("any text", 260), path, beside=False)
    (tmp_path / "mine.tiktoken.json").write_text(content, encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"mine\.tiktoken"):
        pretrained.load(path)


@settings(**SOME | {"max_examples": 120})
@given(
    tokens=st.lists(st.text("ab", min_size=2, max_size=8), unique=True, max_size=12),
    texts=st.lists(st.text("ab", max_size=60), min_size=1, max_size=5),
)
def test_ranks_that_nobody_learned_give_the_ids_of_tiktoken(tokens: list[str], texts: list[str]) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {token.encode(): 256 + i for i, token in enumerate(tokens)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda self: b"".join(b64encode(t) + b" %d\n" % i for t, i in ranks.items()))
        ours = pretrained.load(Path("any.tiktoken"), "gpt2")
    theirs = tiktoken.Encoding("any", pat_str=PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens={})
    library = tokenizers.Tokenizer.from_str(ours.files()["tokenizer.json"].decode("utf-8"))
    for text in texts:
        assert ours.encode(text) == theirs.encode_ordinary(text) == library.encode(text).ids


def test_ids_with_gaps_are_kept_when_saved(tmp_path: Path) -> None:
    """As in cl100k_base, where an id before that of <|endoftext|> is unused."""
    write(BPETokenizer.train(plays()[:20_000], 400, special=()), tmp_path / "cl100k_base.tiktoken", beside=False)
    ours = pretrained.load(tmp_path / "cl100k_base.tiktoken")
    save(ours, tmp_path, 64)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for tokenizer in (ours, load(tmp_path)):
        assert tokenizer.vocab_size == 100277 and tokenizer.eos_token_id == 100257
        assert tokenizer.encode("a<|endoftext|>1234", allow_special=True) == library.encode("a<|endoftext|>1234").ids


def test_merges_that_ranks_cannot_express_are_not_written() -> None:
    model = BPETokenizer.train(plays()[:20_000], 400).model
    merges = [*model.merges[:-2], model.merges[-1], model.merges[-2]]
    with pytest.raises(TokenizerError, match="merges in another order"):
        tiktoken_files(BPETokenizer(BPEModel(model.vocab, merges)), Path("a.tiktoken"))


def test_dropout_in_a_file_does_not_make_ids_random(tmp_path: Path) -> None:
    content = BPETokenizer.train("the quick brown fox " * 50, 300).to_json()
    content["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    loaded = load(tmp_path)
    plain = BPETokenizer.train("the quick brown fox " * 50, 300)
    assert [loaded.encode("the quick brown fox")] * 20 == [plain.encode("the quick brown fox") for _ in range(20)]
    assert json.loads(loaded.files()["tokenizer.json"]) == content
