"""Seeing inside: what a model and a run look like."""
