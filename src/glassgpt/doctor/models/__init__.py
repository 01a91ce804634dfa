"""The checks of a model: any module that turns token ids into logits."""
