"""GPT-2's byte alphabet, the parts of a byte-level BPE model, and its ``tokenizer.json``.

Published files write a token as text, one printable character per byte: printable bytes as themselves, the other 68 as
the characters from U+0100 on (`bytes_to_unicode` in openai/gpt-2). The order of these characters is the order of the
first 256 ids, in GPT-2 and here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import regex

from glassgpt.errors import TokenizerError
from glassgpt.tokenizer.base import added_token, split_step, tokenizer_json
from glassgpt.tokenizer.bpe.normal import NormalForm
from glassgpt.tokenizer.pretokenize import PATTERNS, PreTokenizer

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
#: The single bytes in the order of their ids.
BYTES = tuple(bytes([byte]) for byte in (*_PRINTABLE, *_OTHERS))
_TO_CHARACTER = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(_OTHERS)}
_TO_BYTE = {character: byte for byte, character in _TO_CHARACTER.items()}


def bytes_to_unicode(token: bytes) -> str:
    """Write a token in the byte alphabet."""
    return "".join(_TO_CHARACTER[byte] for byte in token)


def unicode_to_bytes(text: str) -> bytes | None:
    """Read a token in the byte alphabet; None if a character is not in it."""
    try:
        return bytes([_TO_BYTE[character] for character in text])
    except KeyError:
        return None


def parse_token(text: str) -> bytes:
    """Read a token in the byte alphabet.

    Raises:
        TokenizerError: if a character is not in it.
    """
    token = unicode_to_bytes(text)
    if token is None:
        raise TokenizerError(f"the token {text!r} is not written in the byte alphabet")
    return token


def parse_merge(merge: str | Sequence[str]) -> tuple[bytes, bytes]:
    """Read the two tokens of a merge, ``"a b"`` or ``["a", "b"]``.

    Raises:
        TokenizerError: if there are not two, or a character is not in the byte alphabet.
    """
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if len(parts) != 2:
        raise TokenizerError(f"the merge {merge!r} does not join two tokens")
    return parse_token(parts[0]), parse_token(parts[1])


@dataclass(frozen=True)
class BPEModel:
    """The parts of a byte-level BPE tokenizer.

    Attributes:
        vocab: the bytes of each token -> its id. A byte without a token is dropped from texts, as the `tokenizers`
            library does: SmolLM2, for example, has no tokens for most control characters.
        merges: pairs of tokens in order of rank; each pair, joined, is in the vocabulary.
        patterns: split patterns, applied in order.
        special: special tokens -> their ids. Their names in a text are plain text unless allowed.
        added: tokens that are matched in any text before it is split (`added_tokens` that are not special).
        eos: the special or added token that ends a document.
        bos: the special or added token that begins a document.
        ignore_merges: a pre-token that is in the vocabulary is that token, even if the merges do not lead to it.
        normal_form: Unicode normal form applied to texts first; encoding is then not lossless.
    """

    vocab: Mapping[bytes, int]
    merges: Sequence[tuple[bytes, bytes]]
    patterns: Sequence[str] = (PATTERNS["gpt2"],)
    special: Mapping[str, int] = field(default_factory=dict)
    added: Mapping[str, int] = field(default_factory=dict)
    eos: str | None = None
    bos: str | None = None
    ignore_merges: bool = False
    normal_form: NormalForm | None = None

    def check(self) -> None:
        """Check that the parts fit together.

        Raises:
            TokenizerError: naming the part that does not.
        """
        ids = [*self.vocab.values(), *self.special.values(), *self.added.values()]
        if len(set(ids)) != len(ids) or min(ids) < 0 or max(ids) > 0x10FFFF:
            raise TokenizerError("the ids of the tokens are not all different, or not between 0 and 1,114,111")
        clash = next((name for name in (*self.special, *self.added) if unicode_to_bytes(name) in self.vocab), None)
        if clash is not None:
            raise TokenizerError(f"{clash!r} is both an added token and a token of the vocabulary")
        for rank, (left, right) in enumerate(self.merges):
            if not {left, right, left + right} <= self.vocab.keys():
                raise TokenizerError(f"merge {rank} joins {left!r} and {right!r}, but not all three are tokens")

    def missing_bytes(self) -> list[bytes]:
        """The single bytes that are not tokens."""
        return [byte for byte in BYTES if byte not in self.vocab]

    def merges_in_order(self) -> bool:
        """Whether every merge joins bytes or results of earlier merges to a new token, as all learned merges do."""
        tokens = set(BYTES)
        for left, right in self.merges:
            if left not in tokens or right not in tokens or left + right in tokens:
                return False
            tokens.add(left + right)
        return True


def check_special_names(names: Sequence[str], pre_tokenizer: PreTokenizer) -> None:
    """Check the names of new special tokens.

    Raises:
        TokenizerError: if one is empty, repeated, not valid Unicode, or could be learned as a plain token.
    """
    for name in names:
        if not name or names.count(name) > 1 or any(0xD800 <= ord(character) <= 0xDFFF for character in name):
            raise TokenizerError(f"the names of special tokens must be valid text and all different, got {list(names)}")
        token = unicode_to_bytes(name)
        if token is not None and len(pre_tokenizer.split(token.decode("utf-8", errors="surrogateescape"))) == 1:
            raise TokenizerError(
                f"the special token {name!r} could be learned as a plain token, too; choose a name of several "
                f"pre-tokens, such as <|{name}|>"
            )


#: Options of added tokens that match in another way than literally.
_FLAGS = ("single_word", "lstrip", "rstrip")
#: The regular expressions that `regex` matches as Oniguruma, the engine of `tokenizers`, does. They differ in some
#: others: sets within sets, ``\\w``, ``{1,3}+``, ``^`` and ``$``.
_KIND = r"\\[pP]\{(?:[LMNPSZ]|L[ultmo]|N[dlo])\} | \\[sSrnt] | \\[^\p{L}\p{N}]"
_READ_ALIKE = regex.compile(
    rf"""(?: {_KIND} | [^\\\[\](){{}}*+?|^$]
    | \[\^? (?: {_KIND} | [^][\\&|~-] (?:-[^][\\&|~-])? | &(?!&) | \|(?!\|) | ~(?!~) )+ \]
    | \(\?(?: : | = | ! | <= | <! ) | \) | \| | \(\?i: (?: 's\|'t\|'re\|'ve\|'m\|'ll\|'d | \[sdmt\]\|ll\|ve\|re ) \)
    | [*+?][+?]? | \{{\d+(?:,\d*)?\}}\??(?!\+) )*""",
    regex.VERBOSE,
)


def split_pattern(text: str) -> str:
    """The split pattern that a user names: one of :data:`PATTERNS`, or a regular expression.

    Raises:
        TokenizerError: if it is neither, or other programs would split in another way by it.
    """
    if text in PATTERNS:
        return PATTERNS[text]
    if regex.fullmatch(r"[\w.-]*", text):  # a name that is not known, not a regular expression
        raise TokenizerError(
            f"there is no split pattern {text!r}; there are {', '.join(PATTERNS)}, or write a regular expression"
        )
    PreTokenizer([text])
    if not _READ_ALIKE.fullmatch(text):
        raise TokenizerError(
            f"the split pattern {text!r} has something that `tokenizers` may match in another way, so that other "
            r"programs would give other ids; use \p{L}, \p{N}, \s, sets of these, (?:...) and (?!...), and leave out "
            r"\w, \d, ^, $ and groups that capture"
        )
    return text


def to_json(model: BPEModel) -> dict[str, Any]:
    """The content of ``tokenizer.json``."""
    named = [(i, name, True) for name, i in model.special.items()]
    named += [(i, name, False) for name, i in model.added.items()]
    # added tokens must be in the vocabulary, too; else `tokenizers` numbers them itself, from its size on
    vocab = {bytes_to_unicode(token): i for token, i in model.vocab.items()} | {**model.special, **model.added}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return tokenizer_json(
        bpe_json(
            vocab=dict(sorted(vocab.items(), key=lambda item: item[1])),
            merges=[[bytes_to_unicode(left), bytes_to_unicode(right)] for left, right in model.merges],
            ignore_merges=model.ignore_merges,
        ),
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        added_tokens=[added_token(i, name, special) for i, name, special in sorted(named)],
        normalizer={"type": model.normal_form} if model.normal_form else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*map(split_step, model.patterns), byte_level]},
    )


def bpe_json(**changes: Any) -> dict[str, Any]:
    """The `model` of a ``tokenizer.json`` of the type BPE."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {},
        "merges": [],
        **changes,
    }


def from_json(content: Mapping[str, Any], eos: str | None = None, bos: str | None = None) -> BPEModel | str:
    """Read the content of a ``tokenizer.json``; if it is not plain byte-level BPE, say why, as in "its model is ...".

    Raises:
        TokenizerError: if it is byte-level BPE and damaged.
    """
    model = content.get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind != "BPE" or "merges" not in model:
        return f"its model is of the type {kind}"
    patterns = _patterns(content.get("pre_tokenizer"))
    if isinstance(patterns, str):
        return patterns
    options = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if option := next(filter(model.get, options), None):
        return f"its model has {option}"
    form = (content.get("normalizer") or {}).get("type")
    if form not in (None, "NFC", "NFD", "NFKC", "NFKD"):
        return f"its normalizer is {form}"
    added = content.get("added_tokens") or []
    if reason := _why_not_literal(added, model["vocab"], normalized=bool(form)):
        return reason
    named = {token["content"]: (token["id"], token["special"]) for token in added}
    vocab = {text: unicode_to_bytes(text) for text in model["vocab"] if text not in named}
    if foreign := [text for text in vocab if vocab[text] is None]:
        return f"its token {foreign[0]!r} is not written in the byte alphabet"
    merges = [parse_merge(merge) for merge in model["merges"]]
    merged = {part for left, right in merges for part in (left, right, left + right)}
    if both := [name for name in map(bytes_to_unicode, merged.union(BYTES)) if name in named]:
        return f"its added token {both[0]!r} is also a byte or the result of a merge"
    bpe = BPEModel(
        vocab={token: model["vocab"][text] for text, token in vocab.items() if token is not None},
        merges=merges,
        patterns=patterns,
        special={name: i for name, (i, special) in named.items() if special},
        added={name: i for name, (i, special) in named.items() if not special},
        eos=eos,
        bos=bos,
        ignore_merges=bool(model.get("ignore_merges")),
        normal_form=form,
    )
    bpe.check()
    return "bytes that are not tokens become its unk_token" if bpe.missing_bytes() and model.get("unk_token") else bpe


def _why_not_literal(added: Sequence[Mapping[str, Any]], vocab: Mapping[str, int], normalized: bool) -> str:
    """Why `tokenizers` does not match added tokens as we do: literally, in one pass, with the ids of the file.

    It numbers those that are not in the vocabulary itself, and matches those with `normalized` in a second pass.
    Returns "" if it does.
    """
    following, names = len(vocab), set[str]()
    for token in added:
        name, i = token["content"], token["id"]
        if flag := next(filter(token.get, _FLAGS), None):
            return f"its added token {name!r} has {flag}: true"
        if not name or name in names or i != vocab.get(name, following):
            return f"its added token {name!r} is empty, twice there, or gets another id than {i}"
        following = max(following, i + 1)
        names.add(name)
    last = [token["content"] for token in added if token.get("normalized")]
    first = [token["content"] for token in added if not token.get("normalized")]
    if normalized and last:
        return f"its added token {last[0]!r} has normalized: true, and there is a normalizer"
    overlaps = next(((a, b) for a in first for b in last if a[0] in b or b[0] in a), None)
    return f"its added token {overlaps[1]!r} has normalized: true, and may overlap {overlaps[0]!r}" if overlaps else ""


def _patterns(pre_tokenizer: Any) -> tuple[str, ...] | str:
    """The split patterns of a pre-tokenizer that ends in the step ByteLevel; for any other, why they are not known."""
    if not isinstance(pre_tokenizer, dict):
        return "it has no pre-tokenizer"
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
                return f"its split pattern {patterns[-1]!r} may be matched in another way"
        else:
            options = ", ".join(f"{key}: {json.dumps(value)}" for key, value in step.items() if key != "type")
            return f"its pre-tokenizer has the step {kind} ({options})"
    return "its pre-tokenizer does not end in the step ByteLevel"
