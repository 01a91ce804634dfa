"""Every bug of models that the gallery has."""

from glassgpt.doctor.gallery.attention_bugs import ATTENTION_BUGS
from glassgpt.doctor.gallery.behaviour_bugs import BEHAVIOUR_BUGS
from glassgpt.doctor.gallery.bug import Bug
from glassgpt.doctor.gallery.structure_bugs import STRUCTURE_BUGS

#: All bugs that can be put into a model.
MODEL_BUGS: tuple[Bug, ...] = ATTENTION_BUGS + STRUCTURE_BUGS + BEHAVIOUR_BUGS
