"""Print what the doctor found: one line per check as it ends, the advice for what is wrong, and the end."""

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glassgpt.cli.printing.output import pluralize, print_text

if TYPE_CHECKING:
    from glassgpt.doctor.report import Check, Outcome

#: Characters of a measured value that is printed; longer ones (the reach triangle) are in --json and --html.
_LONGEST_VALUE = 100
_INDENT = " " * 9


def print_outcome(outcome: "Outcome", advised: set[str]) -> None:
    """Print a result; of a WARN or FAIL also the numbers, and the advice for a class that is not yet in ``advised``."""
    from glassgpt.doctor.advice import ADVICE
    from glassgpt.doctor.page import short_values

    result = outcome.result
    finding = f"{result.finding}: " if result.finding else ""
    print_text(f"{result.status:<7}  {outcome.check.name}: {finding}{result.message}")
    if result.finding is None:
        return
    if result.module:
        _print_entry("module", result.module)
    if numbers := short_values(result.evidence, _LONGEST_VALUE):
        _print_entry("evidence", ", ".join(f"{name} {value}" for name, value in numbers.items()))
    advice = ADVICE[result.finding]
    if result.finding in advised:
        _print_entry("fix", f"as of {result.finding!r} above")
        return
    advised.add(result.finding)
    _print_entry("meaning", advice.meaning)
    for number, cause in enumerate(advice.causes):
        _print_entry("" if number else "causes", f"- {cause}")
    _print_entry("fix", advice.fix)
    if advice.code:
        _print_entry("", f"    {advice.code}")
    _print_entry("lesson", f"`glassgpt learn {advice.lesson}`")


def _print_entry(name: str, text: str) -> None:
    print_text(f"{_INDENT}{name:<9} {text}")


def print_end(outcomes: Sequence["Outcome"], left_out: int, seconds: float) -> None:
    """Print how many checks passed, which were not run, and the time."""
    counts = Counter(outcome.result.status for outcome in outcomes)
    shown = ", ".join(f"{counts[status]} {status}" for status in ("PASS", "WARN", "FAIL", "NOT RUN") if counts[status])
    print_text(f"\n{shown or 'nothing was examined'}; {seconds:.1f} s")
    found = dict.fromkeys(o.result.finding for o in outcomes if o.result.status == "FAIL" and o.result.finding)
    if found:
        print_text(f"found: {', '.join(found)}")
    reasons: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.result.status == "NOT RUN":
            reasons.setdefault(outcome.result.message, []).append(outcome.check.name)
    for reason, names in reasons.items():
        print_text(f"not run: {', '.join(dict.fromkeys(names))} ({reason})")
    if left_out:
        print_text(f"left out: {pluralize(left_out, 'check')} (--fast, --only)")


def print_checks(kinds: Mapping[str, Sequence["Check[Any]"]]) -> None:
    """Print every check of every kind of subject, for --list."""
    for number, (kind, checks) in enumerate(kinds.items()):
        print_text(f"{'' if not number else chr(10)}{kind}:")
        for check in checks:
            print_text(f"  {check.name}{'' if check.fast else '  (not with --fast)'}")
            for name, text in (
                ("does", check.does), ("cost", check.cost), ("threshold", check.threshold),
                ("finds", ", ".join(check.findings)),
            ):  # fmt: skip
                print(textwrap.fill(text, 110, initial_indent=f"    {name:<10}", subsequent_indent=" " * 14))


def as_json(outcomes: Iterable["Outcome"]) -> list[dict[str, Any]]:
    """Return the entries of ``checks`` in --json. Tensors and arrays become lists, other objects texts."""
    return [_plain(outcome.as_json()) for outcome in outcomes]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)
