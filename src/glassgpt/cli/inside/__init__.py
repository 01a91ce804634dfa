"""Verbs that look into a model."""
