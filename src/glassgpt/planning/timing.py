"""Time real training steps on this machine: how fast a configuration trains, and whether compiling makes it faster."""

import math
import time
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch

from glassgpt.config import RunConfig
from glassgpt.data.batch import Batch, random_batch
from glassgpt.errors import first_line
from glassgpt.estimate import TOKENS_PER_PASS, flops_per_token, optimizer_flops
from glassgpt.model import GPT
from glassgpt.planning.compute_dtype import matrix_flops_per_second
from glassgpt.planning.measured import Measurements
from glassgpt.runtime import Runtime, Stopwatch, compiler_found, is_steady
from glassgpt.training import guard
from glassgpt.training.graphs import with_graphs
from glassgpt.training.metrics import Reporter
from glassgpt.training.objective import ModelWithLoss, answer_loss, next_token_loss
from glassgpt.training.optim import ITERATIONS, Optimizers
from glassgpt.training.precision import LossScale, MasterWeights
from glassgpt.training.step import train_step
from glassgpt.transforms.blocks import prepare_blocks
from glassgpt.transforms.lora import add_lora

#: Share of a time budget that is planned for; the rest is for a machine that slows down.
TIME_BUDGET_FRACTION = 0.75
#: Seconds that compiling the blocks takes about, for the first time on a machine, on a CPU and on a GPU.
COMPILE_SECONDS = (25.0, 10.0)
#: A try at compiling may cost this share of a run, for nobody knows whether it pays.
COMPILE_TRY_SHARE = 0.1
#: Compiling the same again takes this share, and at least so many seconds: torch keeps the code on disk.
COMPILE_AGAIN_SHARE, COMPILE_AGAIN_SECONDS = 0.25, 3.0
#: Compiled steps have to be this much faster.
COMPILE_MIN_SPEEDUP = 1.03
#: Passes that are estimated to take longer, in seconds, are timed on fewer rows, then on fewer layers.
LONGEST_PASS = 5.0
#: Tokens in a pass that are enough to time it, and the depths from which deeper models are extrapolated.
MIN_TOKENS = 2048
DEPTHS = (1, 3)
#: Share of the peak learning rates: random tokens teach nothing, and the weights should stay ordinary.
UPDATE_SCALE = 1e-3


@dataclass(frozen=True)
class Timing:
    """Measured seconds: of an optimiser step, and of the forward pass of one token in validation.

    ``steady`` says whether repeated timings agreed. ``compile_seconds`` is what compiling took before.
    ``update_share`` is the share of a step that clipping and the optimiser take.
    """

    seconds_per_step: float
    seconds_per_val_token: float
    steady: bool = True
    compile_seconds: float = 0.0
    update_share: float = 0.0


@dataclass(frozen=True)
class StepTimes:
    """Seconds of the parts of one step."""

    forward: float
    backward: float
    update: float


