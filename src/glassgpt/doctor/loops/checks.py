"""The checks of a training loop, in the order in which they run."""

from glassgpt.doctor.loops.clipping import CLIPPING_CHECKS
from glassgpt.doctor.loops.evaluation import EVALUATION_CHECKS
from glassgpt.doctor.loops.gradients import GRADIENT_CHECKS
from glassgpt.doctor.loops.leaks import LEAK_CHECKS
from glassgpt.doctor.loops.loop import Loop
from glassgpt.doctor.loops.optimizers import OPTIMIZER_CHECKS
from glassgpt.doctor.loops.schedules import SCHEDULE_CHECKS
from glassgpt.doctor.loops.targets import TARGET_CHECKS
from glassgpt.doctor.loops.updates import UPDATE_CHECKS
from glassgpt.doctor.report import Check

LOOP_CHECKS: tuple[Check[Loop], ...] = (
    *TARGET_CHECKS,
    *LEAK_CHECKS,
    *OPTIMIZER_CHECKS,
    *GRADIENT_CHECKS,
    *CLIPPING_CHECKS,
    *UPDATE_CHECKS,
    *SCHEDULE_CHECKS,
    *EVALUATION_CHECKS,
)
