"""What is wrong with a corpus: documents that repeat others, validation text that leaks into training."""
