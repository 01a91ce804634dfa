"""Training throughput: real optimiser steps on random tokens, held against the peak of the device.

What is timed is the arithmetic of a step of the training loop. Reading the batch from the text, validations and
saving are not in it.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from glassgpt import estimate as plan
from glassgpt.bench.memory import peak_resident
from glassgpt.bench.roofline import Stopwatch, matrix_peak, memory_bandwidth
from glassgpt.config import RunConfig
from glassgpt.data.batch import Batch
from glassgpt.errors import ConfigError
from glassgpt.model import GPT
from glassgpt.runtime import Runtime
from glassgpt.seeds import derive_seed
from glassgpt.training import guard, setup
from glassgpt.training.objective import ModelWithLoss, next_token_loss
from glassgpt.training.optim import ITERATIONS, Optimizers
from glassgpt.training.precision import MasterWeights
from glassgpt.transforms.blocks import prepare_blocks

#: Steps that are not counted: they pay for allocations, and the first for compiling. The second counts if it is slow.
WARMUP = 2
#: Where the number of steps is free: about so many seconds, and within these bounds.
SECONDS, FEWEST, MOST = 10.0, 3, 200
#: Micro-batches timed per step at most: they are all alike, so the time of the others follows.
MICRO_BATCHES = 4
#: Share of the peak learning rates: random tokens have nothing to teach, and the weights should stay ordinary.
UPDATE_SCALE = 1e-3

#: Told of the steps done, of all, and the seconds left.
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class TrainBench:
    """What a training configuration achieves on this machine. Seconds are medians of an optimiser step.

    Attributes:
        parameters: of the model; a tied head counts once.
        tokens: per optimiser step.
        micro_batches: per optimiser step.
        micro_batches_timed: of them; the seconds of forward and backward are scaled to all.
        steps: measured, after the warm-up.
        step_seconds: of a whole optimiser step.
        forward_seconds: of them in forward passes. With a large vocabulary the loss makes the head's gradients at once,
            so they are here.
        backward_seconds: in backward passes.
        update_seconds: in clipping and the optimiser.
        first_step_seconds: of the very first step; with the compiler, mostly compiling.
        tokens_per_second: tokens / step_seconds.
        flops_per_token: of the model, forward and backward; no operation is counted twice for being recomputed.
        optimizer_flops: per optimiser step; not in the MFU.
        flops_per_second: flops_per_token x tokens_per_second.
        matrix_peak: FLOP/s of the fastest matrix product of this device in the compute type.
        mfu: flops_per_second / matrix_peak, the model FLOPs utilisation.
        memory_bandwidth: bytes/s of a copy on this device, read and written.
        peak_memory: bytes; on a GPU what tensors took at their peak, on a CPU the peak of the whole process, which
            never falls and so is this benchmark's only in a process of its own. None where the system does not tell.
        base_memory: bytes, the same before the model was built.
        planned_memory: bytes that training should take besides those, by arithmetic (not where blocks are compiled).
    """

    parameters: int
    tokens: int
    micro_batches: int
    micro_batches_timed: int
    steps: int
    step_seconds: float
    forward_seconds: float
    backward_seconds: float
    update_seconds: float
    first_step_seconds: float
    tokens_per_second: float
    flops_per_token: float
    optimizer_flops: float
    flops_per_second: float
    matrix_peak: float
    mfu: float
    memory_bandwidth: float
    peak_memory: int | None
    base_memory: int | None
    planned_memory: int


class TrainingStep:
    """A model and its optimisers on random tokens, for taking one optimiser step after another.

    Args:
        config: of the run; only ``model``, ``train`` and ``optim`` count.
        runtime: where to compute.
        micro_batches: of a step at most, however many the configuration has; 0: all.
    """

    def __init__(self, config: RunConfig, runtime: Runtime, micro_batches: int = 0):
        self.train, self.runtime = config.train, runtime
        rows = min(config.train.micro_batch_size or config.train.batch_size, config.train.batch_size)
        every = [min(rows, config.train.batch_size - start) for start in range(0, config.train.batch_size, rows)]
        self.micro_batches, self.sizes = len(every), every[:micro_batches] if micro_batches else every
        self.model = GPT(config.model)
        self.model.init_weights(derive_seed(config.train.seed, "weights"))
        self.model = self.model.to(runtime.device).train()
        self.optimizers = Optimizers(self.model, config.optim, MasterWeights(self.model, runtime.dtype))
        self.network = ModelWithLoss(self.model, next_token_loss)
        # Lower than where training begins to look for it: a step that overflows is skipped, and would be timed as one.
        self.loss_scale = 2.0**10 if runtime.dtype == torch.float16 else 1.0
        prepare_blocks(self.model, recompute=config.train.activation_checkpointing, compile=runtime.compile)
        generator = torch.Generator().manual_seed(0)
        shape = (sum(self.sizes), config.model.block_size + 1)
        ids = torch.randint(config.model.vocab_size, shape, generator=generator)
        self.batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())

    def run(self) -> tuple[float, float, float]:
        """Take a step. Returns the seconds of its forward passes, its backward passes, and its update."""
        watch = Stopwatch(self.runtime.device)
        weight = self.loss_scale / self.batch.num_loss_tokens()
        total = torch.zeros((), device=self.runtime.device)
        watch.mark()
        start = 0
        for rows in self.sizes:
            loss = self.network(self.batch.micro_batch(start, start + rows, self.runtime.device))
            watch.mark()
            (loss * weight).backward()
            self.optimizers.weights.collect()
            total += loss.detach()
            watch.mark()
            start += rows
        float(total)  # as the loop does, which reports the loss
        self._update()
        watch.mark()
        *laps, update = watch.laps()
        return sum(laps[::2]), sum(laps[1::2]), update

    def _update(self) -> None:
        weights = self.optimizers.weights
        gradients = weights.gradients()
        if self.loss_scale != 1.0:
            for gradient in gradients:
                gradient.mul_(1 / self.loss_scale)
        norm = torch.nn.utils.get_total_norm(gradients)
        float(norm)  # as the loop does, which looks whether it is finite
        if self.train.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(weights.named.values(), self.train.grad_clip, norm)
        self.optimizers.step(UPDATE_SCALE)
        self.optimizers.zero_grad()


def settle(config: RunConfig, runtime: Runtime) -> tuple[RunConfig, Runtime]:
    """Choose what is left to the machine as training does: the compute type, then the micro-batch.

    Compiling is not chosen: whether it pays depends on how long a run is.
    """
    if config.runtime.dtype == "auto":
        runtime, _ = setup.measured_dtype(config, runtime)
    config, _ = setup.fit_memory(config, runtime)
    return config.replace("runtime", **runtime.resolved()), runtime


def bench_train(config: RunConfig, runtime: Runtime, steps: int = 0, *, progress: Progress | None = None) -> TrainBench:
    """Measure optimiser steps of a configuration, then the peaks of the device.

    Args:
        config: what to train, and in what batches.
        runtime: where.
        steps: to measure, besides the warm-up; 0: as many as fit in about ten seconds.
        progress: told after every step.

    Raises:
        ConfigError: if memory runs out, or the compiler fails.
    """
    device = runtime.device
    base = peak_resident()
    if device.type == "cuda":
        base = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    step, first, laps = _measure(config, runtime, steps, progress)
    # Before the products of the roofline, which take memory of their own.
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident()
    parameters, timed, micro_batches = step.model.num_parameters(), len(step.sizes), step.micro_batches
    rows, scale = step.sizes[0], config.train.batch_size / sum(step.sizes)
    del step
    forward, backward, update = ([lap[part] for lap in laps] for part in range(3))
    seconds = median(scale * (f + b) + u for f, b, u in zip(forward, backward, update, strict=True))
    tokens = config.train.batch_size * config.model.block_size
    flops = plan.flops_per_token(config.model).training
    fastest = matrix_peak(device, runtime.dtype)
    planned = plan.memory(
        config.model, rows, bytes_per_weight=runtime.dtype.itemsize, optimizer=config.optim.optimizer,
        recompute=config.train.activation_checkpointing, device=device.type,
    )  # fmt: skip
    return TrainBench(
        parameters=parameters,
        tokens=tokens,
        micro_batches=micro_batches,
        micro_batches_timed=timed,
        steps=len(laps),
        step_seconds=seconds,
        forward_seconds=scale * median(forward),
        backward_seconds=scale * median(backward),
        update_seconds=median(update),
        first_step_seconds=first,
        tokens_per_second=tokens / seconds,
        flops_per_token=flops,
        optimizer_flops=plan.optimizer_flops(config.model, config.optim.optimizer, ITERATIONS),
        flops_per_second=flops * tokens / seconds,
        matrix_peak=fastest,
        mfu=flops * tokens / seconds / fastest,
        memory_bandwidth=memory_bandwidth(device),
        peak_memory=peak,
        base_memory=base,
        planned_memory=planned.total,
    )


def _measure(
    config: RunConfig, runtime: Runtime, steps: int, progress: Progress | None
) -> tuple[TrainingStep, float, list[tuple[float, float, float]]]:
    """The steps, the seconds of the very first, and the parts of each after the warm-up."""
    try:
        step = TrainingStep(config, runtime, MICRO_BATCHES)
        return step, *_time_steps(step, steps, progress)
    except RuntimeError as error:
        if guard.is_compile_failure(error):
            reason = str(error).strip().splitlines()[0][:200]
            raise ConfigError(f"torch.compile does not work here ({reason}); leave out compile=true") from None
        if not guard.is_out_of_memory(error):
            raise
    raise ConfigError(
        f"memory ran out with {config.train.micro_batch_size or config.train.batch_size} sequences of "
        f"{config.model.block_size} tokens in a forward pass; give a smaller micro_batch_size"
    )


def _time_steps(
    step: TrainingStep, steps: int, progress: Progress | None
) -> tuple[float, list[tuple[float, float, float]]]:
    """Seconds of the very first step, and the parts of each step after the warm-up."""
    laps: list[tuple[float, float, float]] = []
    began = start = time.perf_counter()
    first = 0.0
    for number in itertools.count(1):
        lap = step.run()
        took, start = time.perf_counter() - start, time.perf_counter()
        first = first or took
        if number > WARMUP or (number == WARMUP and took > SECONDS / 2):
            laps.append(lap)
        # Where it is free, as the newest step says: the first ones are slower, and a machine may change its speed.
        fitting = len(laps) + int(max(0.0, began + SECONDS - start) / took)
        wanted = steps or min(max(FEWEST, fitting), MOST)
        if progress:
            progress(len(laps), wanted, (wanted - len(laps)) * took)
        if len(laps) >= wanted:
            return first, laps
    raise AssertionError("itertools.count does not end")