class TimedTraining:
    """A fresh model and its optimisers, which take real training steps on random tokens, and time their parts.

    Args:
        config: of the run; only ``model``, ``train``, ``optim`` and ``tune`` count.
        runtime: where to compute.
        rows: in the batch of a step.
        micro_batch_size: rows per forward pass.
        batch: the rows to train on; random tokens by default.
    """

    def __init__(
        self, config: RunConfig, runtime: Runtime, rows: int, micro_batch_size: int, batch: Batch | None = None
    ):
        self.train, self.runtime, self.micro_batch_size = config.train, runtime, micro_batch_size
        self.model = GPT(config.model)
        self.model.init_weights(0)
        self.model = self.model.to(runtime.device).train()
        if config.tune.method == "lora":
            add_lora(self.model, config.tune, 0)
        self.optimizers = Optimizers(self.model, config.optim, MasterWeights(self.model, runtime.dtype))
        self.loss = next_token_loss if config.tune.method == "none" else answer_loss
        # Lower than in training: a step that overflows is skipped, and would be timed as one.
        self.loss_scale = LossScale.for_dtype(runtime.dtype, 2.0**10)
        prepare_blocks(self.model, config.train.activation_checkpointing, runtime.compile, runtime.attention)
        loss_module = ModelWithLoss(self.model, self.loss)
        self.loss_module = with_graphs(loss_module, config, runtime, lambda _: None)
        self.batch = batch or random_batch(config.model.vocab_size, rows, config.model.block_size)

    def step(self) -> StepTimes:
        """Take one step."""
        watch = Stopwatch(self.runtime.device)
        watch.mark()
        train_step(
            self.loss_module, self.optimizers, self.batch, self.batch.num_loss_tokens(),
            micro_batch_size=self.micro_batch_size, lr_multiplier=UPDATE_SCALE, grad_clip=self.train.grad_clip,
            device=self.runtime.device, loss_scale=self.loss_scale, mark=watch.mark,
        )  # fmt: skip
        self.optimizers.zero_grad()
        *passes, update = watch.laps()
        return StepTimes(sum(passes[::2]), sum(passes[1::2]), update)

    def forward(self) -> float:
        """Seconds of a forward pass of one micro-batch, as in validation."""
        micro_batch = self.batch.micro_batch(0, self.micro_batch_size, self.runtime.device)
        watch = Stopwatch(self.runtime.device)
        watch.mark()
        with torch.no_grad(), self.runtime.eager():
            self.loss(self.model, micro_batch)
        watch.mark()
        return watch.laps()[0]


def measure_steps(
    config: RunConfig, runtime: Runtime, seconds: float = 0.5, *, world_size: int = 1, batch: Batch | None = None
) -> Timing:
    """Time real optimiser steps for about so many seconds; three at least, unless they are slow.

    Where they disagree, because the machine is busy, up to eight times as long.
    Large batches are timed on one micro-batch of at most 8,192 tokens and scaled; several processes share a batch.
    Compiling is not part of the step. A ``batch`` is timed instead of random tokens, as the part of a batch that it is.
    """
    rows, share = _timed_rows(config, runtime, world_size, batch), math.ceil(config.train.batch_size / world_size)
    began = time.perf_counter()
    timed = TimedTraining(config, runtime, rows, rows, batch)
    timed.step()  # pays for allocations, and compiles
    compile_seconds = time.perf_counter() - began if runtime.compile else 0.0
    steps: list[StepTimes] = []
    began = time.perf_counter()
    while True:
        steps.append(timed.step())
        gradients = [step.forward + step.backward for step in steps]
        spent, steady = time.perf_counter() - began, is_steady(gradients)
        if spent > seconds and (steady or spent > 8 * seconds):
            break
    update = median(step.update for step in steps)
    step = median(gradients) * share / rows + update
    forward = min(timed.forward() for _ in range(2)) / timed.batch.idx.numel()
    return Timing(step, forward, steady, compile_seconds, update / step)


