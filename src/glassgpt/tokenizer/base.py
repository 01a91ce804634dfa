"""The interface of all tokenizers, and the files that store one in a model folder."""

import functools
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from glassgpt.errors import TokenizerError
from glassgpt.files import path_exists
from glassgpt.tokenizer.published import TEMPLATE_FILE, TOKENIZER_CONFIG, PublishedSettings

#: The tokenizer files of a model folder; the first that exists is read.
FILES = ("tokenizer.json", "tokenizer.model")
#: The two files of older folders, as GPT-2's first.
OLDER_FILES = ("vocab.json", "merges.txt")
#: The token that ends a document.
END_OF_TEXT = "<|endoftext|>"
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back.

    Attributes:
        kind: "char", "word", "bpe", or the model type of another library.
        vocab_size: all ids are smaller.
        eos_token_id: the id that ends a document, or None.
        bos_token_id: the id that begins a document, or None.
        other_end_ids: more ids at which generation ends, as the model's generation_config.json lists them.
        content: of the tokenizer.json that it was read from, or None.
        published: how the published model that this tokenizer came with is used; saving writes it again.
        can_encode_in_chunks: whether a text that is cut at :func:`glassgpt.tokenizer.pretokenize.safe_cut` and encoded
            part by part has the same ids as the whole text.
    """

    kind: str
    vocab_size: int
    eos_token_id: int | None = None
    bos_token_id: int | None = None
    other_end_ids: tuple[int, ...] = ()
    content: Mapping[str, Any] | None = None
    published: PublishedSettings = PublishedSettings()
    can_encode_in_chunks: bool
    _special: Mapping[str, int]  # the special tokens and their ids

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """All ids at which generation ends; the first is ``eos_token_id`` if there is one."""
        own = () if self.eos_token_id is None else (self.eos_token_id,)
        return tuple(dict.fromkeys(own + self.other_end_ids))

    def encode(
        self,
        text: str,
        allow_special: bool | Collection[str] = False,
        *,
        forbid_special: bool | Collection[str] = False,
    ) -> list[int]:
        """Encode a text.

        Args:
            text: any valid Unicode. Two surrogates that are a pair are the character that they stand for.
            allow_special: the special tokens whose names in the text become those tokens: all, none, or for example
                ``{"<|endoftext|>"}``. The names of others are plain text. Never allow them in text that users write.
            forbid_special: the names that raise an error if the text contains them: those of all special tokens that
                are not allowed, none, or the names given.

        Raises:
            TokenizerError: if this tokenizer cannot encode the text, or has no such special token.
        """
        text = join_surrogates(text)
        return self._encode(text, self._allowed(text, allow_special, forbid_special))

    def encode_batch(
        self,
        texts: Iterable[str],
        allow_special: bool | Collection[str] = False,
        *,
        forbid_special: bool | Collection[str] = False,
    ) -> list[list[int]]:
        """Encode several texts, each by itself, as :meth:`encode` does."""
        return [self.encode(text, allow_special, forbid_special=forbid_special) for text in texts]

    def encode_parts(self, parts: Iterable[str | int]) -> list[int]:
        """Encode one text that is given as plain parts with the ids of special tokens between them."""
        return [i for part in parts for i in ([part] if isinstance(part, int) else self._encode(part, {}))]

    def encode_array(self, text: str) -> np.ndarray:
        """Encode a text to an int64 array ``[tokens]``; the fastest way for long texts."""
        return np.array(self.encode(text), dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text; special tokens become their names, ids without a token nothing.

        Raises:
            TokenizerError: if an id is not below ``vocab_size``.
        """

    def token_bytes(self, i: int) -> bytes:
        """The UTF-8 bytes of a token. Joining the bytes of all tokens gives the bytes of the text.

        An id without a token (:meth:`unused_ids`) has none.

        Raises:
            TokenizerError: if the id is not below ``vocab_size``.
        """

    def unused_ids(self) -> tuple[int, ...]:
        """Ids below vocab_size that have no token."""
        return ()

    def special_tokens(self) -> dict[str, str]:
        """Special tokens by role, for example ``{"eos_token": "<|endoftext|>"}``."""
        return {}

    def roles(self) -> dict[str, str]:
        """The special tokens that a chat template gets: :meth:`special_tokens`, and all that were published."""
        return {**self.published.roles, **self.special_tokens()}

    @property
    def pad_token_id(self) -> int | None:
        """The id of the token that fills up short rows, or None."""
        return self.special_ids().get(self.roles().get("pad_token", ""))

    def special_ids(self) -> dict[str, int]:
        """The id of every special token."""
        return dict(self._special)

    def files(self) -> dict[str, bytes]:
        """The files for a model folder, by name, in the formats of published tools; without tokenizer_config.json."""

    def _encode(self, text: str, allowed: Mapping[str, int]) -> list[int]:
        """Encode a text in which the names of these special tokens are those tokens."""
        return self.encode_parts(split_at_names(text, allowed)) if allowed else self._encode_plain(text)

    def _encode_plain(self, text: str) -> list[int]:
        """Encode a text without special tokens."""

    def _allowed(
        self, text: str, allow_special: bool | Collection[str], forbid_special: bool | Collection[str]
    ) -> dict[str, int]:
        """The ids of the special tokens that are allowed; raise if the text has a name that is forbidden."""
        if not allow_special and not forbid_special:
            return {}
        ids = self.special_ids()
        names = ids if allow_special is True else allow_special or ()
        if unknown := [name for name in names if name not in ids]:
            raise TokenizerError(
                f"allow_special: {unknown[0]!r} is not a special token; there are {', '.join(ids) or 'none'}"
            )
        forbidden = (name for name in ids if name not in names) if forbid_special is True else forbid_special or ()
        if found := next((name for name in forbidden if name in text), None):
            raise TokenizerError(
                f"the text has {found!r} at position {text.index(found)}, and forbid_special forbids it; remove it, "
                "allow it (allow_special), or leave forbid_special out to encode it as plain text"
            )
        return {name: ids[name] for name in names}


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raise a TokenizerError if an id is not below ``vocab_size``."""
    if len(ids) and not 0 <= min(ids) <= max(ids) < vocab_size:
        wrong = next(i for i in ids if not 0 <= i < vocab_size)
        raise TokenizerError(f"ids are from 0 to {vocab_size - 1}, got {wrong}")


def same_tokens(a: Tokenizer, b: Tokenizer) -> bool:
    """Return whether each id is the same token in both tokenizers, so that a model of one can read ids of the other."""
    if a.vocab_size != b.vocab_size or a.special_ids() != b.special_ids():
        return False
    return all(a.token_bytes(i) == b.token_bytes(i) for i in range(a.vocab_size))


def join_surrogates(text: str) -> str:
    """Replace surrogate pairs, as UTF-16 has them, by the characters that they stand for."""
    try:
        text.encode("utf-8")
        return text  # the usual case
    except UnicodeEncodeError:
        return _SURROGATE_PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)


@functools.lru_cache(64)  # a model may have hundreds of names
def name_pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern with one group that matches any of these names, the longest first; nothing if there are none."""
    return re.compile("(" + ("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)") + ")")


