"""Look inside a model: every tensor of a forward pass, and what it tells. Functions return plain arrays."""

from glassgpt.glass.inside.score import Score, score

__all__ = ["Score", "score"]
