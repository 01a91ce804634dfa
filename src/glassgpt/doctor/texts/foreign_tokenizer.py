"""Read a tokenizer of somebody's own code: find its parts under the names that people use.

An object has ``encode`` and ``decode``; the rest is looked for: the vocabulary (a mapping from tokens to ids or back,
of texts or bytes), the special tokens, the end token, the size.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from glassgpt.doctor.texts.tokenizer_subject import TokenizerSubject, looks_special, of_house
from glassgpt.errors import ConfigError

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
_UNKNOWN_NAMES = ("<unk>", "<|unk|>", "[unk]", "<unknown>", "<|unknown|>", "<oov>")
#: Arguments of `encode` that make special names in a text plain text, in several libraries.
_PLAIN_ARGUMENTS: tuple[tuple[str, Any], ...] = (
    ("add_special_tokens", False), ("split_special_tokens", True), ("allow_special", False),
    ("bos", False), ("eos", False), ("add_bos", False), ("add_eos", False), ("prepend_bos", False),
    ("disallowed_special", ()), ("allowed_special", "none"),
)  # fmt: skip


def adapt_tokenizer(made: Any, name: str, model_vocab_size: int | None = None) -> TokenizerSubject:
    """The subject of an object of anybody's: with ``encode`` and ``decode``, or a pair of these two functions.

    Raises:
        ConfigError: if it has not both.
    """
    if type(made).__module__.startswith("glassgpt.tokenizer"):
        return of_house(made, name, model_vocab_size)
    parts = _parts(made)
    encode = parts("encode_ordinary") or parts("encode")
    decode = parts("decode")
    if not callable(encode) or not callable(decode):
        raise ConfigError(
            f"{name}: the tokenizer has no functions encode and decode; return an object that has both, or the pair "
            f"(encode, decode); got {type(made).__name__}"
        )
    tokens, shared = _vocabulary(parts)
    names = {token: i for i, token in tokens.items() if isinstance(token, str)}
    special = _special_names(parts, names)
    roles = {role: i for role, keys in _ROLE_NAMES.items() if (i := _role(parts, keys, special, names)) is not None}
    for known, i in names.items():
        if known.lower() in _UNKNOWN_NAMES:
            roles.setdefault("unk", i)
    size = next((n for key in _SIZE_NAMES if (n := _number(parts(key))) is not None), None)
    if hasattr(made, "__len__") and hasattr(
        made, "all_special_ids"
    ):  # of transformers: vocab_size leaves out added ones
        size = len(made)
    plain, options = _plain_arguments(encode)
    if hasattr(made, "encode_special_tokens"):  # of `tokenizers`
        encode, options = _encode_plainly(made), "encode_special_tokens=True"
    lowers = any(parts(key) is True for key in ("do_lower_case", "lowercase", "lower", "lower_case"))
    declared = lowers or _normalizes(made)
    bare = _without_frame(lambda text: _ids(encode(text, **plain)), {*special.values(), *roles.values()})
    return TokenizerSubject(
        name, bare, _decoder(decode), size, tokens, special, roles,
        (roles["eos"],) if "eos" in roles else (), declared, model_vocab_size, same_id=shared, options=options,
    )  # fmt: skip


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
    return found, ", ".join(
        f"{key}={value!r}" for key, value in found.items() if "special" in key and key != "add_special_tokens"
    )


def _without_frame(encode: Callable[[str], list[int]], special: set[int]) -> Callable[[str], list[int]]:
    """The `encode` without the begin and end tokens that it puts around every text, the empty one, too."""
    frame = _call(encode, "") or []
    if not frame or len(frame) > 2 or not set(frame) <= special:
        return encode
    inside = _call(encode, "a") or []
    first, last = inside[:1] == frame[:1], inside[-1:] == frame[-1:]

    def bare(text: str) -> list[int]:
        ids = encode(text)
        return ids[int(first) : len(ids) - int(last and (len(frame) == 2 or not first))]

    return bare


def _encode_plainly(made: Any) -> Callable[..., Any]:
    """The `encode` of an object of `tokenizers`, with its switch for plain text on, and then as it was."""

    def encode(text: str, **options: Any) -> Any:
        before, made.encode_special_tokens = made.encode_special_tokens, True
        try:
            return made.encode(text, add_special_tokens=False)
        finally:
            made.encode_special_tokens = before

    return encode


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


def _vocabulary(parts: Any) -> tuple[dict[int, bytes | str], list[tuple[bytes | str, bytes | str]]]:
    """The tokens by their ids, from the mappings and lists that the object has; and tokens that share an id."""
    tokens, shared = dict[int, bytes | str](), list[tuple[bytes | str, bytes | str]]()
    for value in _candidates(parts):
        found = dict[int, bytes | str]()
        if isinstance(value, Mapping) and value:
            pairs = [(i, token) if _is_id(i) else (token, i) for i, token in value.items()]
            for i, token in pairs:
                if _is_id(i) and _is_token(token):
                    shared += [(found[i], token)] if i in found else []
                    found[i] = token
        elif isinstance(value, list | tuple) and len(value) > 8 and all(map(_is_token, value)):
            found = dict(enumerate(value))
        tokens = found | tokens if len(found) <= len(tokens) else tokens | found
    piece, size = parts("id_to_piece"), _number(parts("get_piece_size"))
    if not tokens and callable(piece) and size:  # of sentencepiece
        tokens = {i: piece(i) for i in range(size)}
    return tokens, shared


def _candidates(parts: Any) -> list[Any]:
    """All attributes, and what get_vocab returns."""
    found = [parts(key) for key in getattr(parts, "__dict__", {}).get("keys", []) if "special" not in key.lower()]
    return [*found, _call(parts("get_vocab"))]


def _is_token(value: Any) -> bool:
    return isinstance(value, str | bytes)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _special_names(parts: Any, names: Mapping[str, int]) -> dict[str, int]:
    """The special tokens: of an attribute with "special" in its name, and those of the vocabulary that look so."""
    found = {name: i for name, i in names.items() if looks_special(name)}
    for key in getattr(parts, "__dict__", {}).get("keys", []):
        if "special" not in key.lower() or key.isupper():
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
