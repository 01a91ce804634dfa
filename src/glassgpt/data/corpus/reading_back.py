"""A prepared corpus as text again: what the model is going to read, document by document."""

import codecs
from collections.abc import Iterator

import numpy as np

from glassgpt.data.corpus.encoding import markers
from glassgpt.data.corpus.manifest import TokenStream

#: Ids that are decoded at a time.
PART = 1 << 18


def texts_of(stream: TokenStream, split: str) -> Iterator[Iterator[str]]:
    """The documents of a split, each in parts, without the tokens that mark where they begin and end.

    A single text is one document. Parts are to be taken before the next document is asked for.
    """
    tokens, tokenizer = (stream.train if split == "train" else stream.val), stream.tokenizer
    before, after = markers(tokenizer) if stream.manifest.split == "documents" else ([], [])

    def parts(begin: int, end: int) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for place in range(begin, end, PART):
            ids = tokens[place : min(place + PART, end)].tolist()
            yield decoder.decode(b"".join(map(tokenizer.token_bytes, ids)))
        yield decoder.decode(b"", final=True)

    for begin, end in _ranges(stream, split):
        yield parts(begin + len(before), max(end - len(after), begin + len(before)))


def _ranges(stream: TokenStream, split: str) -> Iterator[tuple[int, int]]:
    """Where each document begins and ends, in tokens."""
    tokens = stream.train if split == "train" else stream.val
    begin: int | None = None
    for shard, first in zip(tokens.shards, tokens.begins, strict=True):
        for start in np.asarray(shard.starts) + first:
            if start >= len(tokens):
                break
            if begin is not None:
                yield begin, int(start)
            begin = int(start)
    if begin is not None:
        yield begin, len(tokens)
