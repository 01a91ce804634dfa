"""Tokenizers that other libraries run.

``tokenizers`` runs every ``tokenizer.json`` (WordPiece, Unigram, SentencePiece's BPE with byte fallback, ...),
``sentencepiece`` a ``tokenizer.model``. Both libraries are optional extras.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from glassgpt.errors import MissingExtraError, TokenizerError
from glassgpt.tokenizer.base import Tokenizer, check_ids, json_file, split_at_names
from glassgpt.tokenizer.bpe import bytelevel

#: The character that SentencePiece writes for a space.
SPACE = "\u2581"
#: `normalizer_spec { add_dummy_prefix: false }`: protobuf merges it into the model's before it.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class LibraryTokenizer(Tokenizer):
    """Any ``tokenizer.json``, run by the `tokenizers` library.

    Args:
        content: of the file.
        roles: special tokens by role, for example ``{"eos_token": "</s>"}``.

    Raises:
        MissingExtraError: if the library is not installed.
        TokenizerError: if the library cannot read the content.
    """

    can_encode_in_chunks = False  # the pre-tokenizer may be any

    def __init__(self, content: Mapping[str, Any], roles: Mapping[str, str] | None = None):
        try:
            import tokenizers
        except ImportError:
            kind = (content.get("model") or {}).get("type", "unknown")
            raise MissingExtraError("tokenizers", "hf", f"a tokenizer.json with a {kind} model") from None
        self.content = content
        try:
            self._library = tokenizers.Tokenizer.from_str(json.dumps(_without_dropout(content)))
        except BaseException as error:
            _raise_tokenizer_error("the `tokenizers` library cannot read it", error)
        self._library.no_truncation()  # the file may enable both
        self._library.no_padding()
        self.kind = str(content["model"].get("type", "BPE")).lower()
        vocab = self._library.get_vocab(with_added_tokens=True)
        if not vocab:
            raise TokenizerError("it has no tokens")
        self.vocab_size = 1 + max(vocab.values())
        if self.vocab_size > 1 << 24:
            raise TokenizerError(f"it has a token with the id {self.vocab_size - 1}; ids are below {1 << 24}")
        self._tokens = {i: token for token, i in vocab.items()}
        added = self._library.get_added_tokens_decoder()
        self._special = {token.content: i for i, token in added.items() if token.special}
        self._added = {i: token.content for i, token in added.items()}
        self._roles = {role: name for role, name in (roles or {}).items() if name in vocab}
        self.eos_token_id = vocab.get(self._roles.get("eos_token", ""))
        self.bos_token_id = vocab.get(self._roles.get("bos_token", ""))
        decoders = _types(content.get("decoder"))
        self._byte_level, self._word_piece = "ByteLevel" in decoders, "WordPiece" in decoders
        self._with_marks: dict[str, Any] = {}

    def encode_parts(self, parts: Iterable[str | int]) -> list[int]:
        """Encode one text that is given as plain parts with the ids of special tokens between them.

        The library encodes the whole at once, as it may treat the beginning of a text in another way, and the text
        beside a token. The special tokens are there under names that the plain parts do not contain.
        """
        parts = list(parts)
        plain = "".join(part for part in parts if isinstance(part, str))
        mark = next(c for c in map(chr, range(0xF0000, 0xFFFFE)) if c not in plain)  # characters for private use
        text = "".join(part if isinstance(part, str) else f"{mark}{part}{mark}" for part in parts)
        encoding = self._run(self._library_with_marks(mark), text)
        tokens = zip(encoding.ids, encoding.tokens, strict=True)
        return [int(token.split(mark)[1]) if mark in token else i for i, token in tokens]

    def _encode(self, text: str, allowed: Mapping[str, int]) -> list[int]:
        if not allowed or len(allowed) < len(self._special):
            return super()._encode(text, allowed)
        self._library.encode_special_tokens = False
        return list(self._run(self._library, text).ids)

    def _encode_plain(self, text: str) -> list[int]:
        self._library.encode_special_tokens = True
        return list(self._run(self._library, text).ids)

    def _run(self, library: Any, text: str) -> Any:
        try:
            return library.encode(text, add_special_tokens=False)
        except BaseException as error:
            _raise_tokenizer_error("this text cannot be encoded", error)

    def _library_with_marks(self, mark: str) -> Any:
        """The library's tokenizer with other names for special tokens: the id between two marks."""
        if mark not in self._with_marks:
            import tokenizers

            library = tokenizers.Tokenizer.from_str(self._library.to_str())
            for i, token in self._library.get_added_tokens_decoder().items():
                if token.special:
                    flags = {flag: getattr(token, flag) for flag in ("single_word", "lstrip", "rstrip", "normalized")}
                    library.add_tokens([tokenizers.AddedToken(f"{mark}{i}{mark}", special=False, **flags)])
            library.encode_special_tokens = True  # their own names are plain text
            self._with_marks = {mark: library}
        return self._with_marks[mark]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text, with the decoder of the file."""
        check_ids(ids, self.vocab_size)
        return self._library.decode(list(ids), skip_special_tokens=False)

    def token_bytes(self, i: int) -> bytes:
        """The bytes of a token in the middle of a text."""
        check_ids([i], self.vocab_size)
        token = self._tokens.get(i, "")
        if i in self._added:
            return token.encode("utf-8")
        if self._byte_level:
            return bytelevel.unicode_to_bytes(token) or token.encode("utf-8")
        if self._word_piece:
            return (token.removeprefix("##") if token.startswith("##") else f" {token}").encode("utf-8")
        return _sentencepiece_bytes(token)

    def unused_ids(self) -> tuple[int, ...]:
        """Ids below vocab_size that have no token."""
        return tuple(i for i in range(self.vocab_size) if i not in self._tokens)

    def special_tokens(self) -> dict[str, str]:
        """Special tokens by role."""
        return dict(self._roles)

    def files(self) -> dict[str, bytes]:
        """The file that the tokenizer was read from."""
        return json_file(self.content or {})


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model (Kudo and Richardson 2018, arXiv:1808.06226), run by the `sentencepiece` library.

    Args:
        proto: the bytes of a ``tokenizer.model``.
        roles: special tokens by role; by default those that the model names.
        added: tokens beside the model: names, ids, and whether they are special.

    Raises:
        MissingExtraError: if the library is not installed.
        TokenizerError: if the library cannot read the model.
    """

    kind = "sentencepiece"
    can_encode_in_chunks = False  # it adds a space before every text

    def __init__(
        self,
        proto: bytes,
        roles: Mapping[str, str] | None = None,
        added: Mapping[str, tuple[int, bool]] | None = None,
    ):
        try:
            import sentencepiece
        except ImportError:
            raise MissingExtraError("sentencepiece", "sentencepiece", "a SentencePiece tokenizer.model") from None
        self._proto = proto
        try:
            self._library = sentencepiece.SentencePieceProcessor(model_proto=proto)
            self._inside = sentencepiece.SentencePieceProcessor(model_proto=proto + _NO_DUMMY_PREFIX)
            tokens = list(map(self._library.id_to_piece, range(self._library.get_piece_size())))
        except (RuntimeError, TypeError, ValueError) as error:  # ValueError: a token is not UTF-8
            raise TokenizerError(f"the `sentencepiece` library cannot read it: {error}") from None
        if not tokens:
            raise TokenizerError("it has no tokens")
        self._strips = not self._library.encode(" ")  # the spaces around a text
        self._special = {token: i for i, token in enumerate(tokens) if self._library.is_control(i)}
        self._special |= {name: i for name, (i, special) in (added or {}).items() if special}
        self._plain = {name: i for name, (i, special) in (added or {}).items() if not special}
        self._names = {i: name for name, i in {**self._special, **self._plain}.items()}
        self._tokens = {**dict(enumerate(tokens)), **self._names}
        self.vocab_size = 1 + max(self._tokens)
        ids = {token: i for i, token in self._tokens.items()}
        roles = self.own_roles() if roles is None else roles
        self.eos_token_id, self.bos_token_id = (ids.get(roles.get(role, "")) for role in ("eos_token", "bos_token"))

    def encode_parts(self, parts: Iterable[str | int]) -> list[int]:
        """Encode one text that is given as plain parts with the ids of special tokens between them.

        As in `transformers`, only the first part gets the space that SentencePiece adds before a text; or all of them,
        if tokenizer_config.json has ``legacy``.
        """
        ids, always = list[int](), bool(self.published.tokenizer_config.get("legacy"))
        for part in parts:
            for inner in [part] if isinstance(part, int) else split_at_names(part, self._plain):
                ids += [inner] if isinstance(inner, int) else self._pieces(inner, inside=bool(ids) and not always)
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        return self.encode_parts([text])

    def _pieces(self, text: str, inside: bool) -> list[int]:
        """Encode a text without added tokens; ``inside``: one that does not begin the whole text."""
        if inside and text.startswith(" ") and self._strips:
            inside = False  # the added space is the text's own
        try:
            return list((self._inside if inside else self._library).encode(text))
        except RuntimeError as error:  # a lone surrogate
            raise TokenizerError(f"this text cannot be encoded: {error}") from None

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text; control tokens and added tokens become their names."""
        check_ids(ids, self.vocab_size)
        text, run = "", list[int]()
        for i in ids:
            if i in self._names:
                text, run = text + self._library.decode(run) + self._names[i], []
            elif i in self._tokens:
                run.append(i)
        return text + str(self._library.decode(run))

    def token_bytes(self, i: int) -> bytes:
        """The bytes of a token in the middle of a text."""
        check_ids([i], self.vocab_size)
        return self._names[i].encode("utf-8") if i in self._names else _sentencepiece_bytes(self._tokens.get(i, ""))

    def unused_ids(self) -> tuple[int, ...]:
        """Ids below vocab_size that have no token."""
        return tuple(i for i in range(self.vocab_size) if i not in self._tokens)

    def own_roles(self) -> dict[str, str]:
        """The roles of tokens that the model itself names."""
        library = self._library
        ids = {"bos_token": library.bos_id(), "eos_token": library.eos_id(), "unk_token": library.unk_id()}
        return {role: library.id_to_piece(i) for role, i in ids.items() if i >= 0}

    def special_tokens(self) -> dict[str, str]:
        """The BOS and EOS tokens, if there are any."""
        ids = {"bos_token": self.bos_token_id, "eos_token": self.eos_token_id}
        return {role: self._tokens[i] for role, i in ids.items() if i is not None}

    def files(self) -> dict[str, bytes]:
        """The file that the tokenizer was read from."""
        return {"tokenizer.model": self._proto}


def _raise_tokenizer_error(problem: str, error: BaseException) -> NoReturn:
    """Turn an error of the library into a TokenizerError. A panic of its Rust code is not an Exception."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    raise TokenizerError(f"{problem}: {error}") from None


def _sentencepiece_bytes(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode("utf-8")


def _without_dropout(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Remove BPE dropout, which makes ids random."""
    model = content.get("model")
    if not isinstance(model, dict) or not model.get("dropout"):
        return content
    return {**content, "model": {**model, "dropout": None}}


def _types(part: Any) -> set[str]:
    """The types of a step in a tokenizer.json, including those of the steps inside a sequence."""
    if not isinstance(part, dict):
        return set()
    inner = [step for key in ("decoders", "normalizers", "pretokenizers") for step in part.get(key) or ()]
    return {str(part.get("type"))}.union(*map(_types, inner))