def split_at_names(text: str, ids: Mapping[str, int]) -> list[str | int]:
    """Cut a text at the names of tokens, the longest first: the texts between, and the ids of those tokens."""
    parts, begin = list[str | int](), 0
    for match in name_pattern(tuple(ids)).finditer(text):
        parts += [text[begin : match.start()], ids[match[0]]]
        begin = match.end()
    return [part for part in [*parts, text[begin:]] if part != ""]


def attach(tokenizer: Tokenizer, published: PublishedSettings) -> None:
    """Give a tokenizer the settings that were published with it: the end tokens, and what saving keeps.

    If no token has the role of BOS, the one that its ``post_processor`` puts first begins a document.
    """
    tokenizer.published = published
    ends = (i for i in published.end_ids if 0 <= i < tokenizer.vocab_size and i != tokenizer.eos_token_id)
    tokenizer.other_end_ids = tuple(dict.fromkeys(ends))
    content, bos = tokenizer.content or {}, tokenizer.special_tokens().get("bos_token")
    first = _first_id(content)
    if tokenizer.bos_token_id is None:
        tokenizer.bos_token_id = first
    elif content and first is None and bos and published.tokenizer_config.get("add_bos_token"):
        processor = bos_processor(bos, tokenizer.bos_token_id)  # as a tokenizer.json says it
        tokenizer.content = {**content, "post_processor": processor}


