"""The checks of texts, tokenizers and conversations."""
