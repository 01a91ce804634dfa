"""Published tokenizers: GPT-2's own, and the files that others write.

==================  ==========================================================================================
``tokenizer.json``  Hugging Face's format. Byte-level BPE, words and characters are read into our own
                    tokenizers, everything else is run by the `tokenizers` library
``*.tiktoken``      ranks: lines of ``base64(bytes) rank``; split pattern and special tokens are not in the file
``*.gguf``          llama.cpp's; its tokenizers of the types ``gpt2`` and ``llama``
``tokenizer.model`` SentencePiece's, run by its library
==================  ==========================================================================================
"""

import base64
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from glassgpt import assets, gguf_header
from glassgpt.errors import GlassError, MissingExtraError, TokenizerError
from glassgpt.tokenizer.base import END_OF_TEXT, Tokenizer, added_token, bos_processor, file_in
from glassgpt.tokenizer.bpe import bytelevel
from glassgpt.tokenizer.bpe.bytelevel import BPEModel
from glassgpt.tokenizer.bpe.tokenizer import BPETokenizer
from glassgpt.tokenizer.char import CharTokenizer
from glassgpt.tokenizer.library import SPACE, LibraryTokenizer, SentencePieceTokenizer
from glassgpt.tokenizer.pretokenize import PATTERNS
from glassgpt.tokenizer.word import WordTokenizer

#: The names of tokens that end a document, where nothing says which does.
_ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>")
#: Ranks files known by name: the split pattern, and the id of <|endoftext|>.
_RANKS = {
    "gpt2": ("gpt2", 50256),
    "r50k_base": ("gpt2", 50256),
    "p50k_base": ("gpt2", 50256),
    "cl100k_base": ("llama3", 100257),
}
#: What `tokenizer.ggml.pre` names, in llama.cpp's words: split patterns, and whether a piece that is a token is taken
#: whole. "smollm" and its like take every digit by itself first.
_GGUF_PATTERNS: dict[str, tuple[tuple[str, ...], bool]] = {
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "jais", "phi-2"), ((PATTERNS["gpt2"],), False)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), ((r"\p{N}", PATTERNS["gpt2"]), False)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), ((PATTERNS["llama3"],), True)),
    **dict.fromkeys(("dbrx", "smaug-bpe"), ((PATTERNS["llama3"],), False)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen"), ((PATTERNS["qwen2"],), False)),
}
#: Those that begin every text with a token, unless `tokenizer.ggml.add_bos_token` says otherwise.
_GGUF_BEGUN = ("llama-bpe", "llama3", "llama-v3")
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # of tokenizer.ggml.token_type


def gpt2() -> BPETokenizer:
    """GPT-2's own tokenizer, from the asset `gpt2-bpe`: 50,257 tokens, ``<|endoftext|>`` among them.

    Raises:
        AssetError: if its two files cannot be found or fetched.
    """
    files = assets.paths("gpt2-bpe")
    lines = files["vocab.bpe"].read_text(encoding="utf-8").split("\n")[1:]  # the first says the version
    merges = [bytelevel.pair(line) for line in lines if line]
    ids = json.loads(files["encoder.json"].read_text(encoding="utf-8"))
    special = {END_OF_TEXT: ids.pop(END_OF_TEXT)}
    vocab = {bytelevel.must_read(text): i for text, i in ids.items()}
    return BPETokenizer(BPEModel(vocab, merges, special=special, eos=END_OF_TEXT, bos=END_OF_TEXT))


def load(path: Path, pattern: str | None = None) -> Tokenizer:
    """Read a tokenizer from a file of any known format, or from a model folder.

    Args:
        path: of the file or folder.
        pattern: the name of the split pattern of a ``.tiktoken`` file; by default by its name, or GPT-2's.

    Raises:
        TokenizerError: if there is none, it is damaged, or of an unknown format.
        MissingExtraError: if it takes a library that is not installed.
    """
    if path.is_dir():
        path = file_in(path)
    readers = {".json": read_json, ".gguf": read_gguf, ".model": read_sentencepiece}
    if path.suffix == ".tiktoken":
        return read_ranks(path, pattern)
    if path.suffix not in readers:
        raise TokenizerError(
            f"{path} is no tokenizer file of a known format: {', '.join([*readers, '.tiktoken'])}, or a model folder"
        )
    return readers[path.suffix](path)


