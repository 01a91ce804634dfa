"""Helpers inside lessons. They print plain text, so that a lesson reads the same in a terminal and in a notebook."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

#: Set by `glassgpt learn` while somebody can answer; by the tests, to shorten what trains.
ASK, SHORT, PICTURES = "GLASSGPT_LEARN_ASK", "GLASSGPT_LEARN_SHORT", "GLASSGPT_LEARN_PICTURES"


@dataclass(frozen=True)
class Prediction:
    """What the learner expects; None if nobody was asked."""

    question: str
    answer: str | None

    def measured(self, value: Any) -> None:
        """Print the measured value beside the prediction."""
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        print(f"measured: {shown}" + (f"   (you predicted: {self.answer})" if self.answer else ""))


def predict(question: str) -> Prediction:
    """Ask for a number before it is measured. Without somebody to answer, only the question is printed."""
    print(f"Predict: {question}")
    answer = input("  your prediction: ").strip() if os.environ.get(ASK) and sys.stdin.isatty() else ""
    return Prediction(question, answer or None)


def equal(mine: "Tensor", theirs: "Tensor", what: str, tolerance: float = 1e-5) -> None:
    """Assert that two tensors of one shape ``[...]`` agree, and print their largest difference.

    Raises:
        AssertionError: if the shapes differ, or a value by more than the tolerance, relative to the largest.
    """
    mine, theirs = mine.detach().cpu(), theirs.detach().cpu()
    assert mine.shape == theirs.shape, f"{what}: shapes {tuple(mine.shape)} and {tuple(theirs.shape)}"
    difference = float((mine.double() - theirs.double()).abs().max()) if mine.numel() else 0.0
    size = max(1.0, float(theirs.abs().max())) if theirs.numel() else 1.0
    assert difference <= tolerance * size, f"{what}: the largest difference is {difference:.3g}"
    print(f"equal: {what}, shape {tuple(mine.shape)}, largest difference {difference:.1e}")


def short(full: int, quick: int) -> int:
    """The full number of steps, or the quick one where the tests run the lesson in a short form."""
    return quick if os.environ.get(SHORT) else full


def picture(figure: "Figure", name: str) -> Path:
    """Save a figure as ``lesson-pictures/NAME.png`` and print where it is; in a notebook it is shown as well."""
    import matplotlib.pyplot as plt

    folder = Path(os.environ.get(PICTURES, "lesson-pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=120, bbox_inches="tight")
    if not _in_notebook():  # a notebook shows the figures that are open at the end of a cell
        plt.close(figure)
    print(f"picture: {path}")
    return path


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def seed(value: int = 0) -> None:
    """Start torch's random numbers anew, so that a lesson prints the same numbers each time."""
    import torch

    torch.manual_seed(value)
