"""Draw what was found inside a model."""
