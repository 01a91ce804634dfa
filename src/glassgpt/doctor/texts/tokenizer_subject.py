"""A tokenizer to examine, whoever wrote it: a file that the house reads, or an object of somebody's own code.

An object has ``encode`` and ``decode``; the rest is found under the names that people use: the vocabulary (a mapping
from tokens to ids or back, of texts or bytes), the special tokens, the end token, the size.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glassgpt.doctor.loading import import_factory, names_a_factory
from glassgpt.errors import ConfigError, GlassError, MissingExtraError, TokenizerError
from glassgpt.files import parse_json, read_json_object
from glassgpt.tokenizer import specs
from glassgpt.tokenizer.base import Tokenizer
from glassgpt.tokenizer.bpe.bytelevel import unicode_to_bytes
from glassgpt.tokenizer.bpe.tokenizer import BPETokenizer
from glassgpt.tokenizer.library import SPACE, SentencePieceTokenizer

#: Names of attributes that hold the number of ids.
_SIZE_NAMES = ("vocab_size", "n_vocab", "get_vocab_size", "GetPieceSize", "get_piece_size", "n_words", "num_tokens")
#: Names of attributes and methods that hold the id of a token, by its role.
_ROLE_NAMES = {
    "eos": ("eos_token_id", "eos_id", "eot_token", "eot_id", "eot", "end_token_id", "end_id", "eos", "endoftext_id"),
    "bos": ("bos_token_id", "bos_id", "get_bos_token_id", "bos"),
    "pad": ("pad_token_id", "pad_id"),
    "unk": ("unk_token_id", "unk_id", "unk"),
}
#: Names that vocabularies give to the token of unknown words, in lower case.
_UNKNOWN_NAMES = ("<unk>", "<|unk|>", "[unk]", "unk", "<unknown>", "<|unknown|>")
#: Arguments of `encode` that make special names in a text plain text, in several libraries.
_PLAIN_ARGUMENTS: tuple[tuple[str, Any], ...] = (
    ("add_special_tokens", False), ("split_special_tokens", True), ("allow_special", False),
    ("disallowed_special", ()), ("allowed_special", "none"),
)  # fmt: skip


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
    options: str = ""


def load_tokenizer_subject(spec: str, model_vocab_size: int | None = None) -> TokenizerSubject:
    """Load a tokenizer: a file, a folder, a run, ``gpt2``, or ``module.py:factory`` of an object with encode and decode.

    A file that is there and damaged is a subject, too: the check of the file fails.

    Raises:
        TokenizerError: if there is no such file, or it is of no known format.
        ConfigError: if the factory's object cannot encode or decode.
        GlassError: as :func:`glassgpt.doctor.loading.import_factory`.
    """
    if names_a_factory(spec):
        return adapt_tokenizer(import_factory(spec)(), spec, model_vocab_size)
    path = Path(spec).expanduser()
    size = model_vocab_size or _model_vocab_size(path)
    try:
        subject = of_house(specs.open_tokenizer(spec), spec, size)
    except MissingExtraError:
        raise
    except GlassError as error:
        if not path.exists() or "known format" in str(error) or "must contain its tokenizer" in str(error):
            raise
        return TokenizerSubject(spec, lambda text: [], lambda ids: "", model_vocab_size=size, problem=str(error),
                                content=_content_of(path))  # fmt: skip
    return subject


def of_house(tokenizer: Tokenizer, name: str, model_vocab_size: int | None = None) -> TokenizerSubject:
    """The subject of a tokenizer of ours."""
    special = tokenizer.special_ids()
    roles = {role: special.get(tokenizer.roles().get(f"{role}_token", "")) for role in _ROLE_NAMES}
    roles |= {"eos": tokenizer.eos_token_id, "bos": tokenizer.bos_token_id}
    content = tokenizer.content
    declared = isinstance(tokenizer, SentencePieceTokenizer) or bool((content or {}).get("normalizer"))
    unused = set(tokenizer.unused_ids())
    return TokenizerSubject(
        name, tokenizer.encode, tokenizer.decode, tokenizer.vocab_size,
        {i: tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size) if i not in unused}, special,
        {role: i for role, i in roles.items() if i is not None}, tokenizer.end_token_ids, declared,
        model_vocab_size, content=content, house=tokenizer,
    )  # fmt: skip


def adapt_tokenizer(made: Any, name: str, model_vocab_size: int | None = None) -> TokenizerSubject:
    """The subject of an object of anybody's: with ``encode`` and ``decode``, or a pair of these two functions.

    Raises:
        ConfigError: if it has not both.
    """
    if isinstance(made, Tokenizer) and isinstance(getattr(made, "published", None), object) and _is_house(made):
        return of_house(made, name, model_vocab_size)
    parts = _parts(made)
    encode = parts("encode_ordinary") or parts("encode")
    decode = parts("decode")
    if not callable(encode) or not callable(decode):
        raise ConfigError(
            f"{name}: the tokenizer has no functions encode and decode; return an object that has both, or the pair "
            f"(encode, decode); got {type(made).__name__}"
        )
    tokens, names = _vocabulary(parts)
    special = _special_names(parts, names)
    roles = {role: i for role, keys in _ROLE_NAMES.items() if (i := _role(parts, keys, special, names)) is not None}
    for known, i in names.items():
        if known.lower() in _UNKNOWN_NAMES:
            roles.setdefault("unk", i)
    size = next((n for key in _SIZE_NAMES if (n := _number(parts(key))) is not None), None)
    if hasattr(made, "__len__") and hasattr(made, "all_special_ids"):  # of transformers: vocab_size leaves out added ones
        size = len(made)
    plain, options = _plain_arguments(encode)
    lowers = any(parts(key) is True for key in ("do_lower_case", "lowercase", "lower", "lower_case"))
    declared = lowers or _normalizes(made)
    return TokenizerSubject(
        name, lambda text: _ids(encode(text, **plain)), _decoder(decode), size, tokens, special, roles,
        (roles["eos"],) if "eos" in roles else (), declared, model_vocab_size, options=options,
    )  # fmt: skip


def _is_house(made: Any) -> bool:
    return type(made).__module__.startswith("glassgpt.tokenizer")


def _parts(made: Any) -> Callable[[str], Any]:
    """Look up a part of an object, of a mapping, or of the pair (encode, decode); None if it is not there."""
    if isinstance(made, Mapping):
        return made.get
    if isinstance(made, tuple | list) and len(made) >= 2:
        return dict(zip(("encode", "decode", "vocab_size"), made, strict=False)).get

    def get(name: str) -> Any:
        try:
            return getattr(made, name, None)
        except Exception:  # a property that raises
            return None

    get.__dict__["keys"] = sorted({*getattr(made, "__dict__", {}), *(n for n in dir(type(made)) if n[0] != "_")})
    return get


def _plain_arguments(encode: Any) -> tuple[dict[str, Any], str]:
    """The arguments with which `encode` takes all text as plain text, and what they are, in words."""
    try:
        known = inspect.signature(encode).parameters
    except (TypeError, ValueError):  # a builtin
        return {}, ""
    found = {key: value for key, value in _PLAIN_ARGUMENTS if key in known}
    if "text_pair" in known:  # of transformers, which passes it on to the library
        found |= {"add_special_tokens": False, "split_special_tokens": True}
    if "allowed_special" in known and "disallowed_special" in known:  # of tiktoken
        found["allowed_special"] = set()
    return found, ", ".join(f"{key}={value!r}" for key, value in found.items() if key != "add_special_tokens")


def _ids(encoded: Any) -> list[int]:
    """The ids of whatever `encode` returned: a list, an array, a tensor, an Encoding."""
    encoded = getattr(encoded, "ids", encoded)
    if isinstance(encoded, Mapping):
        encoded = encoded["input_ids"]
    if hasattr(encoded, "tolist"):
        encoded = encoded.tolist()
    encoded = list(encoded)
    return encoded[0] if len(encoded) == 1 and isinstance(encoded[0], list) else encoded


def _decoder(decode: Any) -> Callable[[Sequence[int]], str]:
    """Call `decode` so that it changes nothing on the way: no skipped special tokens, no cleaned spaces."""
    try:
        known = inspect.signature(decode).parameters
    except (TypeError, ValueError):
        known = {}  # type: ignore[assignment]
    options = {"skip_special_tokens": False} if "skip_special_tokens" in known else {}
    if "clean_up_tokenization_spaces" in known:
        options["clean_up_tokenization_spaces"] = False

    def call(ids: Sequence[int]) -> str:
        text = decode(list(ids), **options)
        return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)

    return call


def _number(value: Any) -> int | None:
    """A whole number, or what a method without arguments returns."""
    if callable(value):
        try:
            value = value()
        except Exception:  # it needs arguments
            return None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _vocabulary(parts: Any) -> tuple[dict[int, bytes | str], dict[str, int]]:
    """The tokens by their ids, and the ids by the names of tokens; from the largest mappings that the object has."""
    names: dict[str, int] = {}
    tokens: dict[int, bytes | str] = {}
    keys = getattr(parts, "__dict__", {}).get("keys", [])
    get_vocab = parts("get_vocab")
    candidates = [parts(key) for key in keys]
    if callable(get_vocab):
        try:
            candidates.append(get_vocab())
        except Exception:  # it needs arguments
            candidates.append(None)
    for value in candidates:
        if isinstance(value, Mapping) and value:
            key, item = next(iter(value.items()))
            if _is_token(key) and _is_id(item):
                found = {i: token for token, i in value.items() if _is_token(token) and _is_id(i)}
            elif _is_id(key) and _is_token(item):
                found = {i: token for i, token in value.items() if _is_token(token) and _is_id(i)}
            else:
                continue
            tokens = found | tokens if len(found) <= len(tokens) else {**tokens, **found}
        elif isinstance(value, list | tuple) and len(value) > 8 and all(map(_is_token, value)):
            tokens = dict(enumerate(value)) | tokens
    names = {token: i for i, token in tokens.items() if isinstance(token, str)}
    return tokens, names


def _is_token(value: Any) -> bool:
    return isinstance(value, str | bytes)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def looks_special(name: str) -> bool:
    """Whether a token's name is written as those of special tokens are: ``<|endoftext|>``, ``</s>``, ``[PAD]``."""
    if name.startswith("<|") and name.endswith("|>") and len(name) > 4:
        return True
    return name.lower() in ("<s>", "</s>", "<pad>", "<eos>", "<bos>", "<unk>", "[unk]", "[pad]", "[cls]", "[sep]",
                            "[mask]", "<mask>", "<start_of_turn>", "<end_of_turn>", "[bos]", "[eos]")  # fmt: skip


