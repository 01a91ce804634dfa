"""tiktoken's ``.tiktoken`` files: lines of ``base64(bytes) rank``.

They contain neither the split pattern nor special tokens. Both are known for published files, by name. Others have
them in a file beside it, ``NAME.tiktoken.json``: two arguments of `tiktoken.Encoding`, and optionally `added_tokens`
(matched in any text) and the roles of tokens::

    {"pat_str": "...", "special_tokens": {"<|endoftext|>": 4095}, "eos_token": "<|endoftext|>", "bos_token": null}
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from glassgpt.errors import TokenizerError
from glassgpt.files import read_json_object
from glassgpt.tokenizer.base import END_OF_TEXT, json_file
from glassgpt.tokenizer.bpe.bytelevel import BPEModel, split_pattern
from glassgpt.tokenizer.bpe.tokenizer import BPETokenizer


@dataclass(frozen=True)
class Settings:
    """What a ``.tiktoken`` file does not say; the attributes are those of :class:`BPEModel`."""

    pattern: str  # a name, or a regular expression
    special: Mapping[str, int] = field(default_factory=dict)
    added: Mapping[str, int] = field(default_factory=dict)
    eos: str | None = END_OF_TEXT
    bos: str | None = None


_FILL_IN_THE_MIDDLE = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}
_GPT2 = Settings("gpt2", {END_OF_TEXT: 50256})
#: Published files by name (openai/tiktoken, tiktoken_ext/openai_public.py).
_PUBLISHED = {
    "gpt2": _GPT2,
    "r50k_base": _GPT2,
    "p50k_base": _GPT2,
    "cl100k_base": Settings("llama3", {END_OF_TEXT: 100257, **_FILL_IN_THE_MIDDLE, "<|endofprompt|>": 100276}),
    "o200k_base": Settings("o200k", {END_OF_TEXT: 199999, "<|endofprompt|>": 200018}),
}


def read_tiktoken(path: Path, pattern: str | None = None) -> BPETokenizer:
    """Read a ``.tiktoken`` file; its ranks are the ids, and the merges are derived from them.

    ``pattern`` is the split pattern, a name or a regular expression. By default it comes from the file beside it, or
    is that of the published file of this name. Special tokens come from there, too; else there is ``<|endoftext|>``,
    after the last rank.

    Raises:
        TokenizerError: if a file is damaged, there is no such pattern, or none is given and the name is not known.
    """
    ranks = read_ranks(path)
    settings = _settings_beside(path) or _PUBLISHED.get(path.stem)
    special = {END_OF_TEXT: 1 + max(ranks.values(), default=0)}
    if settings is None and pattern is None:
        example = json.dumps({"pat_str": "gpt2", "special_tokens": special, "eos_token": END_OF_TEXT})
        raise TokenizerError(
            f"{path} does not say how text is split, and its name is not that of a published file "
            f"({', '.join(_PUBLISHED)}). Give its split pattern (tokenizer show and compare: --pattern; "
            f"load_tokenizer: pattern), or write a file {_beside(path).name} beside it, for example {example}"
        )
    settings = settings or Settings("", special)
    try:
        return from_ranks(ranks, replace(settings, pattern=pattern or settings.pattern))
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def from_ranks(ranks: Mapping[bytes, int], settings: Settings) -> BPETokenizer:
    """Make a tokenizer from ranks and what goes with them.

    Raises:
        TokenizerError: if they do not fit together.
    """
    merges, ignore_merges = merges_from_ranks(ranks)
    model = BPEModel(
        ranks, merges, (split_pattern(settings.pattern),), settings.special, settings.added, settings.eos, settings.bos,
        ignore_merges,
    )  # fmt: skip
    if missing := model.missing_bytes():
        raise TokenizerError(f"{len(missing)} of the 256 bytes have no rank, the first 0x{missing[0].hex()}")
    return BPETokenizer(model)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _settings_beside(path: Path) -> Settings | None:
    """The content of the file beside a ``.tiktoken`` file; None if there is none."""
    path = _beside(path)
    if not path.exists():
        return None
    try:
        content = read_json_object(path)
        special, added = (dict(content.get(key) or {}) for key in ("special_tokens", "added_tokens"))
        roles, ids = (content.get("eos_token"), content.get("bos_token")), {**special, **added}
        if type(content["pat_str"]) is not str or any(type(i) is not int for i in ids.values()):
            raise TypeError('"pat_str" is not a text, or the id of a token is not a whole number')
        if unknown := [name for name in roles if name is not None and name not in ids]:
            raise ValueError(f"{unknown[0]!r} is not among its special tokens")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise TokenizerError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    return Settings(content["pat_str"], special, added, *roles)


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read lines of ``base64(bytes) rank``.

    Raises:
        TokenizerError: if the file is damaged.
    """
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
            reason = f"line {number} is not `base64(bytes) rank`, or repeats a token: {line[:60]!r}"
            raise TokenizerError(f"{path} is damaged: {reason}") from None
    return ranks


def merges_from_ranks(ranks: Mapping[bytes, int]) -> tuple[list[tuple[bytes, bytes]], bool]:
    """Find merges that give the same ids as ranks, and whether this takes `ignore_merges`.

    tiktoken joins the neighbours whose joined bytes have the lowest rank. If every token was learned as a pair, merging
    its bytes by all lower ranks leaves just that pair, and joining the pair is the only way to create the token. Some
    published tokens were not learned so: then every way to split a token becomes a merge.
    """
    tokens = sorted((token for token in ranks if len(token) > 1), key=lambda token: ranks[token])
    pairs = [_parts_before_last_merge(token, ranks) for token in tokens]
    if all(len(parts) == 2 for parts in pairs):
        return [(left, right) for left, right in pairs], False
    splits = [(token[:cut], token[cut:]) for token in tokens for cut in range(1, len(token))]
    return [(left, right) for left, right in splits if left in ranks and right in ranks], True


def _parts_before_last_merge(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """Merge a token's bytes by all ranks below its own."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        rank, at = min((ranks.get(left + right, ranks[token]), at) for at, (left, right) in enumerate(pairwise(parts)))
        if rank >= ranks[token]:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def tiktoken_files(tokenizer: BPETokenizer, path: Path) -> dict[Path, bytes]:
    """The contents of a ``.tiktoken`` file and of the file beside it, by path.

    Raises:
        TokenizerError: if ids do not grow with the ranks of merges, so that ids cannot be ranks.
    """
    if not tokenizer.ranks_are_ids():
        raise TokenizerError(
            "a .tiktoken file ranks tokens by their ids, and this tokenizer merges in another order; use export --to hf"
        )
    model = tokenizer.model
    tokens = sorted(model.vocab.items(), key=lambda item: item[1])
    settings: dict[str, Any] = {"pat_str": model.patterns[0], "special_tokens": dict(model.special)}
    settings |= {"added_tokens": dict(model.added)} if model.added else {}
    [beside] = json_file(settings | {"eos_token": model.eos, "bos_token": model.bos}).values()
    return {_beside(path): beside, path: b"".join(base64.b64encode(token) + f" {i}\n".encode() for token, i in tokens)}
