"""Decode a prepared corpus to text, document by document: the text that the model is trained on."""

import codecs
from collections.abc import Iterator

import numpy as np

from glassgpt.data.corpus.encoding import markers
from glassgpt.data.corpus.manifest import TokenStream
from glassgpt.data.corpus.shards import Tokens

#: Ids that are decoded at a time.
CHUNK_TOKENS = 1 << 18


def texts_of(stream: TokenStream, split: str) -> Iterator[Iterator[str]]:
    """Decode the documents of a split, each in parts, without the tokens before and after it.

    A single text is one document. Read all parts of a document before the next document.
    """
    tokens, tokenizer = (stream.train if split == "train" else stream.val), stream.tokenizer
    before, after = markers(tokenizer) if stream.manifest.split == "documents" else ([], [])

    def parts(begin: int, end: int) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for place in range(begin, end, CHUNK_TOKENS):
            ids = tokens[place : min(place + CHUNK_TOKENS, end)].tolist()
            yield decoder.decode(b"".join(map(tokenizer.token_bytes, ids)))
        yield decoder.decode(b"", final=True)

    for begin, end in _ranges(tokens):
        yield parts(begin + len(before), max(end - len(after), begin + len(before)))


def _ranges(tokens: Tokens) -> Iterator[tuple[int, int]]:
    """Give the first token of each document, and the token after its last."""
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
