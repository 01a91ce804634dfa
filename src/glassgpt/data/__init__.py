"""From texts to batches of tokens."""

from typing import TYPE_CHECKING, Any

from glassgpt.data.batches import IGNORE_INDEX, Batches
from glassgpt.data.manifest import TokenStream, open_stream
from glassgpt.data.preparing import find_prepared, prepare, prepare_again
from glassgpt.data.readers import Source, Text, find, read
from glassgpt.data.shards import Ids, Tokens

if TYPE_CHECKING:
    from glassgpt.data.loader import Loader
    from glassgpt.data.sliding import SlidingWindowDataset

__all__ = [
    "IGNORE_INDEX",
    "Batches",
    "Ids",
    "Loader",
    "SlidingWindowDataset",
    "Source",
    "Text",
    "TokenStream",
    "Tokens",
    "find",
    "find_prepared",
    "open_stream",
    "prepare",
    "prepare_again",
    "read",
]


def __getattr__(name: str) -> Any:
    """What needs torch, when it is first used."""
    if name == "SlidingWindowDataset":
        from glassgpt.data.sliding import SlidingWindowDataset

        return SlidingWindowDataset
    if name == "Loader":
        from glassgpt.data.loader import Loader

        return Loader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
