"""What the doctor can examine: subjects of several kinds, each with its checks."""

import difflib
import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from glassgpt.doctor.checks import MODEL_CHECKS
from glassgpt.doctor.history import HISTORY_CHECKS
from glassgpt.doctor.loops.checks import LOOP_CHECKS
from glassgpt.doctor.machine import MACHINE_CHECKS
from glassgpt.doctor.report import FINDINGS, Check, Outcome, run_checks
from glassgpt.doctor.texts.checks import CONVERSATION_CHECKS, CORPUS_CHECKS, TOKENIZER_CHECKS
from glassgpt.errors import SubjectError

#: The checks by kind of subject, and the option that gives such a subject.
CHECKS: dict[str, tuple[Check[Any], ...]] = {
    "machine": MACHINE_CHECKS,
    "model": MODEL_CHECKS,
    "loop": LOOP_CHECKS,
    "history": HISTORY_CHECKS,
    "data": CORPUS_CHECKS,
    "tokenizer": TOKENIZER_CHECKS,
    "conversations": CONVERSATION_CHECKS,
}
GIVEN_BY = {
    "model": "TARGET", "loop": "--loop", "data": "--data", "tokenizer": "--tokenizer",
    "conversations": "--conversations", "history": "a run as TARGET", "machine": "no TARGET",
}  # fmt: skip


@dataclass(frozen=True)
class Examination:
    """A subject to examine.

    Attributes:
        kind: a key of CHECKS.
        name: how the user named it.
        subject: what the checks of this kind receive.
    """

    kind: str
    name: str
    subject: Any

    def run(self, only: Collection[str] = (), fast: bool = False) -> Iterator[Outcome]:
        """Run the checks of its kind; see :func:`run_checks`."""
        return run_checks(CHECKS[self.kind], self.subject, only, fast)


def selected(kind: str, only: Collection[str] = (), fast: bool = False) -> list[Check[Any]]:
    """Return the checks of this kind that :meth:`Examination.run` runs."""
    return [c for c in CHECKS[kind] if (not only or _named(c, only)) and (c.fast or not fast)]


def _named(check: Check[Any], only: Collection[str]) -> bool:
    return check.name in only or bool(set(check.findings) & set(only))


def read_only(text: str, kinds: Iterable[str]) -> list[str]:
    """Read ``--only``: names of checks and of classes of bugs, with commas between; empty for all.

    Args:
        text: the value of the option.
        kinds: of the subjects that are examined.

    Raises:
        SubjectError: if a name is neither, or none of them belongs to these kinds.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    known = [check.name for check in itertools.chain(*CHECKS.values())]
    known += FINDINGS
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise SubjectError(f"--only {name[:80]!r} is not a check or a class of bugs; {hint}--list shows them")
    here = [check for kind in kinds for check in CHECKS[kind]]
    if names and not any(_named(check, names) for check in here):
        owners = [kind for kind, checks in CHECKS.items() if any(_named(check, names) for check in checks)]
        ways = " or ".join(GIVEN_BY[kind] for kind in owners)
        raise SubjectError(f"--only {text}: no check of what was given; give {ways}")
    return names
