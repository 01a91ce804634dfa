"""The checks of a run's history: what its metrics.jsonl tells of the training that made it.

A history can show that something went wrong; it rarely shows what. So most results here are warnings, and a normal run
gives none. There is no class of bug for overfitting, nor for input that is too slow. Overfitting is named ``schedule``,
as fewer steps are its remedy; slow input is named ``device``, as the device is what waits.
"""

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from glassgpt.doctor.history_rows import ALIASES, History, is_finite, load_history
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned

#: Points of the training loss that are needed to judge a curve.
_MIN_POINTS = 20
#: A spike is so many robust standard deviations above the points before it, and so many nats.
_SPIKE_SIGMAS, _SPIKE_NATS = 10, 0.5
#: The median of absolute deviations, times this, estimates a standard deviation.
_MAD = 1.4826


def check_finite(history: History) -> Iterator[Result]:
    """All losses and gradient norms are numbers."""
    names = {name: key for key, aliases in ALIASES.items() for name in (key, *aliases)}
    losses, gradients, first, rows = 0, 0, None, 0
    events = [row for row in history.rows if "not finite" in str(row.get("event", ""))]  # steps that were skipped
    for row in history.rows:
        for name, value in row.items():
            key = names.get(name)
            if key in ("train/loss", "val/loss", "opt/grad_norm"):
                rows += key == "train/loss"
                wrong = not is_finite(value)
                losses += wrong and key != "opt/grad_norm"
                gradients += wrong and key == "opt/grad_norm"
                first = row["step"] if wrong and first is None else first
    evidence: dict[str, Any] = {"losses": losses, "gradient norms": gradients, "first step": first}
    if losses:
        yield failed("non-finite", f"{losses} losses are not finite, the first at step {first}", **evidence)
    elif events:
        yield warned("non-finite", f"{len(events)} steps were skipped: {events[0]['event']}", **evidence)
    elif gradients > 0.05 * max(1, rows):
        yield warned(
            "non-finite", f"{gradients} of {rows} gradient norms are not finite, the first at step {first}", **evidence
        )
    else:
        yield passed(f"all losses are finite; gradient norms that are not: {gradients}", **evidence)


