"""Rewrites of a finished model: each takes a :class:`~glassgpt.model.GPT` and changes how it computes, not what."""
