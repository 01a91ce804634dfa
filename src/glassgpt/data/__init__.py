"""From a text to batches of tokens."""

from glassgpt.data.batches import IGNORE_INDEX, Batches
from glassgpt.data.readers import Text, read
from glassgpt.data.shards import TokenStream, find_prepared, open_stream, prepare, prepare_again

__all__ = [
    "IGNORE_INDEX",
    "Batches",
    "Text",
    "TokenStream",
    "find_prepared",
    "open_stream",
    "prepare",
    "prepare_again",
    "read",
]
