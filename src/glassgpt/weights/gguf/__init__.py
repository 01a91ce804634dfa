"""GGUF files: reading, writing, and the tables that both share."""
