"""Check a corpus: documents that repeat others, and validation text in the training split."""
