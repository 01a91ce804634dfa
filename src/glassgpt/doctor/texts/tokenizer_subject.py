"""A tokenizer to examine, whoever wrote it: a file that the house reads, or an object of somebody's own code."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glassgpt.tokenizer.base import Tokenizer
from glassgpt.tokenizer.bpe.bytelevel import unicode_to_bytes
from glassgpt.tokenizer.bpe.tokenizer import BPETokenizer
from glassgpt.tokenizer.library import SentencePieceTokenizer

#: The roles of special tokens that are looked at.
ROLES = ("eos", "bos", "pad", "unk")


@dataclass
class TokenizerSubject:
    """A tokenizer behind one interface.

    Attributes:
        name: of the file or the factory.
        encode: a text that a user wrote, to ids, as far as the tokenizer offers it without special tokens.
        decode: ids to a text.
        vocab_size: all ids should be smaller; None if it does not say.
        tokens: the tokens by their ids, bytes or texts; empty if they were not found.
        special: the ids of special tokens, by their names.
        roles: ids by role: ``eos``, ``bos``, ``pad``, ``unk``.
        end_ids: all ids at which a generation ends.
        declared: whether the tokenizer says that it normalises text (case, normal forms, white space).
        model_vocab_size: rows of the embedding of the model beside it, or that was given; None if there is none.
        problem: why the file cannot be read as a tokenizer; the rest is then empty.
        content: of its tokenizer.json, if it has one.
        house: the tokenizer, if it is one of ours.
        same_id: pairs of tokens that have the same id, in an object's own vocabulary.
        options: what the tokenizer's ``encode`` offers against special tokens in text, in words.
    """

    name: str
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    vocab_size: int | None = None
    tokens: Mapping[int, bytes | str] = field(default_factory=dict)
    special: Mapping[str, int] = field(default_factory=dict)
    roles: Mapping[str, int] = field(default_factory=dict)
    end_ids: tuple[int, ...] = ()
    declared: bool = False
    model_vocab_size: int | None = None
    problem: str = ""
    content: Mapping[str, Any] | None = None
    house: Tokenizer | None = None
    same_id: Sequence[tuple[bytes | str, bytes | str]] = ()
    options: str = ""


def of_house(tokenizer: Tokenizer, name: str, model_vocab_size: int | None = None) -> TokenizerSubject:
    """The subject of a tokenizer of ours."""
    special = tokenizer.special_ids()
    roles = {role: special.get(tokenizer.roles().get(f"{role}_token", "")) for role in ROLES}
    roles |= {"eos": tokenizer.eos_token_id, "bos": tokenizer.bos_token_id}
    content = tokenizer.content
    if roles.get("unk") is None:
        roles["unk"] = _unknown_of_house(tokenizer)
    declared = isinstance(tokenizer, SentencePieceTokenizer) or bool((content or {}).get("normalizer"))
    declared = declared or (isinstance(tokenizer, BPETokenizer) and tokenizer.model.normal_form is not None)
    unused = set(tokenizer.unused_ids())
    return TokenizerSubject(
        name, tokenizer.encode, tokenizer.decode, tokenizer.vocab_size,
        {i: tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size) if i not in unused}, special,
        {role: i for role, i in roles.items() if i is not None}, tokenizer.end_token_ids, declared,
        model_vocab_size, content=content, house=tokenizer,
    )  # fmt: skip


def _unknown_of_house(tokenizer: Tokenizer) -> int | None:
    """The id of unknown words that a file names without giving it a role."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        name = tokenizer.own_roles().get("unk_token")
        return next((i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == (name or "").encode()), None)
    model = (tokenizer.content or {}).get("model") or {}
    vocab, name = model.get("vocab"), model.get("unk_token")
    return vocab.get(name) if isinstance(vocab, dict) and name is not None else model.get("unk_id")


def looks_special(name: str) -> bool:
    """Whether a token's name is written as those of special tokens are: ``<|endoftext|>``, ``</s>``, ``[PAD]``."""
    if name.startswith("<|") and name.endswith("|>") and len(name) > 4:
        return True
    return name.lower() in ("<s>", "</s>", "<pad>", "<eos>", "<bos>", "<unk>", "[unk]", "[pad]", "[cls]", "[sep]",
                            "[mask]", "<mask>", "<start_of_turn>", "<end_of_turn>", "[bos]", "[eos]")  # fmt: skip


def byte_of(token: bytes | str) -> bytes | None:
    """The bytes of a token: as they are, or in GPT-2's byte alphabet; else None."""
    return token if isinstance(token, bytes) else unicode_to_bytes(token)


def is_byte_level(subject: TokenizerSubject) -> bool:
    """Whether it is byte-level BPE: the vocabulary has nearly all single bytes, and any text can be written in it."""
    if subject.house is not None:
        return isinstance(subject.house, BPETokenizer) or "ByteLevel" in str((subject.content or {}).get("decoder"))
    singles = {found for token in subject.tokens.values() if (found := byte_of(token)) is not None and len(found) == 1}
    return len(singles) >= 200


def is_word_level(subject: TokenizerSubject) -> bool:
    """Whether its tokens are words of a list: it has a token for unknown ones, or refuses them."""
    if is_byte_level(subject) or isinstance(subject.house, SentencePieceTokenizer | BPETokenizer):
        return False
    if "unk" in subject.roles:
        return True
    words = sum(len(token) > 1 and str(token).strip().isalpha() for token in subject.tokens.values())
    return words > 0.3 * len(subject.tokens) > 3
