"""From texts to batches of tokens. Names are imported at first use, so importing this package is fast."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glassgpt.data.batch import IGNORE_INDEX, Batch
    from glassgpt.data.batches.loader import Loader
    from glassgpt.data.batches.sliding import SlidingWindowDataset
    from glassgpt.data.batches.windows import Batches
    from glassgpt.data.corpus.manifest import TokenStream, open_stream
    from glassgpt.data.corpus.preparing import find_prepared, prepare, prepare_again
    from glassgpt.data.corpus.shards import Ids, Tokens
    from glassgpt.data.sources.source import Text, TextSource, find_source, read_text

_MODULE_OF = {
    "IGNORE_INDEX": "batch",
    "Batch": "batch",
    "Loader": "batches.loader",
    "SlidingWindowDataset": "batches.sliding",
    "Batches": "batches.windows",
    "TokenStream": "corpus.manifest",
    "open_stream": "corpus.manifest",
    "find_prepared": "corpus.preparing",
    "prepare": "corpus.preparing",
    "prepare_again": "corpus.preparing",
    "Ids": "corpus.shards",
    "Tokens": "corpus.shards",
    "Text": "sources.source",
    "TextSource": "sources.source",
    "find_source": "sources.source",
    "read_text": "sources.source",
}
__all__ = [
    "IGNORE_INDEX",
    "Batch",
    "Batches",
    "Ids",
    "Loader",
    "SlidingWindowDataset",
    "Text",
    "TextSource",
    "TokenStream",
    "Tokens",
    "find_prepared",
    "find_source",
    "open_stream",
    "prepare",
    "prepare_again",
    "read_text",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"glassgpt.data.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
