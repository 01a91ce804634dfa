"""How results are printed: tables, JSON, progress, the display of training, tokens."""
