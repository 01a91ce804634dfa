"""What the lessons use: predict a number before it is measured, compare with the package, keep a picture."""

from glassgpt.learn.helpers import equal, picture, predict, seed, short

__all__ = ["equal", "picture", "predict", "seed", "short"]
