"""Batches of token ids."""
