"""Examine a corpus: sizes, use of the vocabulary, lengths of documents, leaks into training text, duplicates."""

import itertools
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.errors import DataError
from glassgpt.glass.tokens import quoted

if TYPE_CHECKING:
    from glassgpt.config import DataConfig
    from glassgpt.data import TextSource, TokenStream
    from glassgpt.data.audit.duplicates import Duplicates, Pair
    from glassgpt.data.audit.leaks import Overlap
    from glassgpt.data.sources.documents import Document
    from glassgpt.files import Progress

#: Ids, and documents, that statistics are computed over: the first ones of a larger corpus.
MAX_COUNTED = 10_000_000


def corpus_sizes(stream: "TokenStream") -> dict[str, Any]:
    """Return the sizes of both splits and how the corpus was prepared, as JSON values."""
    info = stream.info
    return {
        "tokens": info.tokens,
        "documents": info.documents,
        "bytes": info.bytes,
        "vocab_size": info.vocab_size,
        "bytes_per_token": {split: info.bytes[split] / max(info.tokens[split], 1) for split in info.tokens},
        "tokenizer": info.tokenizer,
        "split": stream.manifest.split,
        "duplicates_dropped": stream.manifest.duplicates,
        "left_out": stream.manifest.left_out,
    }


def corpus_statistics(stream: "TokenStream") -> dict[str, Any]:
    """Count the training ids, and take the quartiles of the documents' lengths, as JSON values."""
    import numpy as np

    ids = np.asarray(stream.train[:MAX_COUNTED])
    counts = np.bincount(ids, minlength=stream.info.vocab_size)
    lengths: list[int] = []
    for shard in stream.train.shards:
        lengths += np.diff(np.append(shard.starts, len(shard))).tolist()
        if len(lengths) >= MAX_COUNTED:
            break
    return {
        "ids_counted": len(ids),
        "distinct_ids": int((counts > 0).sum()),
        "most_frequent": [
            {"id": int(i), "text": quoted(stream.tokenizer.token_bytes(int(i))), "share": float(counts[i] / len(ids))}
            for i in np.argsort(-counts, kind="stable")[:10]
            if counts[i]
        ],
        "document_tokens": [int(q) for q in np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1])] if lengths else [],
    }


def first_documents(stream: "TokenStream", count: int) -> Iterator[tuple[int, str]]:
    """Yield the first token's position and the first characters of the first training documents."""
    import numpy as np

    shard = stream.train.shards[0]
    for begin, end in itertools.pairwise(np.append(shard.starts, len(shard))[: count + 1]):
        text = stream.tokenizer.decode(stream.train[int(begin) : min(int(end), int(begin) + 64)].tolist())
        yield int(begin), text[:120] + ("..." if len(text) > 120 or end - begin > 64 else "")


def find_leaks(stream: "TokenStream", evaluations: Mapping[str, "TextSource"]) -> dict[str, "Overlap"]:
    """Find the 13-grams that the validation split, and evaluation texts by name, share with the training split.

    Returns:
        The overlaps with the training split, by name; that of the validation split is "validation".

    Raises:
        DataError: if an evaluation text is a prepared corpus.
    """
    from glassgpt.data.audit.leaks import Grams, overlap
    from glassgpt.data.corpus.reading_back import texts_of

    by_document = stream.manifest.split == "documents"

    def names(split: str) -> Iterator[str]:
        return (f"{split} document {i}" if by_document else f"{split} the text" for i in itertools.count())

    grams = {"validation": Grams.of(texts_of(stream, "val"), names("validation"))}
    for name, source in evaluations.items():
        if source.prepared:
            raise DataError(f"{name} is a prepared corpus; give the text that it was made from")
        documents = list(source.documents())
        grams[name] = Grams.of([d.text for d in documents], map(str, documents))
    return {name: overlap(side, texts_of(stream, "train"), names("training")) for name, side in grams.items()}


def find_duplicates(
    source: "TextSource", config: "DataConfig", max_pairs: int, progress: "Progress | None" = None
) -> "tuple[Duplicates, list[tuple[Pair, Document, Document]]]":
    """Find the documents of a source that repeat an earlier one; return ``max_pairs`` pairs at most with their texts.

    Raises:
        DataError: if the source has no documents.
    """
    from glassgpt.data.corpus import tasks
    from glassgpt.tokenizer.pretokenize import usable_cpus

    if source.prepared or source.single:
        kind = "a prepared corpus holds ids" if source.prepared else "a single text has no documents"
        raise DataError(f"--duplicates compares documents, and {kind}; give a folder, a .jsonl file, or a separator")
    parts = list(tasks.document_tasks(source))
    processes = usable_cpus() if len(parts) > 1 else 1
    with tempfile.TemporaryDirectory(prefix="glassgpt-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        found = tasks.find_source_duplicates(source, config, parts, folder, processes=processes, progress=progress)
    pairs = found.pairs[:max_pairs]
    places = {place for pair in pairs for place in (pair.first, pair.second)}
    documents = {
        (part, row): document
        for part in {part for part, _ in places}
        for row, document in enumerate(source.documents(parts[part]["segments"]))
        if (part, row) in places
    }
    return found, [(pair, documents[pair.first], documents[pair.second]) for pair in pairs]
