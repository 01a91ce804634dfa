"""tiktoken's ``.tiktoken`` files: lines of ``base64(bytes) rank``.

They contain neither the split pattern nor special tokens.
"""

import base64
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from glassgpt.errors import TokenizerError
from glassgpt.tokenizer.base import END_OF_TEXT
from glassgpt.tokenizer.bpe.bytelevel import BPEModel
from glassgpt.tokenizer.bpe.tokenizer import BPETokenizer
from glassgpt.tokenizer.pretokenize import PATTERNS

#: Published files by name: the split pattern, and the id of <|endoftext|>.
_PUBLISHED = {
    "gpt2": ("gpt2", 50256),
    "r50k_base": ("gpt2", 50256),
    "p50k_base": ("gpt2", 50256),
    "cl100k_base": ("llama3", 100257),
}


def read_tiktoken(path: Path, pattern: str | None = None) -> BPETokenizer:
    """Read a ``.tiktoken`` file; its ranks are the ids, and the merges are derived from them.

    ``pattern`` names the split pattern; by default it is that of the published file of this name, else GPT-2's.

    Raises:
        TokenizerError: if the file is damaged, or there is no such pattern.
    """
    if pattern and pattern not in PATTERNS:
        raise TokenizerError(f"there is no split pattern {pattern!r}; there are {', '.join(PATTERNS)}")
    default_pattern, eos_token_id = _PUBLISHED.get(path.stem, ("gpt2", None))
    ranks = _read_ranks(path)
    special = {END_OF_TEXT: 1 + max(ranks.values(), default=0) if eos_token_id is None else eos_token_id}
    merges, ignore_merges = _merges_from_ranks(ranks)
    patterns = (PATTERNS[pattern or default_pattern],)
    model = BPEModel(ranks, merges, patterns, special, eos=END_OF_TEXT, ignore_merges=ignore_merges)
    try:
        if missing := model.missing_bytes():
            raise TokenizerError(f"{len(missing)} of the 256 bytes have no rank, the first 0x{missing[0].hex()}")
        return BPETokenizer(model)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def _read_ranks(path: Path) -> dict[bytes, int]:
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


def _merges_from_ranks(ranks: Mapping[bytes, int]) -> tuple[list[tuple[bytes, bytes]], bool]:
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


def tiktoken_bytes(tokenizer: BPETokenizer) -> bytes:
    """The content of a ``.tiktoken`` file for a tokenizer; special tokens are left out.

    Raises:
        TokenizerError: if ids do not grow with the ranks of merges, so that ids cannot be ranks.
    """
    if not tokenizer.ranks_are_ids():
        raise TokenizerError(
            "a .tiktoken file ranks tokens by their ids, and this tokenizer merges in another order; use export --to hf"
        )
    tokens = sorted(tokenizer.model.vocab.items(), key=lambda item: item[1])
    return b"".join(base64.b64encode(token) + f" {i}\n".encode() for token, i in tokens)
