"""Answers of a model to held-out questions: generated, scored, and compared before and after training."""
