"""How training is displayed: a live panel in a terminal, plain lines elsewhere."""

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from glassgpt.cli.printing.output import discard_unread_output
from glassgpt.loss import Baselines
from glassgpt.shapes import Shape
from glassgpt.training.metrics import EvaluationEvent, Reporter, StepEvent


def make_reporter(quiet: bool = False) -> Reporter:
    """The live display if standard output is a terminal, plain lines if not, a silent one if quiet."""
    if quiet:
        return Reporter()
    console = Console()
    return LiveReporter(console) if console.is_terminal else PlainReporter()


class PlainReporter(Reporter):
    """Plain lines, about twenty for the steps of a run besides its validations."""

    def __init__(self) -> None:
        self._baselines: Baselines | None = None
        self._progress = ("", 0.0, 0.0)  # label, when it began, when it was last printed

    def on_start(
        self, header: dict[str, str], shapes: list[Shape], baselines: Baselines | None, steps: int, step: int
    ) -> None:
        """Print the machine, the shapes of the first batch, and the baselines."""
        self._baselines = baselines
        self._print(", ".join(f"{name} {value}" for name, value in header.items()))
        if step == 0:
            self._print("shapes of the first batch:")
            for shape in shapes:
                self._print(f"  {shape}")
        else:
            self._print(f"resuming at step {step:,} of {steps:,}")
        if baselines is not None:
            self._print(
                f"baseline losses (nats/token): uniform (ln V) {baselines.uniform:.3f}, "
                f"unigram {baselines.unigram:.3f}, bigram {baselines.bigram:.3f}"
            )

    def note(self, message: str) -> None:
        """Print it."""
        self._print(message)

    def on_progress(self, label: str, done: int, total: int) -> None:
        """Print it every two seconds, with the time left."""
        now = time.monotonic()
        if self._progress[0] != label:
            self._progress = (label, now, now)
        _, began, printed = self._progress
        if now - printed >= 2 and done:
            left = f" of {total:,}, {duration((now - began) * (total - done) / done)} left" if total else ""
            self._print(f"{label}: {done:,}{left}")
            self._progress = (label, began, now)

    def warn(self, message: str) -> None:
        """Print it as a warning, on standard error."""
        self._print(f"warning: {message}", sys.stderr)

    def on_step(self, event: StepEvent) -> None:
        """Print one step in twenty."""
        if event.step % max(1, event.steps // 20) == 0:
            self._print(
                f"step {event.step:,}/{event.steps:,}  loss {event.loss:.3f}  {learning_rates(event)}  "
                f"{event.tokens_per_second:,.0f} tokens/s  {duration(event.seconds_left)} left"
            )

    def on_eval(self, event: EvaluationEvent) -> None:
        """Print the validation loss, and compare it with the baselines."""
        loss, bits, ema_loss = event.evaluation.loss, event.evaluation.bits_per_byte, event.ema_loss
        best = " (best so far)" if event.is_best else ""
        comparison = f"  {compare_with_baselines(loss, self._baselines)}" if self._baselines else ""
        recipe = f"  {compare_with_recipe(loss, event.expected)}" if event.expected else ""
        losses = f"validation {loss:.4f}" + (f"  {bits:.3f} bits/byte" if bits is not None else "")
        if ema_loss is None:
            losses += best
        else:
            losses += f"  EMA {ema_loss:.4f}{best}" if ema_loss < loss else f"{best}  EMA {ema_loss:.4f}"
        self._print(f"step {event.step:,}  {losses}{recipe}{comparison}")

    def on_sample(self, step: int, text: str) -> None:
        """Print it, indented."""
        lines = "\n".join(f"  | {line}" for line in text.strip().splitlines())
        self._print(f"a sample at step {step:,}:\n{lines}")

    def _print(self, text: str, file: TextIO | None = None) -> None:
        try:
            print(text, file=file, flush=True)
        except OSError:  # its reader has ended (`| head`), or its disk is full; training is worth more than its log
            discard_unread_output()


class LiveReporter(PlainReporter):
    """The same, with a bar, the losses and the newest sample kept in view."""

    def __init__(self, console: Console):
        super().__init__()
        self.console = console
        self.event: StepEvent | None = None
        self.validation: EvaluationEvent | None = None
        self.sample: tuple[int, str] | None = None
        self._speed = 0.0
        self.live = Live(console=console, refresh_per_second=4, get_renderable=self._render)  # renders at once

    def on_start(
        self, header: dict[str, str], shapes: list[Shape], baselines: Baselines | None, steps: int, step: int
    ) -> None:
        """Print the start, then open the panel."""
        super().on_start(header, shapes, baselines, steps, step)
        self.live.start()

    def on_step(self, event: StepEvent) -> None:
        """Show the step; the speed is smoothed over about ten steps."""
        self._speed = 0.9 * self._speed + 0.1 * event.tokens_per_second if self._speed else event.tokens_per_second
        self.event = event

    def on_eval(self, event: EvaluationEvent) -> None:
        """Show the validation loss; print it too, so that the history stays readable."""
        self.validation = event
        super().on_eval(event)

    def on_sample(self, step: int, text: str) -> None:
        """Show the sample."""
        self.sample = (step, text.strip())

    def warn(self, message: str) -> None:
        """Print it above the panel."""
        self.console.print(Text(f"warning: {message}", style="yellow"))

    def on_end(self) -> None:
        """Close the panel."""
        self.live.stop()

    def _print(self, text: str, file: TextIO | None = None) -> None:
        self.console.print(Text(text))

    def _render(self) -> Table:
        """The panel: the newest sample, the bar, the step, the validation."""
        panel = Table.grid()
        if self.sample is not None:
            step, text = self.sample
            panel.add_row(Text(f"sample at step {step:,}:", style="dim"))
            panel.add_row(Text("\n".join(text.splitlines()[:8]), style="cyan"))
        if self.event is not None:
            event = self.event
            panel.add_row(ProgressBar(total=event.steps, completed=event.step, width=60))
            speed, left = f"{self._speed:,.0f} tokens/s", f"{duration(event.seconds_left)} left"
            panel.add_row(f"step {event.step:,}/{event.steps:,}   training loss {event.loss:.3f}   {speed}   {left}")
            panel.add_row(learning_rates(event))
        if self.validation is not None:
            loss, ema_loss = self.validation.evaluation.loss, self.validation.ema_loss
            average = "" if ema_loss is None else f", EMA {ema_loss:.4f}"
            comparison = f": {compare_with_baselines(loss, self._baselines)}" if self._baselines else ""
            panel.add_row(f"validation {loss:.4f}{average} at step {self.validation.step:,}{comparison}")
        return panel


def learning_rates(event: StepEvent) -> str:
    """``lr adamw 5.0e-03, muon 1.5e-02``."""
    return "lr " + ", ".join(f"{name} {rate:.1e}" for name, rate in event.learning_rates.items())


def compare_with_baselines(loss: float, baselines: Baselines) -> str:
    """The best baseline that a validation loss is below, and the next one."""
    if loss < baselines.bigram:
        return f"better than the bigram baseline {baselines.bigram:.3f}"
    if loss < baselines.unigram:
        return f"better than the unigram baseline; next: bigram {baselines.bigram:.3f}"
    if loss < baselines.uniform:
        return f"better than the uniform baseline; next: unigram {baselines.unigram:.3f}"
    return "not better than the uniform baseline (ln V)"


def compare_with_recipe(loss: float, band: tuple[float, float]) -> str:
    """Whether a validation loss lies in the band that the recipe was measured to have."""
    low, high = band
    place = (
        "as expected" if low <= loss <= high else "ABOVE what is expected" if loss > high else "better than expected"
    )
    return f"{place} ({low:.3f} to {high:.3f})"


def duration(seconds: float) -> str:
    """Seconds as ``1h02m``, ``3m05s`` or ``42s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
