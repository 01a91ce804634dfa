"""How tokens reach logits: dependence, attention, positions, norms, the residual stream."""
