"""Watch a training run: one line for each event that usually means trouble. Nothing that is computed changes.

A :class:`Watcher` stands between the loop and its reporter, and sees the numbers of every step. Now and then it sends
a few rows through the model, in eval mode and without gradients, to look inside; that takes 1 % of the time at most.
"""

import math
import statistics
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from glassgpt import recording
from glassgpt.doctor.before_training import require_healthy
from glassgpt.doctor.report import Outcome
from glassgpt.loss import Baselines
from glassgpt.model import GPT
from glassgpt.shapes import Shape
from glassgpt.training.loop import Trainer
from glassgpt.training.metrics import EvaluationEvent, Reporter, StepEvent
from glassgpt.transforms.parallel import is_sharded

#: Steps in which a kind of event is shown once.
QUIET = 100
#: Steps that a new value is compared with, and how many are needed.
WINDOW, NEEDED = 50, 20
#: The first steps, and how far the median loss may rise above theirs; batches of a right run differ by less.
FIRST, RISEN = 5, 1.2
#: The share of the time that looking inside may take, and the fewest steps between two looks.
LOOK_SHARE, LOOK_INTERVAL = 0.01, 10
#: Tokens that are sent through the model at a look, at most.
LOOK_TOKENS = 512
#: A logit above this is far beyond what a softmax needs (e^100), and bfloat16 rounds it to halves.
LARGE_LOGIT = 100.0
#: Mean entropy of attention, as a share of that of equal weights, at which a head looks at one token only.
COLLAPSED = 0.02
#: Share of a layer's hidden units that are zero for every token.
DEAD_SHARE = 0.5


@dataclass(frozen=True)
class Event:
    """Something that was noticed: at which step, of which kind, and the line that says it."""

    step: int
    kind: str
    message: str


@dataclass
class Look:
    """What one look inside a model found: the first tensor that is not finite, and sizes."""

    nonfinite: str = ""
    largest_logit: float = 0.0
    dead: dict[int, float] = field(default_factory=dict)  # by layer: the share of hidden units that are always zero
    entropy: dict[int, float] = field(default_factory=dict)  # by layer: of its most spread head, 0 to 1


def look_inside(model: GPT, idx: Tensor) -> Look:
    """Send ``idx [B, T]`` through the model, and measure. Its mode, weights and random state stay as they are."""
    look = Look()

    def see(name: str, layer: int | None, tensor: Tensor) -> None:
        if not look.nonfinite and tensor.is_floating_point() and "scores" not in name and not tensor.isfinite().all():
            look.nonfinite = name if layer is None else f"{name} of block {layer}"
        if name == "hidden" and layer is not None:
            look.dead[layer] = float((tensor.flatten(0, -2) == 0).all(dim=0).float().mean())
        if name == "attention weights" and layer is not None and tensor.size(-1) > 1:
            look.entropy[layer] = _largest_entropy(tensor.float())
        if name == "logits":
            look.largest_logit = float(tensor.abs().max())

    with (
        torch.no_grad(), torch.compiler.set_stance("force_eager"), recording.evaluation_mode(model),
        recording.watch(model, see),
    ):  # fmt: skip
        model(idx)
    return look


def _largest_entropy(weights: Tensor) -> float:
    """The mean entropy of the head with the largest one, as a share of ln(keys); of weights ``[B, H, T, S]``."""
    entropy = torch.special.entr(weights).sum(dim=-1)  # [B, H, T]
    keys = (weights > 0).sum(dim=-1).clamp(min=2)
    return float((entropy / keys.log())[:, :, 1:].mean(dim=(0, 2)).max())


