"""Tokenizers whose algorithms are not ours, run by the libraries that define them.

``tokenizers`` runs whatever a ``tokenizer.json`` can describe (WordPiece, Unigram, SentencePiece's BPE with byte
fallback, ...); ``sentencepiece`` runs a ``tokenizer.model``. Both are extras.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from glassgpt.errors import MissingExtraError, TokenizerError
from glassgpt.tokenizer.base import json_file
from glassgpt.tokenizer.bpe import bytelevel

#: SentencePiece's sign for a space.
SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class LibraryTokenizer:
    """Any ``tokenizer.json``, by the `tokenizers` library.

    Args:
        content: of the file.
        roles: special tokens by role, for example ``{"eos_token": "</s>"}``.

    Raises:
        MissingExtraError: if the library is not installed.
        TokenizerError: if it cannot read the content.
    """

    can_encode_in_chunks = False  # who knows what its parts do

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
            _refuse("the `tokenizers` library cannot read it", error)
        self._library.no_truncation()  # the file may ask for either, for batches of one length
        self._library.no_padding()
        self.kind = str(content["model"].get("type", "BPE")).lower()
        pieces = self._library.get_vocab(with_added_tokens=True)
        if not pieces:
            raise TokenizerError("it has no tokens")
        self.vocab_size = 1 + max(pieces.values())
        self._pieces = {i: piece for piece, i in pieces.items()}
        added = self._library.get_added_tokens_decoder()
        self._special = {token.content: i for i, token in added.items() if token.special}
        self._added = {i: token.content for i, token in added.items()}
        self._roles = {role: name for role, name in (roles or {}).items() if name in pieces}
        self.eos_token_id = pieces.get(self._roles.get("eos_token", ""))
        self.bos_token_id = pieces.get(self._roles.get("bos_token", ""))
        kinds = _types(content.get("decoder"))
        self._byte_level, self._word_piece = "ByteLevel" in kinds, "WordPiece" in kinds

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Ids of a text, without anything put before or after it.

        Raises:
            TokenizerError: if the library cannot encode it.
        """
        self._library.encode_special_tokens = not allow_special
        try:
            ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            _refuse("this text cannot be encoded", error)
        return ids

    def encode_array(self, text: str) -> np.ndarray:
        """As :meth:`encode`, to an int64 array ``[tokens]``."""
        return np.array(self.encode(text), dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, by the rules of the file.

        Raises:
            TokenizerError: for an id that is not in the vocabulary.
        """
        _check_ids(ids, self._pieces, self.vocab_size)
        text: str = self._library.decode(list(ids), skip_special_tokens=False)
        return text

    def token_bytes(self, i: int) -> bytes:
        """The bytes that a token stands for in the middle of a text.

        Raises:
            TokenizerError: for an id that is not in the vocabulary.
        """
        _check_ids([i], self._pieces, self.vocab_size)
        piece = self._pieces[i]
        if i in self._added:
            return piece.encode("utf-8")
        if self._byte_level:
            return bytelevel.read(piece) or piece.encode("utf-8")
        if self._word_piece:
            return (piece.removeprefix("##") if piece.startswith("##") else f" {piece}").encode("utf-8")
        return _sentencepiece_bytes(piece)

    def special_tokens(self) -> dict[str, str]:
        """Those with a role."""
        return dict(self._roles)

    def special_ids(self) -> dict[str, int]:
        """Every special token and its id."""
        return dict(self._special)

    def files(self) -> dict[str, bytes]:
        """The file it was read from."""
        return json_file(self.content)


class SentencePieceTokenizer:
    """A SentencePiece model (Kudo and Richardson 2018, arXiv:1808.06226), by the `sentencepiece` library.

    Args:
        proto: the bytes of a ``tokenizer.model``.

    Raises:
        MissingExtraError: if the library is not installed.
        TokenizerError: if it cannot read the model.
    """

    kind = "sentencepiece"
    can_encode_in_chunks = False  # it puts a space before every text

    def __init__(self, proto: bytes):
        try:
            import sentencepiece
        except ImportError:
            raise MissingExtraError("sentencepiece", "sentencepiece", "a SentencePiece tokenizer.model") from None
        self._proto = proto
        try:
            self._library = sentencepiece.SentencePieceProcessor(model_proto=proto)
            everything = range(self._library.get_piece_size())
            pieces = list(map(self._library.id_to_piece, everything))
        except (RuntimeError, TypeError, ValueError) as error:  # ValueError: a piece that is no UTF-8
            raise TokenizerError(f"the `sentencepiece` library cannot read it: {error}") from None
        if not pieces:
            raise TokenizerError("it has no tokens")
        self.vocab_size = len(pieces)
        self._special = {pieces[i]: i for i in everything if self._library.is_control(i)}
        self._named = re.compile("(" + "|".join(map(re.escape, self._special)) + ")") if self._special else None
        self.eos_token_id = self._library.eos_id() if self._library.eos_id() >= 0 else None
        self.bos_token_id = self._library.bos_id() if self._library.bos_id() >= 0 else None

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Ids of a text, without anything put before or after it.

        Raises:
            TokenizerError: if the library cannot encode it.
        """
        named = self._named if allow_special else None
        ids: list[int] = []
        try:
            for part in filter(None, named.split(text) if named else [text]):
                ids += [self._special[part]] if named and part in self._special else self._library.encode(part)
        except RuntimeError as error:  # half of a character
            raise TokenizerError(f"this text cannot be encoded: {error}") from None
        return ids

    def encode_array(self, text: str) -> np.ndarray:
        """As :meth:`encode`, to an int64 array ``[tokens]``."""
        return np.array(self.encode(text), dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids; control tokens are written by their names.

        Raises:
            TokenizerError: for an id that is not in the vocabulary.
        """
        _check_ids(ids, range(self.vocab_size), self.vocab_size)
        names, text, run = {i: name for name, i in self._special.items()}, "", list[int]()
        for i in ids:
            if i in names:
                text, run = text + self._library.decode(run) + names[i], []
            else:
                run.append(i)
        return text + str(self._library.decode(run))

    def token_bytes(self, i: int) -> bytes:
        """The bytes that a token stands for in the middle of a text.

        Raises:
            TokenizerError: for an id that is not in the vocabulary.
        """
        _check_ids([i], range(self.vocab_size), self.vocab_size)
        return _sentencepiece_bytes(self._library.id_to_piece(i))

    def special_tokens(self) -> dict[str, str]:
        """The names of the tokens that begin and end a text, as far as there are any."""
        ids = {"bos_token": self.bos_token_id, "eos_token": self.eos_token_id}
        return {role: self._library.id_to_piece(i) for role, i in ids.items() if i is not None}

    def special_ids(self) -> dict[str, int]:
        """Every control token and its id."""
        return dict(self._special)

    def files(self) -> dict[str, bytes]:
        """The file it was read from."""
        return {"tokenizer.model": self._proto}


def _refuse(what: str, error: BaseException) -> NoReturn:
    """Make one message of what the library raised. When its Rust code panics, that is no Exception."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    raise TokenizerError(f"{what}: {error}") from None


def _sentencepiece_bytes(piece: str) -> bytes:
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode("utf-8")


def _check_ids(ids: Sequence[int], known: Any, vocab_size: int) -> None:
    for i in ids:
        if i not in known:
            raise TokenizerError(f"ids are from 0 to {vocab_size - 1}, got {i}")


def _without_dropout(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same file without BPE dropout, which would give a text other ids every time."""
    model = content.get("model")
    if not isinstance(model, dict) or not model.get("dropout"):
        return content
    return {**content, "model": {**model, "dropout": None}}


def _types(part: Any) -> set[str]:
    """The types named in a part of a tokenizer.json, those inside a sequence among them."""
    if not isinstance(part, dict):
        return set()
    inner = [step for key in ("decoders", "normalizers", "pretokenizers") for step in part.get(key) or ()]
    return {str(part.get("type"))}.union(*map(_types, inner))