def _timed_rows(config: RunConfig, runtime: Runtime, world_size: int, batch: Batch | None) -> int:
    """Rows of the micro-batch to time."""
    if batch:
        return len(batch.idx)
    share = math.ceil(config.train.batch_size / world_size)
    rows = min(config.train.micro_batch_size or share, share)
    if runtime.compile:  # what is compiled here should serve the run, too
        return rows
    return min(rows, max(1, TOKENS_PER_PASS // config.model.block_size))


def timing_of(
    config: RunConfig,
    runtime: Runtime,
    measurements: Measurements,
    seconds: float = 0.5,
    *,
    world_size: int = 1,
    batch: Batch | None = None,
) -> Timing:
    """As :func:`measure_steps`, unless it has been measured before."""
    conditions = _conditions(config, runtime, world_size, batch)
    named = {"batch": batch} if batch else {}
    return measurements.get(
        Timing, conditions, lambda: measure_steps(config, runtime, seconds, world_size=world_size, **named)
    )


def _conditions(config: RunConfig, runtime: Runtime, world_size: int, batch: Batch | None = None) -> dict[str, Any]:
    """What decides how long a step takes, as JSON values."""
    train = config.train
    return {
        "model": asdict(config.model),
        "tune": asdict(config.tune),
        "optimizer": config.optim.optimizer,
        "activation_checkpointing": train.activation_checkpointing,
        "clipped": train.grad_clip > 0,
        "batch": [train.batch_size, world_size, _timed_rows(config, runtime, world_size, batch)],
        "answers": [*batch.idx.shape, batch.num_loss_tokens()] if batch else [],
        **runtime.resolved(),
    }


@dataclass(frozen=True)
class MeasuredSpeed:
    """The runtime with compiling decided, the timing in it, and notes that say why."""

    runtime: Runtime
    timing: Timing
    notes: tuple[str, ...] = ()


def measure_speed(
    config: RunConfig,
    runtime: Runtime,
    seconds: float,
    *,
    time_left: float,
    reporter: Reporter | None = None,
    world_size: int = 1,
    measurements: Measurements | None = None,
) -> MeasuredSpeed:
    """Measure real steps, and choose whether to compile. Steps that take too long are extrapolated from fewer layers.

    Args:
        config: what is going to be trained.
        runtime: the device and the dtype; compiling is decided here.
        seconds: to measure for, about.
        time_left: seconds that a run without a number of steps has.
        reporter: gets a note before compiling.
        world_size: how many processes share a batch.
        measurements: what has been measured before.
    """
    measurements = measurements or Measurements(anew=True)
    timing, note = measure_eager(config, runtime, measurements, seconds, world_size)
    if note:
        return MeasuredSpeed(replace(runtime, compile=config.runtime.compile == "true"), timing, (note,))
    return _choose_compile(config, timing, time_left, runtime, reporter or Reporter(), world_size, measurements)


def measure_eager(
    config: RunConfig, runtime: Runtime, measurements: Measurements, seconds: float = 0.5, world_size: int = 1
) -> tuple[Timing, str]:
    """The timing of steps that are not compiled, extrapolated if they take too long; and a note if it was."""
    reduced = _reduced_config(config, runtime, world_size, matrix_speed(runtime, measurements))

    def measured(config: RunConfig) -> Timing:
        return timing_of(config, runtime, measurements, seconds, world_size=world_size)

    timing, depth, n_layer = measured(reduced), reduced.model.n_layer, config.model.n_layer
    if depth == n_layer:
        return timing, ""
    shallow = measured(reduced.replace("model", n_layer=DEPTHS[0]))
    further = (n_layer - depth) / (depth - DEPTHS[0])
    timing = Timing(
        timing.seconds_per_step + further * (timing.seconds_per_step - shallow.seconds_per_step),
        timing.seconds_per_val_token + further * (timing.seconds_per_val_token - shallow.seconds_per_val_token),
        update_share=timing.update_share,
    )
    note = f"the speed is extrapolated from {DEPTHS[0]} and {depth} layers: full steps would have taken too long"
    return timing, note


def step_flops(config: RunConfig) -> float:
    """Floating-point operations of an optimiser step."""
    tokens = config.train.batch_size * config.model.block_size
    update = optimizer_flops(config.model, config.optim.optimizer, ITERATIONS)
    return float(tokens * flops_per_token(config.model).training + update)


@dataclass(frozen=True)
class MatrixSpeed:
    """Floating-point operations per second of matrix products."""

    flops_per_second: float


def matrix_speed(runtime: Runtime, measurements: Measurements) -> float:
    """As :func:`~glassgpt.planning.compute_dtype.matrix_flops_per_second`, unless it has been measured before."""
    place = runtime.resolved()
    return measurements.get(
        MatrixSpeed,
        {"dtype": place["dtype"], "device": place["device"]},
        lambda: MatrixSpeed(matrix_flops_per_second(runtime.dtype, runtime.device)),
    ).flops_per_second


def _reduced_config(config: RunConfig, runtime: Runtime, world_size: int, flops_per_second: float) -> RunConfig:
    """A configuration whose passes do not take too long to time: with fewer rows, then with fewer layers."""
    model, train = config.model, config.train

    def seconds(rows: int) -> float:
        passes = rows * model.block_size * 4 * flops_per_token(model).forward  # with validation's
        return (passes + optimizer_flops(model, config.optim.optimizer, ITERATIONS)) / flops_per_second

    rows = min(train.micro_batch_size or train.batch_size, math.ceil(train.batch_size / world_size))
    rows = min(rows, max(1, TOKENS_PER_PASS // model.block_size))
    if seconds(rows) <= LONGEST_PASS:
        return config
    rows = min(rows, max(1, MIN_TOKENS // model.block_size))
    config = config.replace("train", micro_batch_size=rows)
    if seconds(rows) > LONGEST_PASS and model.n_layer > DEPTHS[1]:
        config = config.replace("model", n_layer=DEPTHS[1])
    return config


def worth_trying_to_compile(config: RunConfig, timing: Timing, seconds: float, device: torch.device) -> bool:
    """Whether a run is so long that a try at compiling costs little of it."""
    predicted = timing.seconds_per_step * _predicted_steps(config, timing, seconds)
    return COMPILE_SECONDS[device.type == "cuda"] <= COMPILE_TRY_SHARE * predicted


def _predicted_steps(config: RunConfig, timing: Timing, seconds: float) -> float:
    return config.train.steps or TIME_BUDGET_FRACTION * seconds / timing.seconds_per_step


def _choose_compile(
    config: RunConfig,
    eager: Timing,
    seconds: float,
    runtime: Runtime,
    reporter: Reporter,
    world_size: int,
    measurements: Measurements,
) -> MeasuredSpeed:
    """Compile if the user set compile=true, or if that is measured to pay in this run.

    What it gains is known from a run before, or is measured if the run is long enough.
    """
    setting, compiled_runtime = config.runtime.compile, replace(runtime, compile=True)
    if setting == "false":
        return MeasuredSpeed(runtime, eager)
    if not compiler_found(runtime.device):
        return MeasuredSpeed(runtime, eager, ("not compiled: torch.compile needs a C++ compiler, and none was found",))
    compiled = measurements.known(Timing, _conditions(config, compiled_runtime, world_size))
    if compiled:
        again = max(COMPILE_AGAIN_SECONDS, COMPILE_AGAIN_SHARE * compiled.compile_seconds)
        compiled = replace(compiled, compile_seconds=again)
        saved = _predicted_steps(config, eager, seconds) * (eager.seconds_per_step - compiled.seconds_per_step)
        pays = saved > again
        cost = f"compiling again takes some {again:.0f} s"
    elif setting == "auto" and not worth_trying_to_compile(config, eager, seconds, runtime.device):
        return MeasuredSpeed(runtime, eager)
    else:
        reporter.note("compiling the blocks, to see whether that is faster")
        try:
            compiled = timing_of(config, compiled_runtime, measurements, world_size=world_size)
        except RuntimeError as error:
            if not guard.is_compile_failure(error):
                raise
            reason = first_line(error)
            return MeasuredSpeed(runtime, eager, (f"not compiled: torch.compile does not work here ({reason})",))
        if measurements.age:  # the machine may have been busier then, or less so: compare with the speed of now
            eager, _ = measure_eager(config, runtime, Measurements(anew=True), world_size=world_size)
        pays, cost = True, f"compiling took {compiled.compile_seconds:.0f} s"
        compiled = replace(compiled, compile_seconds=0.0)  # it is paid for: the same process trains
    gain = eager.seconds_per_step / compiled.seconds_per_step
    why = f"compiled, the steps run {gain:.2f}x as fast; {cost}"
    if setting == "auto" and not (pays and gain >= COMPILE_MIN_SPEEDUP):
        return MeasuredSpeed(runtime, eager, (f"{why}: not worth it, so not compiled",))
    return MeasuredSpeed(compiled_runtime, compiled, (why,))