def read_json(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json``, and the roles of its special tokens from ``tokenizer_config.json`` beside it.

    Raises:
        TokenizerError: if it is damaged.
        MissingExtraError: if only the `tokenizers` library can run it, and it is not installed.
    """
    content = _read_object(path)
    try:
        roles = _roles(path, {token["content"] for token in content.get("added_tokens") or []})
        return _from_content(content, roles, path)
    except GlassError as error:
        if isinstance(error, MissingExtraError) or str(path) in str(error):
            raise
        raise TokenizerError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TokenizerError(f"{path} is damaged: {type(error).__name__}: {error}") from None


def _from_content(content: Mapping[str, Any], roles: Mapping[str, str], path: Path) -> Tokenizer:
    model = content.get("model")
    if not isinstance(model, dict):
        raise TokenizerError("there is no model in it")
    found: Tokenizer | None = None
    if model.get("type") == "WordLevel":
        found = CharTokenizer.from_json(content, path) or WordTokenizer.from_json(content, path)
        if found and roles.get("bos_token"):
            found.bos_token_id = found.special_ids().get(roles["bos_token"])
    else:
        bpe = bytelevel.from_json(content, eos=roles.get("eos_token"), bos=roles.get("bos_token"))
        found = BPETokenizer(bpe, content) if bpe else None
    return found or LibraryTokenizer(content, roles)


def _roles(path: Path, names: set[str]) -> dict[str, str]:
    """The special tokens that have a role, by what lies beside a tokenizer.json."""
    roles: dict[str, str] = {}
    config = path.with_name("tokenizer_config.json")
    if config.exists():
        for role, token in _read_object(config).items():
            name = token.get("content") if isinstance(token, dict) else token
            if role in ("bos_token", "eos_token", "unk_token", "pad_token") and name in names:
                roles[role] = name
    elif end := next((name for name in _ENDS if name in names), None):
        roles["eos_token"] = end
    return roles


def _read_object(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if "\\u" in text:
            json.dumps(content, ensure_ascii=False).encode("utf-8")  # fails where half of a character is written
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} is damaged: it holds {type(content).__name__}, not an object")
    return content


def read_ranks(path: Path, pattern: str | None = None) -> BPETokenizer:
    """Read a ``.tiktoken`` file: the ranks of tokens, from which merges are made (see :func:`_merges`).

    Raises:
        TokenizerError: if it is damaged.
    """
    known, end = _RANKS.get(path.stem, ("gpt2", None))
    ranks: dict[bytes, int] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        try:
            encoded, rank = line.split()
            token = base64.b64decode(encoded, validate=True)
            if token in ranks:
                raise ValueError
            ranks[token] = int(rank)
        except ValueError:
            said = f"line {number} is not `base64(bytes) rank` of another token: {line[:60]!r}"
            raise TokenizerError(f"{path} is damaged: {said}") from None
    if pattern and pattern not in PATTERNS:
        raise TokenizerError(f"there is no split pattern {pattern!r}; there are {', '.join(PATTERNS)}")
    special = {END_OF_TEXT: end if end is not None else 1 + max(ranks.values(), default=0)}
    merges, whole = _merges(ranks)
    try:
        model = BPEModel(
            ranks, merges, (PATTERNS[pattern or known],), special=special, eos=END_OF_TEXT, whole_pieces=whole
        )
        if missing := model.missing():
            raise TokenizerError(f"{len(missing)} of the 256 bytes have no rank, the first 0x{missing[0].hex()}")
        return BPETokenizer(model)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def _merges(ranks: Mapping[bytes, int]) -> tuple[list[tuple[bytes, bytes]], bool]:
    """Merges that give the same ids as ranks do, and whether pieces that are tokens have to be taken whole for that.

    Ranks join the neighbours whose joined bytes have the lowest rank. Where every token was learned as a pair, merging
    its bytes by all lower ranks leaves just that pair, and joining the pair is the only way in which the token ever
    comes about. Some published tokens were not learned so: then every way to split a token is a merge.
    """
    tokens = sorted((token for token in ranks if len(token) > 1), key=lambda token: ranks[token])
    learned = [_before_last_merge(token, ranks) for token in tokens]
    if all(len(parts) == 2 for parts in learned):
        return [(left, right) for left, right in learned], False
    splits = [(token[:cut], token[cut:]) for token in tokens for cut in range(1, len(token))]
    return [(left, right) for left, right in splits if left in ranks and right in ranks], True


def _before_last_merge(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """What is left of a token's bytes when all pairs are joined whose rank is below the token's."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        rank, at = min((ranks.get(left + right, ranks[token]), at) for at, (left, right) in enumerate(pairwise(parts)))
        if rank >= ranks[token]:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def ranks_file(tokenizer: BPETokenizer) -> bytes:
    """The content of a ``.tiktoken`` file: ``base64(bytes) rank`` per token, special tokens left out.

    Raises:
        TokenizerError: if ids do not rise with the ranks of merges, so that ranks cannot be ids.
    """
    if not tokenizer.ranks_are_ids():
        raise TokenizerError("a .tiktoken file ranks tokens by their ids, and this tokenizer merges in another order")
    tokens = sorted(tokenizer.model.vocab.items(), key=lambda item: item[1])
    return b"".join(base64.b64encode(token) + f" {i}\n".encode() for token, i in tokens)


def read_sentencepiece(path: Path) -> SentencePieceTokenizer:
    """Read a SentencePiece ``tokenizer.model``.

    Raises:
        TokenizerError: if it is damaged.
        MissingExtraError: if the `sentencepiece` library is not installed.
    """
    try:
        return SentencePieceTokenizer(path.read_bytes())
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from None
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


# --- GGUF ------------------------------------------------------------------------------------------------------------


def read_gguf(path: Path) -> Tokenizer:
    """Read the tokenizer inside a GGUF file.

    Raises:
        TokenizerError: if the file is damaged, or its tokenizer of a type or split pattern that is not known here.
    """
    try:
        values = gguf_header.read(path).metadata
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise TokenizerError(f"{path} is no GGUF file that can be read: {error}") from None
    return gguf_tokenizer(path, values)


def gguf_tokenizer(path: Path, values: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describe.

    Args:
        path: of the file, for messages.
        values: its metadata.

    Raises:
        TokenizerError: if it is damaged, or of a type or split pattern that is not known here.
    """
    kind = values.get("tokenizer.ggml.model")
    try:
        if kind == "gpt2":
            return _gguf_byte_level(values)
        if kind == "llama":
            return _gguf_sentencepiece(values)
    except (TokenizerError, KeyError, TypeError, ValueError, IndexError) as error:
        said = error if isinstance(error, TokenizerError) else f"its tokenizer is damaged: {error!r}"
        raise TokenizerError(f"{path}: {said}") from None
    raise TokenizerError(f"{path} holds a tokenizer of type {kind!r}; gpt2 and llama can be read")


def _gguf_byte_level(values: Mapping[str, Any]) -> BPETokenizer:
    pre = values.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in _GGUF_PATTERNS:
        known = ", ".join(_GGUF_PATTERNS)
        raise TokenizerError(f"its split pattern {pre!r} is not known here; known are {known}")
    patterns, whole = _GGUF_PATTERNS[pre]
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    named = {i: token for i, token in enumerate(tokens) if types[i] in (_CONTROL, _USER_DEFINED)}
    special = {token: i for i, token in named.items() if types[i] == _CONTROL}
    roles = {role: tokens[i] for role, i in _gguf_roles(values).items() if types[i] == _CONTROL}
    vocab = {bytelevel.read(token): i for i, token in enumerate(tokens) if i not in named and types[i] != _UNUSED}
    model = BPEModel(
        vocab={token: i for token, i in vocab.items() if token},  # what is not in the alphabet is padding
        merges=[bytelevel.pair(merge) for merge in values["tokenizer.ggml.merges"]],
        patterns=patterns,
        special=special,
        added={token: i for i, token in named.items() if token not in special},
        eos=roles.get("eos_token"),
        bos=roles.get("bos_token"),
        whole_pieces=whole,
    )
    if model.bos and values.get("tokenizer.ggml.add_bos_token", pre in _GGUF_BEGUN):
        content = bytelevel.to_json(model) | {"post_processor": bos_processor(model.bos, special[model.bos])}
        return BPETokenizer(model, content)
    return BPETokenizer(model)


def gguf_pattern_name(tokenizer: BPETokenizer) -> str:
    """What llama.cpp calls the way in which a tokenizer splits text.

    Raises:
        TokenizerError: if it has no name for it.
    """
    model = tokenizer.model
    for name, (patterns, whole) in _GGUF_PATTERNS.items():
        if patterns == tuple(model.patterns) and whole == model.whole_pieces:
            return name
    known = ", ".join(PATTERNS)
    raise TokenizerError(
        f"llama.cpp has no name for this tokenizer's split pattern {' then '.join(model.patterns)!r}, so it would make "
        f"other tokens; it knows those of {known}, and export --to hf takes any"
    )


def _gguf_roles(values: Mapping[str, Any]) -> dict[str, int]:
    keys = {"eos_token": "tokenizer.ggml.eos_token_id", "bos_token": "tokenizer.ggml.bos_token_id"}
    return {role: int(values[key]) for role, key in keys.items() if key in values}


def _gguf_sentencepiece(values: Mapping[str, Any]) -> LibraryTokenizer:
    """SentencePiece's BPE as a tokenizer.json: the pair whose token has the highest score is merged first."""
    tokens, scores = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.scores"]
    types = values["tokenizer.ggml.token_type"]
    ids = {token: i for i, token in enumerate(tokens)}
    merges = [
        (-scores[i], i, cut, token)
        for i, token in enumerate(tokens)
        if types[i] not in (2, _CONTROL, 6)  # neither unknown, control nor byte
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == 2), None)
    spaces = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    prefix = values.get("tokenizer.ggml.add_space_prefix", True)
    back = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(i, token, special=types[i] != _USER_DEFINED)
            for i, token in enumerate(tokens)
            if types[i] in (2, _CONTROL, _USER_DEFINED)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*([{"type": "Prepend", "prepend": SPACE}] if prefix else []), *spaces],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [*back, {"type": "Fuse"}, *(strip if prefix else [])]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": [[token[:cut], token[cut:]] for _, _, cut, token in sorted(merges)],
        },
    }
    roles = {role: tokens[i] for role, i in _gguf_roles(values).items()}
    if "bos_token" in roles and values.get("tokenizer.ggml.add_bos_token", True):
        content["post_processor"] = bos_processor(roles["bos_token"], ids[roles["bos_token"]])
    return LibraryTokenizer(content, roles)
