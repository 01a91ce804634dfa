"""Look inside a model: every tensor of a forward pass, and what it tells. Functions return plain arrays."""

from glassgpt.glass.inside.film import film
from glassgpt.glass.inside.heads import attention
from glassgpt.glass.inside.lens import lens
from glassgpt.glass.inside.trace import trace

__all__ = ["attention", "film", "lens", "trace"]
