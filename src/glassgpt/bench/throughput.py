"""Training throughput: real optimiser steps on random tokens, compared with the peak of the device.

The arithmetic of a training step is timed, by the loop's own :func:`~glassgpt.training.step.train_step`; reading the
batch from the text, validating and saving are not.
"""

import math
import time
from dataclasses import dataclass
from statistics import median

import torch

from glassgpt.bench.memory import peak_resident
from glassgpt.bench.roofline import matrix_peak, memory_bandwidth
from glassgpt.config import RunConfig
from glassgpt.errors import ConfigError, first_line, is_out_of_memory
from glassgpt.estimate import flops_per_token, memory, optimizer_flops
from glassgpt.files import Progress
from glassgpt.planning.memory import memory_settings
from glassgpt.planning.timing import StepTimes, TimedTraining
from glassgpt.runtime import Runtime
from glassgpt.training import guard
from glassgpt.training.optim import ITERATIONS

#: Steps that are not counted: they pay for allocations, and the first for compiling. The second counts if it is slow.
WARMUP = 2
#: If the number of steps is free: about so many seconds, and within these bounds.
SECONDS, MIN_STEPS, MAX_STEPS = 10.0, 3, 200
#: Micro-batches timed per step at most: they are all alike, so the time of the others follows.
MICRO_BATCHES = 4


@dataclass(frozen=True)
class TrainBench:
    """The speed of a training configuration on this machine. Seconds are medians of an optimiser step."""

    parameters: int  # of the model; a tied head counts once
    tokens: int  # per optimiser step
    micro_batches: int  # per optimiser step
    micro_batches_timed: int  # of them; the seconds of forward and backward are scaled to all
    steps: int  # measured, after the warm-up
    step_seconds: float  # of a whole optimiser step
    #: Of them in forward passes. With a large vocabulary the loss makes the head's gradients at once, so they are here.
    forward_seconds: float
    backward_seconds: float  # in backward passes
    update_seconds: float  # in clipping and the optimiser
    first_step_seconds: float  # of the very first step; with the compiler, mostly compiling
    tokens_per_second: float  # tokens / step_seconds
    #: Of the model, forward and backward; no operation is counted twice for being recomputed.
    flops_per_token: float
    optimizer_flops: float  # per optimiser step; not in the MFU
    flops_per_second: float  # flops_per_token x tokens_per_second
    matrix_peak: float  # FLOP/s of the fastest matrix product of this device in the compute type
    mfu: float  # flops_per_second / matrix_peak, the model FLOPs utilisation
    memory_bandwidth: float  # bytes/s of a copy on this device, read and written
    #: Bytes; on a GPU the peak of tensors, on a CPU the peak of the whole process, which never falls and so is this
    #: benchmark's only in a process of its own. None if the system does not report it.
    peak_memory: int | None
    base_memory: int | None  # bytes, the same before the model was built
    #: Bytes that training should take besides those, by arithmetic (not where blocks are compiled).
    planned_memory: int


def bench_train(config: RunConfig, runtime: Runtime, steps: int = 0, *, progress: Progress | None = None) -> TrainBench:
    """Measure optimiser steps of a configuration, then the peaks of the device.

    Args:
        config: with its micro-batch size; only ``model``, ``train`` and ``optim`` count.
        runtime: where to compute.
        steps: to measure, besides the warm-up; 0: as many as fit in about ten seconds.
        progress: called after every step.

    Raises:
        ConfigError: if memory runs out, or the compiler fails.
    """
    device, train = runtime.device, config.train
    base = peak_resident()
    if device.type == "cuda":
        base = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    rows = min(train.micro_batch_size or train.batch_size, train.batch_size)
    timed_rows = min(train.batch_size, MICRO_BATCHES * rows)
    parameters, first, times = _measure(config, runtime, timed_rows, rows, steps, progress)
    # Before the products of the roofline, which take memory of their own.
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident()
    scale, tokens = train.batch_size / timed_rows, config.tokens_per_step
    seconds = median(scale * (step.forward + step.backward) + step.update for step in times)
    flops, fastest = flops_per_token(config.model).training, matrix_peak(device, runtime.dtype)
    planned = memory(config.model, rows, **memory_settings(config, runtime.dtype.itemsize, device.type))
    return TrainBench(
        parameters=parameters,
        tokens=tokens,
        micro_batches=math.ceil(train.batch_size / rows),
        micro_batches_timed=math.ceil(timed_rows / rows),
        steps=len(times),
        step_seconds=seconds,
        forward_seconds=scale * median(step.forward for step in times),
        backward_seconds=scale * median(step.backward for step in times),
        update_seconds=median(step.update for step in times),
        first_step_seconds=first,
        tokens_per_second=tokens / seconds,
        flops_per_token=flops,
        optimizer_flops=optimizer_flops(config.model, config.optim.optimizer, ITERATIONS),
        flops_per_second=flops * tokens / seconds,
        matrix_peak=fastest,
        mfu=flops * tokens / seconds / fastest,
        memory_bandwidth=memory_bandwidth(device),
        peak_memory=peak,
        base_memory=base,
        planned_memory=planned.total,
    )


def _measure(
    config: RunConfig, runtime: Runtime, rows: int, micro_batch_size: int, steps: int, progress: Progress | None
) -> tuple[int, float, list[StepTimes]]:
    """The number of parameters, the seconds of the very first step, and the times of each after the warm-up."""
    try:
        timed = TimedTraining(config, runtime, rows, micro_batch_size)
        return timed.model.num_parameters(), *_time_steps(timed, steps, progress)
    except RuntimeError as error:
        if guard.is_compile_failure(error):
            reason = first_line(error)
            raise ConfigError(f"torch.compile does not work here ({reason}); leave out compile=true") from None
        if not is_out_of_memory(error):
            raise
    raise ConfigError(
        f"memory ran out with {micro_batch_size} sequences of {config.model.block_size} tokens in a forward pass; use "
        "a smaller micro_batch_size"
    )


def _time_steps(timed: TimedTraining, steps: int, progress: Progress | None) -> tuple[float, list[StepTimes]]:
    """Seconds of the very first step, and the times of each step after the warm-up."""
    times: list[StepTimes] = []
    began = start = time.perf_counter()
    first, number = 0.0, 0
    while True:
        number += 1
        step = timed.step()
        took, start = time.perf_counter() - start, time.perf_counter()
        first = first or took
        if number > WARMUP or (number == WARMUP and took > SECONDS / 2):
            times.append(step)
        # If it is free, by the newest step: the first ones are slower, and a machine may change its speed.
        fitting = len(times) + int(max(0.0, began + SECONDS - start) / took)
        wanted = steps or min(max(MIN_STEPS, fitting), MAX_STEPS)
        if progress:
            progress("timing", len(times), wanted)
        if len(times) >= wanted:
            return first, times