def save(tokenizer: Tokenizer, folder: Path, block_size: int) -> None:
    """Write the tokenizer's files, its ``tokenizer_config.json`` and chat template, which `AutoTokenizer` can load."""
    published, files = tokenizer.published, tokenizer.files()
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
    }
    if "tokenizer.json" not in files:  # the class that loads a SentencePiece tokenizer.model; it would pad on the left
        config |= {"tokenizer_class": "LlamaTokenizer", "padding_side": "right"}
    config |= dict(sorted(published.tokenizer_config.items()))
    config |= tokenizer.special_tokens() | dict(sorted(tokenizer.roles().items()))
    templates = dict(published.chat_templates)
    if [*templates] == ["default"]:
        files[TEMPLATE_FILE] = templates["default"].encode("utf-8")
    elif templates:
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    for name, content in (files | json_file(config, TOKENIZER_CONFIG)).items():
        (folder / name).write_bytes(content)


def tokenizer_file_in(folder: Path) -> Path:
    """The tokenizer file of a model folder.

    Raises:
        TokenizerError: if there is none.
    """
    if file := find_tokenizer_file(folder):
        return file
    raise TokenizerError(f"{folder} has no tokenizer.json; a model folder must contain its tokenizer")


def find_tokenizer_file(folder: Path) -> Path | None:
    """The tokenizer file of a folder, or None. Of the older layout vocab.json and merges.txt, it is the first."""
    if file := next((folder / name for name in FILES if path_exists(folder / name)), None):
        return file
    return folder / "vocab.json" if all(path_exists(folder / name) for name in OLDER_FILES) else None


def json_file(content: Mapping[str, Any], name: str = "tokenizer.json") -> dict[str, bytes]:
    """A JSON file as :meth:`Tokenizer.files` returns it: its name and bytes."""
    return {name: (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode("utf-8")}


def tokenizer_json(
    model: Mapping[str, Any],
    decoder: Mapping[str, Any],
    *,
    added_tokens: Sequence[Mapping[str, Any]] = (),
    normalizer: Mapping[str, Any] | None = None,
    pre_tokenizer: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of a ``tokenizer.json``."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added_tokens),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def added_token(i: int, name: str, special: bool) -> dict[str, Any]:
    """An entry of `added_tokens` that matches its name literally, anywhere in a text."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": name, **flags, "special": special}


def split_step(pattern: str) -> dict[str, Any]:
    """A `pre_tokenizer` that splits by a regular expression."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def bos_processor(bos: str, i: int) -> dict[str, Any]:
    """A `post_processor` that puts the BOS token before every text."""
    first, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = [{part: {**entry[part], "type_id": 1} for part in entry} for entry in (first, {"Sequence": {"id": "B"}})]
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, *second],
        "special_tokens": {bos: {"id": bos, "ids": [i], "tokens": [bos]}},
    }


