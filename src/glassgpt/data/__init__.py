"""From a text to batches of tokens."""

from typing import TYPE_CHECKING, Any

from glassgpt.data.batches import IGNORE_INDEX, Batches
from glassgpt.data.readers import Text, read
from glassgpt.data.shards import TokenStream, find_prepared, open_stream, prepare, prepare_again

if TYPE_CHECKING:
    from glassgpt.data.sliding import SlidingWindowDataset

__all__ = [
    "IGNORE_INDEX",
    "Batches",
    "SlidingWindowDataset",
    "Text",
    "TokenStream",
    "find_prepared",
    "open_stream",
    "prepare",
    "prepare_again",
    "read",
]


def __getattr__(name: str) -> Any:
    """The one thing here that needs torch, when it is first used."""
    if name == "SlidingWindowDataset":
        from glassgpt.data.sliding import SlidingWindowDataset

        return SlidingWindowDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
