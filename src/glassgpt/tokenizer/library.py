"""Tokenizers that other libraries run.

``tokenizers`` runs every ``tokenizer.json`` (WordPiece, Unigram, SentencePiece's BPE with byte fallback, ...),
``sentencepiece`` a ``tokenizer.model``. Both libraries are optional extras.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from glassgpt.errors import MissingExtraError, TokenizerError
from glassgpt.tokenizer.base import Tokenizer, check_ids, json_file
from glassgpt.tokenizer.bpe import bytelevel

#: The character that SentencePiece writes for a space.
SPACE = "\u2581"
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
        self._tokens = {i: token for token, i in vocab.items()}
        added = self._library.get_added_tokens_decoder()
        self._special = {token.content: i for i, token in added.items() if token.special}
        self._added = {i: token.content for i, token in added.items()}
        self._roles = {role: name for role, name in (roles or {}).items() if name in vocab}
        self.eos_token_id = vocab.get(self._roles.get("eos_token", ""))
        self.bos_token_id = vocab.get(self._roles.get("bos_token", ""))
        decoders = _types(content.get("decoder"))
        self._byte_level, self._word_piece = "ByteLevel" in decoders, "WordPiece" in decoders

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Encode a text, without adding special tokens.

        Raises:
            TokenizerError: if the library cannot encode it.
        """
        self._library.encode_special_tokens = not allow_special
        try:
            return self._library.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            _raise_tokenizer_error("this text cannot be encoded", error)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text, with the decoder of the file."""
        self._check_ids(ids)
        return self._library.decode(list(ids), skip_special_tokens=False)

    def token_bytes(self, i: int) -> bytes:
        """The bytes of a token in the middle of a text."""
        self._check_ids([i])
        token = self._tokens[i]
        if i in self._added:
            return token.encode("utf-8")
        if self._byte_level:
            return bytelevel.unicode_to_bytes(token) or token.encode("utf-8")
        if self._word_piece:
            return (token.removeprefix("##") if token.startswith("##") else f" {token}").encode("utf-8")
        return _sentencepiece_bytes(token)

    def special_tokens(self) -> dict[str, str]:
        """Special tokens by role."""
        return dict(self._roles)

    def files(self) -> dict[str, bytes]:
        """The file that the tokenizer was read from."""
        return json_file(self.content or {})

    def _check_ids(self, ids: Sequence[int]) -> None:
        check_ids(ids, self.vocab_size)
        if missing := [i for i in ids if i not in self._tokens]:
            raise TokenizerError(f"no token has the id {missing[0]}")


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
            tokens = list(map(self._library.id_to_piece, range(self._library.get_piece_size())))
        except (RuntimeError, TypeError, ValueError) as error:  # ValueError: a token is not UTF-8
            raise TokenizerError(f"the `sentencepiece` library cannot read it: {error}") from None
        if not tokens:
            raise TokenizerError("it has no tokens")
        self._special = {token: i for i, token in enumerate(tokens) if self._library.is_control(i)}
        self._special |= {name: i for name, (i, special) in (added or {}).items() if special}
        self._plain = {name: i for name, (i, special) in (added or {}).items() if not special}
        self._names = {i: name for name, i in {**self._special, **self._plain}.items()}
        self._tokens = {**dict(enumerate(tokens)), **self._names}
        self.vocab_size = 1 + max(self._tokens)
        ids = {token: i for i, token in self._tokens.items()}
        roles = self.own_roles() if roles is None else roles
        self.eos_token_id, self.bos_token_id = (ids.get(roles.get(role, "")) for role in ("eos_token", "bos_token"))

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Encode a text, without adding special tokens.

        Raises:
            TokenizerError: if the library cannot encode it.
        """
        named = {**self._special, **self._plain} if allow_special else self._plain
        names = "|".join(map(re.escape, sorted(named, key=len, reverse=True)))
        ids: list[int] = []
        try:
            for at, part in enumerate(re.split(f"({names or '(?!)'})", text)):  # text, name, text, ..., text
                ids += [named[part]] if at % 2 else self._library.encode(part)
        except RuntimeError as error:  # a lone surrogate
            raise TokenizerError(f"this text cannot be encoded: {error}") from None
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text; control tokens and added tokens become their names."""
        self._check_ids(ids)
        text, run = "", list[int]()
        for i in ids:
            if i in self._names:
                text, run = text + self._library.decode(run) + self._names[i], []
            else:
                run.append(i)
        return text + str(self._library.decode(run))

    def token_bytes(self, i: int) -> bytes:
        """The bytes of a token in the middle of a text."""
        self._check_ids([i])
        return self._tokens[i].encode("utf-8") if i in self._names else _sentencepiece_bytes(self._tokens[i])

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

    def _check_ids(self, ids: Sequence[int]) -> None:
        check_ids(ids, self.vocab_size)
        if missing := [i for i in ids if i not in self._tokens]:
            raise TokenizerError(f"no token has the id {missing[0]}")


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
