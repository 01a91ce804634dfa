"""Correct models that look unusual, as changes of the programs."""
