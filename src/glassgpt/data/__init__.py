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
    from glassgpt.data.sources.source import Text, TextSource, find_source, is_here, read_text, sha256_of_text

_NAMES_IN = {
    "batch": ["IGNORE_INDEX", "Batch"],
    "batches.loader": ["Loader"],
    "batches.sliding": ["SlidingWindowDataset"],
    "batches.windows": ["Batches"],
    "corpus.manifest": ["TokenStream", "open_stream"],
    "corpus.preparing": ["find_prepared", "prepare", "prepare_again"],
    "corpus.shards": ["Ids", "Tokens"],
    "sources.source": ["Text", "TextSource", "find_source", "is_here", "read_text", "sha256_of_text"],
}
_MODULE_OF = {name: module for module, names in _NAMES_IN.items() for name in names}
__all__ = [
    "IGNORE_INDEX", "Batch", "Batches", "Ids", "Loader", "SlidingWindowDataset", "Text", "TextSource", "TokenStream",
    "Tokens", "find_prepared", "find_source", "is_here", "open_stream", "prepare", "prepare_again", "read_text",
    "sha256_of_text",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"glassgpt.data.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
