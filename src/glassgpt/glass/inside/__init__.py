"""Look inside a model: every tensor of a forward pass, and what it tells. Functions return plain arrays."""

from glassgpt.glass.inside.film import film
from glassgpt.glass.inside.lens import lens

__all__ = ["film", "lens"]
