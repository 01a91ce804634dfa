"""Examine models, runs, texts and tokens. Each function returns plain values; the command line prints them."""
