"""GGUF files: read, written, and the tables that both use."""
