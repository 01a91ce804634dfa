"""Look inside a model: every tensor of a forward pass, and what it tells. Functions return plain arrays."""

from glassgpt.glass.inside.ablation import ablate
from glassgpt.glass.inside.attribution import why
from glassgpt.glass.inside.film import film
from glassgpt.glass.inside.heads import attention
from glassgpt.glass.inside.lens import lens
from glassgpt.glass.inside.reach import reach
from glassgpt.glass.inside.score import score
from glassgpt.glass.inside.trace import trace

__all__ = ["ablate", "attention", "film", "lens", "reach", "score", "trace", "why"]