class Watcher(Reporter):
    """Passes every event of training on, and adds warnings and a summary.

    Args:
        reporter: that shows them.

    Attributes:
        outcomes: of the checks before the first step.
        events: what was shown, oldest first.
        counts: how often something was noticed, by kind, shown or not.
    """

    def __init__(self, reporter: Reporter):
        self.reporter = reporter
        self.outcomes: list[Outcome] = []
        self.events: list[Event] = []
        self.counts: Counter[str] = Counter()
        self._shown: dict[str, int] = {}
        self._first_losses = list[float]()
        self._losses, self._norms = deque[float](maxlen=WINDOW), deque[float](maxlen=WINDOW)
        self._speeds, self._first_speeds = deque[float](maxlen=NEEDED), list[float]()
        self._best_validation = math.inf
        self._model: GPT | None = None
        self._rows: Tensor | None = None
        self._began, self._spent, self._last_look, self._look_seconds = time.perf_counter(), 0.0, 0, 0.0

    def examine(self, trainer: Trainer) -> None:
        """Examine a trainer that this watches, before its first step; then be ready to look inside its model.

        Raises:
            TrainingStopped: if a check fails.
        """
        self.outcomes = require_healthy(trainer)
        self.look_into(trainer.model, trainer.task.batch(trainer.state.step).idx)

    def look_into(self, model: GPT, idx: Tensor) -> None:
        """Look inside this model from now on, with the first of these rows ``[B, T]``; see how long a look takes."""
        if is_sharded(model):  # its passes need all processes
            return
        rows = max(1, LOOK_TOKENS // idx.size(1))
        self._model, self._rows = model, idx[:rows, :LOOK_TOKENS].to(model.device)
        for _ in range(2):  # the first one is slow
            began = time.perf_counter()
            look_inside(self._model, self._rows)
            self._look_seconds = time.perf_counter() - began

    def on_start(
        self, header: dict[str, str], shapes: list[Shape], baselines: Baselines | None, steps: int, step: int
    ) -> None:
        """Pass it on."""
        self._began = time.perf_counter()
        self.reporter.on_start(header, shapes, baselines, steps, step)

    def note(self, message: str) -> None:
        """Pass it on."""
        self.reporter.note(message)

    def on_progress(self, label: str, done: int, total: int) -> None:
        """Pass it on."""
        self.reporter.on_progress(label, done, total)

    def warn(self, message: str) -> None:
        """Pass it on."""
        self.reporter.warn(message)

    def on_sample(self, step: int, text: str) -> None:
        """Pass it on."""
        self.reporter.on_sample(step, text)

    def on_step(self, event: StepEvent) -> None:
        """Compare the step with those before it, and look inside if it is time, or if the numbers are not finite."""
        self.reporter.on_step(event)
        finite = math.isfinite(event.loss) and math.isfinite(event.grad_norm)
        if finite:
            self._compare(event)
        self._compare_speed(event)
        now = time.perf_counter()
        affordable = self._spent + self._look_seconds <= LOOK_SHARE * (now - self._began)
        due = affordable and event.step - self._last_look >= LOOK_INTERVAL
        if self._model is not None and (due or not finite):
            self._look(event.step, finite)
            self._look_seconds = time.perf_counter() - now
            self._spent += self._look_seconds

    def on_eval(self, event: EvaluationEvent) -> None:
        """Compare the validation loss with the training loss."""
        self.reporter.on_eval(event)
        loss = event.evaluation.loss
        if len(self._losses) >= NEEDED:
            training = statistics.fmean(self._losses)
            if loss > self._best_validation * 1.05 and loss - training > 0.1 * loss:
                self._add(
                    event.step, "overfitting",
                    f"the validation loss is {loss:.3f}, above its best of {self._best_validation:.3f}; the training "
                    f"loss is {training:.3f}. Stop here, or use more text or dropout",
                )  # fmt: skip
        self._best_validation = min(self._best_validation, loss)

    def on_end(self) -> None:
        """Show the summary."""
        listed = ", ".join(f"{kind} ({count:,} times)" if count > 1 else kind for kind, count in self.counts.items())
        self.reporter.note(f"doctor: {listed or 'nothing was noticed during training'}")
        self.reporter.on_end()

    def as_json(self) -> dict[str, Any]:
        """What was found before and during training."""
        return {
            "checks": [outcome.as_json() for outcome in self.outcomes],
            "events": [asdict(event) for event in self.events],
        }

    def _compare(self, event: StepEvent) -> None:
        """Loss and gradient norm against the steps before; a spike is not compared with later ones."""
        if len(self._losses) >= NEEDED:
            middle, spread = _middle_and_spread(self._losses)
            # Eight deviations: batches of a right run stay within five. A tenth of the loss: small batches are noisy.
            if event.loss > middle + max(8 * spread, 0.1 * middle):
                self._add(
                    event.step, "loss spike",
                    f"the loss is {event.loss:.3f}, after {middle:.3f} ± {spread:.3f}. "
                    "Look at the batch; try a lower learning rate, or a smaller grad_clip",
                )  # fmt: skip
            norm, _ = _middle_and_spread(self._norms)
            if event.grad_norm > 10 * norm:
                self._add(
                    event.step, "gradient spike",
                    f"the norm of the gradient is {event.grad_norm:.3g}, after {norm:.3g}. "
                    "Clip it (grad_clip=1), or look at the batch",
                )  # fmt: skip
            first = statistics.median(self._first_losses)
            if middle > RISEN * first:
                text = f"the loss is {middle:.3f}, above its first value of {first:.3f}: lower the learning rate"
                self._add(event.step, "loss rises", text)
        if len(self._first_losses) < FIRST:
            self._first_losses.append(event.loss)
        self._losses.append(event.loss)
        self._norms.append(event.grad_norm)

    def _compare_speed(self, event: StepEvent) -> None:
        """The median speed of the newest steps against that of the first ones, which may have compiled."""
        self._speeds.append(event.tokens_per_second)
        if len(self._first_speeds) < 2 * NEEDED:
            self._first_speeds.append(event.tokens_per_second)
            return
        if event.step % LOOK_INTERVAL:
            return
        first, now = statistics.median(self._first_speeds), statistics.median(self._speeds)
        if now < 0.6 * first:
            self._add(
                event.step, "slower",
                f"{now:,.0f} tokens/s, after {first:,.0f}. Look for other programs, heat, or memory that runs out",
            )  # fmt: skip

    def _look(self, step: int, finite: bool) -> None:
        assert self._model is not None and self._rows is not None
        self._last_look = step
        look = look_inside(self._model, self._rows)
        if look.nonfinite:
            self._add(step, "non-finite", f"the first tensor that is not finite is {look.nonfinite}")
            return
        if not finite:
            self._add(step, "non-finite", "the forward pass of the first rows is finite: it is this batch, or backward")
        if look.largest_logit > LARGE_LOGIT:
            text = f"a logit of {look.largest_logit:.0f}; lower the learning rate, or use a norm before the head"
            self._add(step, "large logits", text)
        for layer, share in look.dead.items():
            if share > DEAD_SHARE:
                self._add(
                    step, "dead units", f"{share:.0%} of the hidden units of block {layer} are zero for all tokens"
                )
        for layer, entropy in look.entropy.items():
            if entropy < COLLAPSED:
                text = f"every head of block {layer} looks at one token only (entropy {entropy:.3f} of 1)"
                self._add(step, "attention collapse", text)

    def _add(self, step: int, kind: str, message: str) -> None:
        """Count an event; show it unless one of its kind was shown in the last steps."""
        self.counts[kind] += 1
        if step - self._shown.get(kind, -QUIET) >= QUIET:
            self._shown[kind] = step
            self.events.append(Event(step, kind, message))
            self.reporter.warn(f"doctor, step {step:,}: {kind}: {message}")


def _middle_and_spread(values: deque[float]) -> tuple[float, float]:
    """The median, and the standard deviation that the median distance from it means for normal numbers."""
    middle = statistics.median(values)
    return middle, 1.4826 * statistics.median(abs(value - middle) for value in values)
