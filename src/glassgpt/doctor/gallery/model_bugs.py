"""Every bug of models that the gallery has."""

from glassgpt.doctor.gallery.bug import Bug
from glassgpt.doctor.gallery.bugs.batches import BATCHES_BUGS
from glassgpt.doctor.gallery.bugs.caches import CACHES_BUGS
from glassgpt.doctor.gallery.bugs.calls import CALLS_BUGS
from glassgpt.doctor.gallery.bugs.dead import DEAD_BUGS
from glassgpt.doctor.gallery.bugs.ends import ENDS_BUGS
from glassgpt.doctor.gallery.bugs.leak import LEAK_BUGS
from glassgpt.doctor.gallery.bugs.numbers import NUMBERS_BUGS
from glassgpt.doctor.gallery.bugs.positions import POSITIONS_BUGS
from glassgpt.doctor.gallery.bugs.reach import REACH_BUGS
from glassgpt.doctor.gallery.bugs.registration import REGISTRATION_BUGS
from glassgpt.doctor.gallery.bugs.scores import SCORES_BUGS
from glassgpt.doctor.gallery.bugs.stream import STREAM_BUGS
from glassgpt.doctor.gallery.bugs.targets import TARGETS_BUGS

#: All bugs that can be put into a model.
MODEL_BUGS: tuple[Bug, ...] = (
    *LEAK_BUGS,
    *REACH_BUGS,
    *SCORES_BUGS,
    *POSITIONS_BUGS,
    *STREAM_BUGS,
    *ENDS_BUGS,
    *DEAD_BUGS,
    *REGISTRATION_BUGS,
    *BATCHES_BUGS,
    *CALLS_BUGS,
    *NUMBERS_BUGS,
    *CACHES_BUGS,
    *TARGETS_BUGS,
)
