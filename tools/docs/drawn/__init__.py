"""The diagrams of the documentation, one function each. ``tools/docs/diagrams.py`` writes them."""