def check_updates(history: History) -> Iterator[Result]:
    """The training loss leaves its first value."""
    losses, uniform = _losses(history), history.first("baseline/uniform")
    rates = [value for _, value in history.series("opt/adamw_lr")]
    norms = [value for _, value in history.series("opt/grad_norm")]
    last = statistics.median(losses[-max(5, len(losses) // 10) :])
    even = uniform is not None and (history.first("baseline/unigram") or 0.0) > 0.96 * uniform  # nothing to learn there
    start = uniform if uniform is not None and not history.trained_before else losses[0]
    evidence: dict[str, Any] = {"first": losses[0], "last": last, "uniform": uniform}
    if rates and not any(rates):
        yield failed("no update", "the learning rate is 0 in every step", **evidence)
    elif norms and not any(norms):
        yield failed("no update", "the gradient norm is 0 in every step", **evidence)
    elif uniform is not None and not history.trained_before and abs(last / start - 1) < 0.02 and not even:
        yield failed(
            "no update", f"after {len(losses)} recorded steps the loss is {last:.3f}, still that of a uniform guess "
            f"(ln V = {uniform:.3f})", **evidence,
        )  # fmt: skip
    elif len(losses) >= 50 and len({round(value, 6) for value in losses}) <= 2:
        yield failed("no update", f"the training loss stays at {last:.4f}", **evidence)
    else:
        yield passed(f"the training loss went from {losses[0]:.3f} to {last:.3f}", **evidence)


def check_spikes(history: History) -> Iterator[Result]:
    """The training loss has no spikes."""
    losses, steps = _losses(history), [step for step, _ in history.series("train/loss")]
    spikes = list[tuple[int, float]]()
    for at in range(8, len(losses)):
        before = losses[max(0, at - 20) : at]
        middle = statistics.median(before)
        spread = _MAD * statistics.median(abs(value - middle) for value in before)
        height = losses[at] - middle
        if height > max(_SPIKE_SIGMAS * spread, _SPIKE_NATS) and not (spikes and at - spikes[-1][0] < 5):
            spikes.append((at, height))
    evidence: dict[str, Any] = {
        "spikes": [{"step": steps[at], "height": round(height, 3)} for at, height in spikes[:20]]
    }
    if not spikes:
        yield passed("no spike in the training loss", **evidence)
        return
    at, height = max(spikes, key=lambda spike: spike[1])
    lasting = statistics.median(losses[-5:]) > statistics.median(losses[max(0, at - 10) : at]) + 0.5 * height
    message = f"the training loss jumps {len(spikes)} times, the highest by {height:.2f} nats at step {steps[at]}"
    if lasting:
        yield failed("schedule", f"{message}, and does not come back: the learning rate is too high there", **evidence)
    else:
        yield warned(
            "schedule",
            f"{message}; a lower rate, a longer warmup or clipping help, or the data there is odd",
            **evidence,
        )


def check_rate(history: History) -> Iterator[Result]:
    """The loss falls where the learning rate is highest, and gradients are not clipped to nothing."""
    losses = _losses(history)
    size = max(8, len(losses) // 10)
    smooth = [statistics.median(losses[at : at + size]) for at in range(len(losses) - size + 1)]
    best, noise = min(smooth), _noise(losses)
    rise = smooth[-1] - best
    norms = [value for _, value in history.series("opt/grad_norm")][len(losses) // 10 :]
    clipped = sum(norm > history.clip for norm in norms) / len(norms) if norms and history.clip else 0.0
    wild = _noise(losses[len(losses) // 10 :]) > 0.4
    evidence: dict[str, Any] = {"best": best, "last": smooth[-1], "noise": noise, "clipped": round(clipped, 3)}
    if rise > max(0.2, 0.05 * best, 6 * noise / math.sqrt(size)):
        yield failed(
            "schedule", f"the training loss rises from its best, {best:.3f}, to {smooth[-1]:.3f}: the learning rate is "
            "too high; try a third", **evidence,
        )  # fmt: skip
    elif wild and _wild_where_high(history, losses):
        yield warned(
            "schedule", f"the training loss swings by {_noise(losses[len(losses) // 10 :]):.2f} nats from step to step "
            "while the learning rate is high; try a third", **evidence,
        )  # fmt: skip
    elif clipped > 0.95 and history.clip and statistics.median(norms) > 10 * history.clip:
        yield warned(
            "clipping", f"{clipped:.0%} of the gradients are clipped, by {statistics.median(norms) / history.clip:.0f} "
            "times and more: the step is no longer the gradient's", **evidence,
        )  # fmt: skip
    else:
        yield passed(f"the training loss keeps falling; {clipped:.0%} of the gradients are clipped", **evidence)


def _wild_where_high(history: History, losses: Sequence[float]) -> bool:
    """Whether the noise is larger where the rate is high; if no rates are recorded, whether it is half the progress."""
    rates = dict(history.series("opt/adamw_lr"))
    top = max(rates.values(), default=0.0)
    high = [loss for step, loss in history.series("train/loss") if top and rates.get(step, 0) > 0.5 * top]
    low = [loss for step, loss in history.series("train/loss") if top and rates.get(step, top) < 0.25 * top]
    if len(high) >= _MIN_POINTS and len(low) >= _MIN_POINTS:
        return _noise(high) > 3 * _noise(low)
    return _noise(losses) > 0.5 * max(losses[0] - min(losses), 1e-9)


def check_overfitting(history: History) -> Iterator[Result]:
    """The validation loss does not rise from its best while the training loss falls."""
    val, train = history.series("val/loss"), history.series("train/loss")
    if len(val) < 4:
        raise NotRun(f"{len(val)} validations; four are needed to see a trend")
    best_step, best = min(val, key=lambda point: point[1])
    last_step, last = val[-1]
    rise, gap = last - best, last - _near(train, last_step)
    falls = _near(train, last_step) < _near(train, best_step) - 0.02
    evidence: dict[str, Any] = {"best": best, "best step": best_step, "last": last, "gap": gap}
    if rise > max(0.1, 0.05 * best) and falls and gap > 0:
        yield warned(
            "schedule", f"overfitting: the validation loss rises from {best:.3f} at step {best_step} to {last:.3f}, "
                        f"and "
            f"the training loss falls; use the best checkpoint, and fewer steps, more text or dropout (gap {gap:.2f})",
            **evidence,
        )  # fmt: skip
    else:
        note = f"; it is {rise:.3f} above its best" if rise > 0.01 else ""
        yield passed(f"the validation loss ends at {last:.3f}, {gap:+.2f} from the training loss{note}", **evidence)


def check_validation(history: History) -> Iterator[Result]:
    """The validation loss is not too good to be true."""
    val, train = history.series("val/loss"), history.series("train/loss")
    if not val or not train:
        raise NotRun("no validation loss is recorded, or no training loss")
    tail = val[-max(1, len(val) // 3) :]
    gaps = [_near(train, step) - loss for step, loss in tail]
    gap, last = statistics.median(gaps), tail[-1][1]
    near = _near(train, tail[-1][0])
    bigram = history.first("baseline/bigram")
    early = [loss for step, loss in val if step and step <= 0.1 * val[-1][0]]
    evidence: dict[str, Any] = {"validation": last, "training": near, "gap": gap, "bigram": bigram}
    if gap > max(0.3, 0.25 * near) and near > 0:
        yield failed(
            "data leak", f"the validation loss is {last:.3f} where the training loss is {near:.3f}: dropout explains "
            "0.1 or 0.2, not this; is validation text in the training text, or validation computed "
            "otherwise?", **evidence,
        )  # fmt: skip
    elif bigram is not None and bigram > 0.5 and min(loss for _, loss in val) < 0.05 * bigram:
        yield failed(
            "data leak", f"the validation loss is {last:.4f}, where counting pairs of tokens gives {bigram:.3f}: no "
                         f"text "
            "is so easy, unless the model sees the answer or has been trained on it", **evidence,
        )  # fmt: skip
    elif bigram is not None and not history.trained_before and early and min(early) < 0.5 * bigram and len(val) > 5:
        yield warned(
            "data leak", f"the validation loss is {min(early):.3f} in the first tenth of the run, half of what "
                         f"counting "
            f"pairs gives ({bigram:.3f})", **evidence,
        )  # fmt: skip
    elif bigram is None and last < 0.02 and near > 0:
        yield warned(
            "data leak", f"the validation loss is {last:.4f}: the text is in the training text, or trivial", **evidence
        )
    else:
        yield passed(f"validation {last:.3f}, training {near:.3f} near it", **evidence)


def check_start(history: History) -> Iterator[Result]:
    """The first loss is that of a uniform guess."""
    uniform = history.first("baseline/uniform")
    if uniform is None:
        raise NotRun("ln V is not recorded (baseline/uniform)")
    if history.trained_before:
        raise NotRun("the run began with a trained model")
    start = next((v for key in ("val/loss", "train/loss") for step, v in history.series(key) if step <= 1), None)
    if start is None:
        raise NotRun("no loss is recorded before step 2")
    evidence: dict[str, Any] = {"first": start, "uniform": uniform}
    if start > 1.2 * uniform:
        yield failed(
            "init",
            f"the first loss is {start:.3f}, and a uniform guess has {uniform:.3f}: initial weights are too large",
            **evidence,
        )
    elif start < 0.9 * uniform and history.trained_before is False:
        yield failed(
            "leak",
            f"the first loss is {start:.3f}, below a uniform guess ({uniform:.3f}): the targets reach the inputs",
            **evidence,
        )
    else:
        yield passed(f"the first loss is {start:.3f}, a uniform guess has {uniform:.3f}", **evidence)


def check_speed(history: History) -> Iterator[Result]:
    """The device does not wait for data, and the speed does not fall."""
    waits = [value for _, value in history.series("perf/data_time_frac")][1:]
    speeds = [value for _, value in history.series("perf/tok_per_s")][1:]
    if not waits and not speeds:
        raise NotRun("neither waiting for data nor speed is recorded")
    wait = statistics.median(waits) if waits else 0.0
    third = len(speeds) // 3
    ratio = statistics.median(speeds[-third:]) / statistics.median(speeds[:third]) if third >= 3 else 1.0
    evidence: dict[str, Any] = {"waiting": wait, "last third over first third": ratio}
    if wait > 0.4:
        yield warned(
            "device",
            f"{wait:.0%} of a step is spent waiting for data: the input is too slow (num_workers, a faster disk)",
            **evidence,
        )
        return
    note = (
        f"; the speed fell to {ratio:.0%} of its beginning (a hot machine, other programs, or a growing list)"
        if ratio < 0.6
        else ""
    )
    yield passed(f"{wait:.1%} of a step is spent waiting for data{note}", **evidence)


def _losses(history: History) -> list[float]:
    losses = [value for _, value in history.series("train/loss")]
    if len(losses) < _MIN_POINTS:
        raise NotRun(f"{len(losses)} training losses are recorded; {_MIN_POINTS} are needed")
    return losses


def _noise(losses: Sequence[float]) -> float:
    """The robust standard deviation of a step's loss, by the differences of neighbours, whose trend cancels."""
    if len(losses) < 3:
        return 0.0
    differences = [b - a for a, b in itertools.pairwise(losses)]
    middle = statistics.median(differences)
    return _MAD * statistics.median(abs(value - middle) for value in differences) / math.sqrt(2)


def _near(series: Sequence[tuple[int, float]], step: int) -> float:
    """The median of the seven values nearest to a step; NaN if there are none."""
    nearest = sorted(series, key=lambda point: abs(point[0] - step))[:7]
    return statistics.median(value for _, value in nearest) if nearest else math.nan


_COST = "one look at each row"
HISTORY_CHECKS: tuple[Check[History], ...] = (
    Check("finite losses", "Looks for losses and gradient norms that are not finite.", _COST,
          "no loss; gradient norms in less than 5 % of the steps, as float16 training skips "
          "some", ("non-finite",), check_finite),
    Check("first loss", "Compares the first loss with that of a uniform guess, ln V.", _COST,
          "within -10 % and +20 %: the measured initial losses of sound models are within 5 "
          "%", ("init", "leak"), check_start),
    Check("loss moves", "Looks whether the training loss leaves its first value.", _COST,
          "2 % of ln V: the frequencies of tokens alone, learned in some tens of steps, give 15 % and more",
          ("no update",), check_updates),
    Check("loss spikes", "Compares each training loss with the median of the 20 before it.", _COST,
          f"{_SPIKE_SIGMAS} robust standard deviations and {_SPIKE_NATS} nats: a hard batch is far below both",
          ("schedule",), check_spikes),
    Check("learning rate", "Looks whether the smoothed training loss rises or swings where the rate is high.", _COST,
          "a rise of 0.2 nats, 5 % and six standard errors above the best of many "
          "windows", ("schedule", "clipping"), check_rate),
    Check("overfitting", "Compares the last validation loss with the best one.", _COST,
          "a rise of 0.1 nats and 5 % while the training loss falls; less is normal at the end of a run", ("schedule",),
          check_overfitting),
    Check("validation too good", "Compares the validation loss with the training loss and with counting pairs.", _COST,
          "0.3 nats and 25 % below the training loss; dropout of 0.2 explains about 0.1", ("data "
              "leak",), check_validation),
    Check("input speed", "Looks at the share of a step that waits for data, and at the speed.", _COST,
          "40 %: a sound loader takes under 5 %", ("device",), check_speed),
)  # fmt: skip

__all__ = ["HISTORY_CHECKS", "History", "load_history"]