def _special_names(parts: Any, names: Mapping[str, int]) -> dict[str, int]:
    """The special tokens: of an attribute with "special" in its name, and those of the vocabulary that look so."""
    found = {name: i for name, i in names.items() if looks_special(name)}
    for key in getattr(parts, "__dict__", {}).get("keys", []):
        if "special" not in key.lower():
            continue
        value = parts(key)
        if isinstance(value, Mapping):
            found |= {k: v for k, v in value.items() if isinstance(k, str) and _is_id(v)}
            found |= {v: k for k, v in value.items() if isinstance(v, str) and _is_id(k)}
        elif isinstance(value, list | tuple | set | frozenset):
            single = parts("encode_single_token") or parts("token_to_id") or parts("convert_tokens_to_ids")
            for name in filter(lambda item: isinstance(item, str), value):
                i = names.get(name, _call(single, name))
                found |= {name: i} if _is_id(i) else {}
    return found


def _call(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception:  # there is none, or it knows no such token
        return None


def _role(parts: Any, keys: Iterable[str], special: Mapping[str, int], names: Mapping[str, int]) -> int | None:
    for key in keys:
        value = parts(key)
        if isinstance(value, str):
            value = special.get(value, names.get(value))
        if (number := _number(value)) is not None:
            return number
    if keys is _ROLE_NAMES["eos"]:  # by its name, as the house does
        for name in ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>", "[EOS]"):
            if name in special:
                return special[name]
        eos = parts("eos_token")
        return special.get(eos, names.get(eos)) if isinstance(eos, str) else None
    return None


def _normalizes(made: Any) -> bool:
    """Whether an object of `tokenizers`, `transformers` or `sentencepiece` says that it normalises text."""
    backend = getattr(made, "backend_tokenizer", made)
    kind = type(made).__module__.split(".")[0]
    return getattr(backend, "normalizer", None) is not None or kind == "sentencepiece"


def _model_vocab_size(path: Path) -> int | None:
    """The vocabulary size in the config.json beside a tokenizer."""
    folder = path if path.is_dir() else path.parent
    for config in (folder / "config.json", folder / "best" / "config.json", folder / "last" / "config.json"):
        if config.exists():
            try:
                size = read_json_object(config).get("vocab_size")
            except (OSError, ValueError, GlassError):
                return None
            return size if isinstance(size, int) else None
    return None


def _content_of(path: Path) -> Mapping[str, Any] | None:
    """The content of a tokenizer.json that cannot be read as a tokenizer."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.suffix != ".json":
        return None
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def byte_of(token: bytes | str) -> bytes | None:
    """The bytes of a token: as they are, in GPT-2's byte alphabet, or SentencePiece's ``<0x0A>``; else None."""
    if isinstance(token, bytes):
        return token
    if len(token) == 6 and token.startswith("<0x"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            return None
    return unicode_to_bytes(token)


def is_byte_level(subject: TokenizerSubject) -> bool:
    """Whether the vocabulary has nearly all single bytes, so that any text can be written in it."""
    if isinstance(subject.house, BPETokenizer):
        return True
    singles = {found for token in subject.tokens.values() if (found := byte_of(token)) is not None and len(found) == 1}
    return len(singles) >= 200


__all__ = ["SPACE", "TokenizerError", "TokenizerSubject", "adapt_tokenizer", "load_tokenizer_subject", "of_house"]
