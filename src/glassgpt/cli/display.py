"""What training looks like: a live panel in a terminal, plain lines elsewhere."""

import sys
import time

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from glassgpt.loss import Baselines
from glassgpt.shapes import Shape
from glassgpt.training.metrics import EvaluationEvent, Reporter, StepEvent


def make_reporter(quiet: bool = False) -> Reporter:
    """The live display if standard output is a terminal, plain lines if not, nothing if quiet."""
    if quiet:
        return Reporter()
    console = Console()
    return LiveReporter(console) if console.is_terminal else PlainReporter()


class PlainReporter(Reporter):
    """Plain lines, about twenty for the steps of a run besides its validations."""

    def __init__(self) -> None:
        self._floors: Baselines | None = None
        self._preparing = ("", 0.0, 0.0)  # what, since when, when it was last told

    def started(self, header: dict[str, str], shapes: list[Shape], baselines: Baselines, steps: int, step: int) -> None:
        """Print the machine, the shapes of the first batch, and the baselines."""
        self._floors = baselines
        self._print(", ".join(f"{name} {value}" for name, value in header.items()))
        if step == 0:
            self._print("shapes of the first batch:")
            for shape in shapes:
                self._print(f"  {shape}")
        else:
            self._print(f"going on from step {step:,} of {steps:,}")
        self._print(
            f"losses to hold it against, in nats per token: {baselines.uniform:.3f} ln V (knows nothing), "
            f"{baselines.unigram:.3f} knows the frequencies, {baselines.bigram:.3f} knows the previous token"
        )

    def note(self, message: str) -> None:
        """Print it."""
        self._print(message)

    def preparing(self, what: str, done: int, total: int) -> None:
        """Print it every two seconds, with the time left."""
        now = time.monotonic()
        if self._preparing[0] != what:
            self._preparing = (what, now, now)
        _, began, told = self._preparing
        if now - told >= 2 and done:
            left = f" of {total:,}, {duration((now - began) * (total - done) / done)} left" if total else ""
            self._print(f"{what}: {done:,}{left}")
            self._preparing = (what, began, now)

    def warn(self, message: str) -> None:
        """Print it as a warning, on standard error."""
        print(f"warning: {message}", file=sys.stderr, flush=True)

    def stepped(self, event: StepEvent) -> None:
        """Print one step in twenty."""
        if event.step % max(1, event.steps // 20) == 0:
            self._print(
                f"step {event.step:,}/{event.steps:,}  loss {event.loss:.3f}  {event.tokens_per_second:,.0f} tokens/s  "
                f"{duration(event.seconds_left)} left"
            )

    def evaluated(self, event: EvaluationEvent) -> None:
        """Print the validation loss and where it stands."""
        best = " (best so far)" if event.is_best else ""
        standing = f"  {standing_of(event.evaluation.loss, self._floors)}" if self._floors else ""
        loss, bits = event.evaluation.loss, event.bits_per_byte
        recipe = f"  {against_band(loss, event.expected)}" if event.expected else ""
        unit = f"  {bits:.3f} bits/byte" if bits is not None else ""
        self._print(f"step {event.step:,}  validation {loss:.4f}{unit}{best}{recipe}{standing}")

    def sampled(self, step: int, text: str) -> None:
        """Print it, indented."""
        lines = "\n".join(f"  | {line}" for line in text.strip().splitlines())
        self._print(f"a sample at step {step:,}:\n{lines}")

    def _print(self, text: str) -> None:
        print(text, flush=True)


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

    def started(self, header: dict[str, str], shapes: list[Shape], baselines: Baselines, steps: int, step: int) -> None:
        """Print what stays, then open the panel."""
        super().started(header, shapes, baselines, steps, step)
        self.live.start()

    def stepped(self, event: StepEvent) -> None:
        """Show the step; the speed is smoothed over about ten steps."""
        self._speed = 0.9 * self._speed + 0.1 * event.tokens_per_second if self._speed else event.tokens_per_second
        self.event = event

    def evaluated(self, event: EvaluationEvent) -> None:
        """Show the validation loss; print it too, so that the history stays readable."""
        self.validation = event
        super().evaluated(event)

    def sampled(self, step: int, text: str) -> None:
        """Show the sample."""
        self.sample = (step, text.strip())

    def warn(self, message: str) -> None:
        """Print it above the panel."""
        self.console.print(Text(f"warning: {message}", style="yellow"))

    def finished(self) -> None:
        """Close the panel."""
        self.live.stop()

    def _print(self, text: str) -> None:
        self.console.print(Text(text))

    def _render(self) -> Table:
        """The panel: the newest sample, the bar, the step, the validation."""
        panel = Table.grid()
        if self.sample is not None:
            step, text = self.sample
            panel.add_row(Text(f"it writes, at step {step:,}:", style="dim"))
            panel.add_row(Text("\n".join(text.splitlines()[:8]), style="cyan"))
        if self.event is not None:
            event = self.event
            panel.add_row(ProgressBar(total=event.steps, completed=event.step, width=60))
            speed, left = f"{self._speed:,.0f} tokens/s", f"{duration(event.seconds_left)} left"
            panel.add_row(f"step {event.step:,}/{event.steps:,}   training loss {event.loss:.3f}   {speed}   {left}")
        if self.validation is not None and self._floors is not None:
            loss = self.validation.evaluation.loss
            panel.add_row(f"validation {loss:.4f} at step {self.validation.step:,}: {standing_of(loss, self._floors)}")
        return panel


def standing_of(loss: float, baselines: Baselines) -> str:
    """Where a validation loss stands among the baselines, in words."""
    if loss < baselines.bigram:
        return f"below {baselines.bigram:.3f}: it uses more than the previous token"
    if loss < baselines.unigram:
        return f"below {baselines.unigram:.3f}: it knows the frequencies; {baselines.bigram:.3f} is next"
    if loss < baselines.uniform:
        return f"below ln V; {baselines.unigram:.3f} is next"
    return "at or above ln V: it knows nothing yet"


def against_band(loss: float, band: tuple[float, float]) -> str:
    """Whether a validation loss is what the recipe gave where it was measured, in words."""
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
