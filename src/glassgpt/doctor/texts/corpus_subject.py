"""A corpus to examine: a text, documents, a prepared corpus, or what somebody's own program trains on.

A factory's object has what it has of ``train`` and ``val`` (a text, a list of texts, or ids), and ``tokenizer``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from glassgpt.config import DataConfig
from glassgpt.data import find_source, prepare
from glassgpt.data.corpus.reading_back import texts_of
from glassgpt.doctor.loading import import_factory, names_a_factory
from glassgpt.doctor.texts.foreign_tokenizer import adapt_tokenizer
from glassgpt.doctor.texts.tokenizer_subject import TokenizerSubject, of_house
from glassgpt.errors import ConfigError

#: Ids, and characters, of a split that are examined: the first ones of a larger one. The search for leaks reads all.
MOST = 20_000_000
MOST_CHARACTERS = 300_000

Split = str  # "train" or "val"


@dataclass
class Corpus:
    """A corpus.

    Attributes:
        name: of the source.
        documents: gives the documents of a split, each as its parts; None if there are only ids, and no tokenizer.
        ids: of each split, int64 ``[tokens]``; empty if there are only texts.
        tokenizer: None if there is none.
        by_document: whether there are several documents.
        window: ids in the shortest row, if the ids came in rows; 0 if they are one stream.
    """

    name: str
    documents: Callable[[Split], Iterator[Iterable[str]]] | None
    ids: Mapping[Split, np.ndarray]
    tokenizer: TokenizerSubject | None
    by_document: bool
    window: int = 0

    def text(self, split: Split) -> str:
        """The first characters of a split."""
        assert self.documents is not None
        parts, total = list[str](), 0
        for document in self.documents(split):
            for part in document:
                parts.append(part)
                total += len(part)
                if total > MOST_CHARACTERS:
                    return "".join(parts)
        return "".join(parts)


def load_corpus(source: str, tokenizer: str = "char", val_fraction: float | None = None) -> Corpus:
    """Load a corpus: a file, a folder, a name, a prepared corpus, or ``module.py:factory``.

    Args:
        source: as for `glassgpt train`; or a factory.
        tokenizer: as for `glassgpt train`; a prepared corpus has its own.
        val_fraction: the share that validates; None: as in training.

    Raises:
        GlassError: if it cannot be read.
    """
    if names_a_factory(source):
        return corpus_of(import_factory(source)(), source)
    config = DataConfig(source=source, tokenizer=tokenizer)
    config = config if val_fraction is None else replace(config, val_fraction=val_fraction)
    stream = prepare(find_source(config), config)
    ids = {"train": np.asarray(stream.train[:MOST]), "val": np.asarray(stream.val[:MOST])}
    by_document = stream.manifest.split == "documents"
    subject = of_house(stream.tokenizer, f"the tokenizer of {source}")
    return Corpus(source, lambda split: texts_of(stream, split), ids, subject, by_document)


def corpus_of(made: Any, name: str) -> Corpus:
    """The subject of a factory's object, of a mapping, or of the pair (train, val).

    Raises:
        ConfigError: if it has no train and val.
    """
    if isinstance(made, tuple | list) and len(made) == 2:
        made = {"train": made[0], "val": made[1]}

    def part(*keys: str) -> Any:
        values = (made.get(key) if isinstance(made, Mapping) else getattr(made, key, None) for key in keys)
        return next((value for value in values if value is not None), None)

    splits = {"train": part("train", "train_data", "train_text", "train_ids"),
              "val": part("val", "val_data", "val_text", "val_ids", "valid", "validation", "test")}  # fmt: skip
    if any(value is None for value in splits.values()):
        raise ConfigError(f"{name}: the object has no train and val: texts, lists of texts, or ids")
    found = part("tokenizer", "tok")
    tokenizer = adapt_tokenizer(found, f"{name}'s tokenizer") if found is not None else None
    texts = {split: _texts(value) for split, value in splits.items()}
    if all(value is not None for value in texts.values()):
        ids = {split: _encode(tokenizer, value or []) for split, value in texts.items()} if tokenizer else {}
        return Corpus(name, lambda split: iter([t] for t in texts[split] or []), ids, tokenizer,
                      any(len(value or ()) > 1 for value in texts.values()))  # fmt: skip
    ids = {split: _ids(value) for split, value in splits.items()}
    window = min(map(_window, splits.values()))
    if tokenizer is None or window:
        return Corpus(name, None, ids, tokenizer, False, window)
    decode = tokenizer.decode
    return Corpus(name, lambda split: iter([[decode(ids[split][:MOST].tolist())]]), ids, tokenizer, False)


def _window(value: Any) -> int:
    """The ids in the shortest row of a split; 0 if it is one stream."""
    if getattr(value, "ndim", 0) == 2:
        return int(value.shape[1])
    rows = isinstance(value, list | tuple) and value and hasattr(value[0], "__len__")
    return min(map(len, value)) if rows else 0


def _texts(value: Any) -> list[str] | None:
    """The documents, if a split is text."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple) and value and all(isinstance(document, str) for document in value):
        return list(value)
    return None


def _encode(tokenizer: TokenizerSubject, documents: list[str]) -> np.ndarray:
    ids = list[int]()
    for document in documents:
        try:
            ids += tokenizer.encode(document[:MOST])
        except Exception:  # of somebody's code: the checks of the tokenizer tell
            return np.empty(0, dtype=np.int64)
        if len(ids) > MOST:
            break
    return np.array(ids, dtype=np.int64)


def _ids(value: Any) -> np.ndarray:
    value = value.numpy() if hasattr(value, "numpy") else value
    if isinstance(value, list | tuple) and value and hasattr(value[0], "__len__"):
        value = np.concatenate([np.asarray(row) for row in value])
    return np.asarray(value).reshape(-1)
