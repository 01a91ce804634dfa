"""Look inside a model: every tensor of a forward pass, and what it tells. Functions return plain arrays."""

from glassgpt.glass.inside.ablation import ablate
from glassgpt.glass.inside.attribution import why
from glassgpt.glass.inside.lens import lens
from glassgpt.glass.inside.reach import reach

__all__ = ["ablate", "lens", "reach", "why"]