def adds_bos_token(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer's model expects prompts that start with the BOS token, as Llama does.

    Never for our own tokenizers; for a published one, if the `post_processor` of its tokenizer.json adds BOS; without a
    tokenizer.json, if its configuration says ``add_bos_token``. Encoding a text does not add it: the caller does.
    """
    if tokenizer.bos_token_id is None:
        return False
    if tokenizer.content is None:
        return bool(tokenizer.published.tokenizer_config.get("add_bos_token"))
    return _first_id(tokenizer.content) == tokenizer.bos_token_id


def _first_id(content: Mapping[str, Any]) -> int | None:
    """The id that the `post_processor` of a tokenizer.json puts before every text; None if it puts none."""
    processor = content.get("post_processor") or {}
    for step in (processor, *(processor.get("processors") or ())):
        if step.get("type") in ("BertProcessing", "RobertaProcessing"):
            return int(step["cls"][1])
        single = step.get("single") if step.get("type") == "TemplateProcessing" else None
        if isinstance(single, list) and single and "SpecialToken" in single[0]:
            return int(step["special_tokens"][single[0]["SpecialToken"]["id"]]["ids"][0])
    return None


class WordLevelTokenizer(Tokenizer):
    """One token per pre-token, from a fixed list: the common part of the character and the word tokenizer.

    Args:
        tokens: distinct tokens in the order of their ids.
        special: names of special tokens, whose ids follow.
    """

    can_encode_in_chunks = True
    split_pattern: str  # each match is a token
    unk_token: str  # required by the format; if it is not in the vocabulary, encoding an unknown token raises
    unk_token_id: int | None = None

    def __init__(self, tokens: Sequence[str], special: Sequence[str] = ()):
        assert tokens and len(set(tokens)) == len(tokens), "a vocabulary has distinct tokens"
        self.tokens = [*tokens, *special]
        self.vocab_size = len(self.tokens)
        self._special = {name: len(tokens) + i for i, name in enumerate(special)}

    def special_tokens(self) -> dict[str, str]:
        """The tokens that begin and end a document, if there are any."""
        ids = {"eos_token": self.eos_token_id, "bos_token": self.bos_token_id}
        return {role: self.tokens[i] for role, i in ids.items() if i is not None}

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text."""
        check_ids(ids, self.vocab_size)
        return "".join(self.tokens[i] for i in ids)

    def token_bytes(self, i: int) -> bytes:
        """The UTF-8 bytes of a token."""
        return self.decode([i]).encode("utf-8", errors="surrogatepass")

    def files(self) -> dict[str, bytes]:
        """The files for a model folder, by name."""
        return json_file(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The content of ``tokenizer.json``: a word-level model."""
        vocab = {token: i for i, token in enumerate(self.tokens)}
        return tokenizer_json(
            {"type": "WordLevel", "vocab": vocab, "unk_token": self.unk_token},
            {"type": "Fuse"},
            added_tokens=[added_token(i, name, special=True) for name, i in self._special.items()],
            pre_tokenizer=split_step(self.split_pattern),
        )

    def equals_json(self, content: Mapping[str, Any]) -> bool:
        """Whether a word-level ``tokenizer.json`` with the same vocabulary encodes and decodes as this tokenizer."""
        ours = self.to_json()
        keys = ("added_tokens", "normalizer", "pre_tokenizer", "decoder")
        same_unknown = (self.unk_token in self.tokens) == (self.unk_token_id is not None)
        same_unknown = same_unknown and content["model"].get("unk_token") == self.unk_token
        return same_unknown and all(content.get(key) == ours[key] for key in keys)


def word_level_tokens(content: Mapping[str, Any], path: Path) -> tuple[list[str], list[str]] | None:
    """The plain and the special tokens of a word-level ``tokenizer.json`` in the order of their ids.

    None if the ids are not 0, 1, 2, ..., or the special ones are not the last.

    Raises:
        TokenizerError: if the ids are not different whole numbers.
    """
    vocab = content["model"].get("vocab")
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    if not ids or any(type(i) is not int or i < 0 for i in ids) or len(set(ids)) < len(ids):
        raise TokenizerError(f"{path} is damaged: the ids of its vocabulary are not different whole numbers")
    tokens, special = sorted(vocab, key=lambda token: vocab[token]), len(content.get("added_tokens") or [])
    plain, last = tokens[: len(tokens) - special], tokens[len(tokens) - special :]
    return (plain, last) if plain and max(ids) < len(ids) else None
