"""GPT-2's byte alphabet, and the ``tokenizer.json`` of byte-level BPE.

Published files write tokens as text, one printable character per byte: printable bytes stand for themselves, the other
68 for the characters from U+0100 on (`bytes_to_unicode` in openai/gpt-2). The order of these characters is the order
of the first 256 ids, in GPT-2 and here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import regex

from glassgpt.errors import TokenizerError
from glassgpt.tokenizer.base import added_token
from glassgpt.tokenizer.bpe.normal import NormalForm
from glassgpt.tokenizer.pretokenize import PATTERNS, Splitter

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
#: The single bytes in the order of their ids.
BYTES = tuple(bytes([byte]) for byte in (*_PRINTABLE, *_OTHERS))
_TO_CHARACTER = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(_OTHERS)}
_TO_BYTE = {character: byte for byte, character in _TO_CHARACTER.items()}
#: Byte -> id, as `bytes.translate` wants it.
_IDS = bytes(sorted(range(256), key=lambda byte: BYTES[byte]))


@dataclass(frozen=True)
class BPEModel:
    """What a byte-level BPE tokenizer is made of.

    Attributes:
        vocab: the bytes of each token -> its id. A byte that is not among them is left out of texts, as the
            `tokenizers` library does: SmolLM2, for example, has no tokens for most control characters.
        merges: pairs of tokens in order of rank; each pair's bytes, joined, are in the vocabulary.
        patterns: that split text into pieces, one after another.
        special: tokens that are not made of bytes -> their ids. Written in a text they stay text, unless allowed.
        added: tokens that are found whole in any text before it is split (`added_tokens` that are not special).
        eos: the special or added token that ends a document.
        bos: the one that begins a document, where models were trained with it.
        whole_pieces: a piece that is a token is that token, even where the merges do not lead to it (`ignore_merges`).
        normal_form: Unicode normal form that text is brought into first; encoding is then not lossless.
    """

    vocab: Mapping[bytes, int]
    merges: Sequence[tuple[bytes, bytes]]
    patterns: Sequence[str] = (PATTERNS["gpt2"],)
    special: Mapping[str, int] = field(default_factory=dict)
    added: Mapping[str, int] = field(default_factory=dict)
    eos: str | None = None
    bos: str | None = None
    whole_pieces: bool = False
    normal_form: NormalForm | None = None

    def check(self) -> None:
        """Refuse parts that do not fit together.

        Raises:
            TokenizerError: naming what is wrong.
        """
        ids = [*self.vocab.values(), *self.special.values(), *self.added.values()]
        if len(set(ids)) != len(ids) or min(ids) < 0 or max(ids) > 0x10FFFF:
            raise TokenizerError("the ids of the tokens are not all different, or not between 0 and 1,114,111")
        clash = next((name for name in (*self.special, *self.added) if read(name) in self.vocab), None)
        if clash is not None:
            raise TokenizerError(f"{clash!r} is an added token and a token of the vocabulary; files hold one of them")
        for rank, (left, right) in enumerate(self.merges):
            if not {left, right, left + right} <= self.vocab.keys():
                raise TokenizerError(f"merge {rank} joins {left!r} and {right!r}, and not all three are tokens")

    def missing(self) -> list[bytes]:
        """The single bytes that are no tokens."""
        return [byte for byte in BYTES if byte not in self.vocab]

    def in_order(self) -> bool:
        """Whether every merge makes a new token of bytes or what earlier merges make, as in all that was learned."""
        made = set(BYTES)
        for left, right in self.merges:
            if left not in made or right not in made or left + right in made:
                return False
            made.add(left + right)
        return True


def spell(word: bytes) -> str:
    """The first tokens of a word: one character per byte, ``chr(id)``, with ids in the order of :data:`BYTES`."""
    return word.translate(_IDS).decode("latin-1")


def written(token: bytes) -> str:
    """A token as published files write it."""
    return "".join(_TO_CHARACTER[byte] for byte in token)


def read(text: str) -> bytes | None:
    """The bytes of a token as published files write it; None if it is written otherwise."""
    try:
        return bytes([_TO_BYTE[character] for character in text])
    except KeyError:
        return None


def must_read(text: str) -> bytes:
    """As :func:`read`.

    Raises:
        TokenizerError: if it is written otherwise.
    """
    token = read(text)
    if token is None:
        raise TokenizerError(f"{text!r} is not written in the byte alphabet")
    return token


def pair(merge: str | Sequence[str]) -> tuple[bytes, bytes]:
    """The two tokens of a merge, written ``"a b"`` or ``["a", "b"]``.

    Raises:
        TokenizerError: if it is written otherwise.
    """
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if len(parts) != 2:
        raise TokenizerError(f"the merge {merge!r} does not join two tokens")
    return must_read(parts[0]), must_read(parts[1])


def check_special(names: Sequence[str], splitter: Splitter) -> None:
    """Refuse special tokens that are no text, or that a saved vocabulary could not tell from other tokens.

    Raises:
        TokenizerError: naming one.
    """
    for name in names:
        if not name or names.count(name) > 1 or any(0xD800 <= ord(character) <= 0xDFFF for character in name):
            raise TokenizerError(f"special tokens have names that are text and all different, got {list(names)}")
        token = read(name)
        if token is not None and len(splitter.split(token.decode("utf-8", errors="surrogateescape"))) == 1:
            raise TokenizerError(
                f"the special token {name!r} could be learned as a plain token, too; take a name that is split, such "
                f"as <|{name}|>"
            )


# --- tokenizer.json --------------------------------------------------------------------------------------------------

#: Of added tokens, if they are found in any other way than as they are written.
_FLAGS = ("single_word", "lstrip", "rstrip")
#: The regular expressions that `regex` reads as Oniguruma does, which splits for `tokenizers`. Some others it reads
#: differently: sets within sets, ``\\w``, ``{1,3}+``, ``^`` and ``$``, ``\\p{Ll}`` (a letter changed in Unicode 17).
_KIND = r"\\[pP]\{(?:[LMNPSZ]|L[utm]|N[dlo])\} | \\[sSrnt] | \\[^\p{L}\p{N}]"
_READ_ALIKE = regex.compile(
    rf"""(?: {_KIND} | [^\\\[\](){{}}*+?|^$]
    | \[\^? (?: {_KIND} | [^][\\&|~-] (?:-[^][\\&|~-])? | &(?!&) | \|(?!\|) | ~(?!~) )+ \]
    | \(\?(?: : | = | ! | <= | <! ) | \) | \| | \(\?i: (?: 's\|'t\|'re\|'ve\|'m\|'ll\|'d | \[sdmt\]\|ll\|ve\|re ) \)
    | [*+?][+?]? | \{{\d+(?:,\d*)?\}}\??(?!\+) )*""",
    regex.VERBOSE,
)


def to_json(model: BPEModel) -> dict[str, Any]:
    """The content of ``tokenizer.json``."""
    named = [(i, name, True) for name, i in model.special.items()]
    named += [(i, name, False) for name, i in model.added.items()]
    # added tokens are in the vocabulary, too: `tokenizers` would number them on from its size otherwise
    vocab = {written(token): i for token, i in model.vocab.items()} | {**model.special, **model.added}
    splits: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in model.patterns
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(i, name, special) for i, name, special in sorted(named)],
        "normalizer": {"type": model.normal_form} if model.normal_form else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": model.whole_pieces,
            "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])),
            "merges": [[written(left), written(right)] for left, right in model.merges],
        },
    }


def from_json(content: Mapping[str, Any], eos: str | None = None, bos: str | None = None) -> BPEModel | None:
    """Read the content of a ``tokenizer.json``; None if it describes anything but plain byte-level BPE.

    Args:
        content: of the file.
        eos: the special token that ends a document.
        bos: the special token that begins one.

    Raises:
        TokenizerError: if it is byte-level BPE and damaged.
    """
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or "merges" not in model:
        return None
    patterns = _patterns(content.get("pre_tokenizer"))
    form = content.get("normalizer") or {"type": None}
    added = content.get("added_tokens") or []
    if (
        patterns is None
        or any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        or model.get("byte_fallback")
        or form.get("type") not in (None, "NFC", "NFD", "NFKC", "NFKD")
        or not _plain(added, model["vocab"], normalized=bool(form["type"]))
    ):
        return None
    named = {token["content"]: (token["id"], token["special"]) for token in added}
    vocab = {read(text): i for text, i in model["vocab"].items() if text not in named}
    if None in vocab:
        return None
    merges = [pair(merge) for merge in model["merges"]]
    made = {part for left, right in merges for part in (left, right, left + right)}
    if any(written(part) in named for part in made.union(BYTES)):
        return None  # an added token that is also a byte, or made by merges
    found = BPEModel(
        vocab={token: i for token, i in vocab.items() if token is not None},
        merges=merges,
        patterns=patterns,
        special={name: i for name, (i, special) in named.items() if special},
        added={name: i for name, (i, special) in named.items() if not special},
        eos=eos,
        bos=bos,
        whole_pieces=bool(model.get("ignore_merges")),
        normal_form=form["type"],
    )
    found.check()
    return None if found.missing() and model.get("unk_token") else found


def _plain(added: Sequence[Mapping[str, Any]], vocab: Mapping[str, int], normalized: bool) -> bool:
    """Whether added tokens are found as we find them: all at once, as they are written, by the ids that the file says.

    `tokenizers` numbers those that are not in the vocabulary by itself, and looks for those that are to be normalized
    after the others.
    """
    following, names = len(vocab), set[str]()
    for token in added:
        name, i = token["content"], token["id"]
        if not name or name in names or i != vocab.get(name, following) or any(token.get(flag) for flag in _FLAGS):
            return False
        following = max(following, i + 1)
        names.add(name)
    last = [token["content"] for token in added if token.get("normalized")]
    first = [token["content"] for token in added if not token.get("normalized")]
    return not (normalized and last) and not any(a[0] in b or b[0] in a for a in first for b in last)


def _patterns(pre_tokenizer: Any) -> tuple[str, ...] | None:
    """The split patterns of a pre-tokenizer that ends in bytes; None for any other."""
    if not isinstance(pre_tokenizer, dict):
        return None
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    patterns = []
    for number, step in enumerate(steps):
        kind, last = step.get("type"), number == len(steps) - 1
        if kind == "ByteLevel" and last and not step.get("add_prefix_space", True):
            if step.get("use_regex", True):
                patterns.append(PATTERNS["gpt2"])
            return tuple(patterns)
        if kind == "Digits":
            patterns.append(r"\p{N}" if step.get("individual_digits") else r"\p{N}+")
        elif kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            pattern = step["pattern"]
            patterns.append(pattern["Regex"] if "Regex" in pattern else regex.escape(pattern["String"]))
            if "Regex" in pattern and not _READ_ALIKE.fullmatch(patterns[-1]):
                return None
        else:
            return None
    return None
