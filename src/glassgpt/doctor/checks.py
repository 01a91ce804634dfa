"""The checks of a model, in the order in which they run."""

from glassgpt.doctor.models.attention import ATTENTION_CHECKS
from glassgpt.doctor.models.behaviour import BEHAVIOUR_CHECKS
from glassgpt.doctor.models.caches import CACHE_CHECKS
from glassgpt.doctor.models.dependence import DEPENDENCE_CHECKS
from glassgpt.doctor.models.device import DEVICE_CHECKS
from glassgpt.doctor.models.generation import GENERATION_CHECKS
from glassgpt.doctor.models.gradients import GRADIENTS_CHECKS
from glassgpt.doctor.models.groups import GROUP_CHECKS
from glassgpt.doctor.models.learning import LEARNING_CHECKS
from glassgpt.doctor.models.longest import LENGTH_CHECKS
from glassgpt.doctor.models.norms import NORM_CHECKS
from glassgpt.doctor.models.numbers import NUMBER_CHECKS
from glassgpt.doctor.models.outputs import OUTPUTS_CHECKS
from glassgpt.doctor.models.padding import PADDING_CHECKS
from glassgpt.doctor.models.parameters import PARAMETERS_CHECKS
from glassgpt.doctor.models.positions import POSITION_CHECKS
from glassgpt.doctor.models.registration import REGISTRATION_CHECKS
from glassgpt.doctor.models.residual import RESIDUAL_CHECKS
from glassgpt.doctor.models.rotations import ROTATION_CHECKS
from glassgpt.doctor.models.sharing import SHARING_CHECKS
from glassgpt.doctor.models.targets import TARGETS_CHECKS
from glassgpt.doctor.report import Check
from glassgpt.doctor.subject import Subject

MODEL_CHECKS: tuple[Check[Subject], ...] = (
    *DEPENDENCE_CHECKS,
    *ATTENTION_CHECKS, *GROUP_CHECKS, *ROTATION_CHECKS, *POSITION_CHECKS, *NORM_CHECKS, *RESIDUAL_CHECKS,
    *OUTPUTS_CHECKS, *PARAMETERS_CHECKS, *GRADIENTS_CHECKS, *REGISTRATION_CHECKS, *SHARING_CHECKS,
    *BEHAVIOUR_CHECKS, *NUMBER_CHECKS, *LENGTH_CHECKS, *DEVICE_CHECKS,
    *CACHE_CHECKS, *GENERATION_CHECKS, *PADDING_CHECKS, *TARGETS_CHECKS, *LEARNING_CHECKS,
)  # fmt: skip
