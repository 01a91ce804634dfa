"""The checks of a model, in the order in which they run."""

from glassgpt.doctor.report import Check
from glassgpt.doctor.subject import Subject

MODEL_CHECKS: tuple[Check[Subject], ...] = ()
