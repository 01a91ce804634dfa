"""How tokens are chosen: a ledger of every step, its replay, and settings compared on the same logits."""

from glassgpt.glass.choices.comparison import Comparison, compare_settings, usual_settings
from glassgpt.glass.choices.ledger import Ledger, load, record_choices
from glassgpt.glass.choices.replay import Replay, replay

__all__ = [
    "Comparison",
    "Ledger",
    "Replay",
    "compare_settings",
    "load",
    "record_choices",
    "replay",
    "usual_settings",
]
