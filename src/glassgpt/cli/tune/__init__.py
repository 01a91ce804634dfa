"""``glassgpt tune``: fine-tune a model on conversations, and show what of them is trained."""
