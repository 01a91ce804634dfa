"""The checks of a model, in the order in which they run."""

from glassgpt.doctor.models.learning.gradients import GRADIENTS_CHECKS
from glassgpt.doctor.models.learning.outputs import OUTPUTS_CHECKS
from glassgpt.doctor.models.learning.parameters import PARAMETERS_CHECKS
from glassgpt.doctor.models.learning.registration import REGISTRATION_CHECKS
from glassgpt.doctor.models.learning.sharing import SHARING_CHECKS
from glassgpt.doctor.models.learning.short_training import LEARNING_CHECKS
from glassgpt.doctor.models.learning.targets import TARGETS_CHECKS
from glassgpt.doctor.models.running.behaviour import BEHAVIOUR_CHECKS
from glassgpt.doctor.models.running.caches import CACHE_CHECKS
from glassgpt.doctor.models.running.device import DEVICE_CHECKS
from glassgpt.doctor.models.running.generation import GENERATION_CHECKS
from glassgpt.doctor.models.running.longest import LENGTH_CHECKS
from glassgpt.doctor.models.running.numbers import NUMBER_CHECKS
from glassgpt.doctor.models.running.padding import PADDING_CHECKS
from glassgpt.doctor.models.wiring.attention import ATTENTION_CHECKS
from glassgpt.doctor.models.wiring.dependence import DEPENDENCE_CHECKS
from glassgpt.doctor.models.wiring.groups import GROUP_CHECKS
from glassgpt.doctor.models.wiring.norms import NORM_CHECKS
from glassgpt.doctor.models.wiring.positions import POSITION_CHECKS
from glassgpt.doctor.models.wiring.residual import RESIDUAL_CHECKS
from glassgpt.doctor.models.wiring.rotations import ROTATION_CHECKS
from glassgpt.doctor.report import Check
from glassgpt.doctor.subject import Subject

MODEL_CHECKS: tuple[Check[Subject], ...] = (
    *DEPENDENCE_CHECKS,
    *ATTENTION_CHECKS, *GROUP_CHECKS, *ROTATION_CHECKS, *POSITION_CHECKS, *NORM_CHECKS, *RESIDUAL_CHECKS,
    *OUTPUTS_CHECKS, *PARAMETERS_CHECKS, *GRADIENTS_CHECKS, *REGISTRATION_CHECKS, *SHARING_CHECKS,
    *BEHAVIOUR_CHECKS, *NUMBER_CHECKS, *LENGTH_CHECKS, *DEVICE_CHECKS,
    *CACHE_CHECKS, *GENERATION_CHECKS, *PADDING_CHECKS, *TARGETS_CHECKS, *LEARNING_CHECKS,
)  # fmt: skip
