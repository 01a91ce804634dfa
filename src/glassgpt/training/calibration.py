"""How fast a configuration trains here, from a short measurement even where one step would take long."""

import math
from dataclasses import dataclass, replace

from glassgpt.config import RunConfig
from glassgpt.estimate import flops_per_token, optimizer_flops
from glassgpt.runtime import Runtime
from glassgpt.training import budget
from glassgpt.training.budget import Speed
from glassgpt.training.metrics import Reporter
from glassgpt.training.optim import ITERATIONS
from glassgpt.training.precision import matrix_flops_per_second

#: Passes that are estimated to take longer, in seconds, are timed on fewer rows, then on fewer layers.
LONGEST_PASS = 5.0
#: Tokens in a pass that are enough to time it, and the depths from which deeper models are extrapolated.
FEWEST_TOKENS = 2048
DEPTHS = (1, 3)


@dataclass(frozen=True)
class Calibration:
    """What was measured: the runtime with compiling decided, the speed in it, and what there is to say of that."""

    runtime: Runtime
    speed: Speed
    notes: tuple[str, ...] = ()


def calibrate(
    config: RunConfig,
    runtime: Runtime,
    seconds: float,
    *,
    left: float,
    reporter: Reporter | None = None,
    processes: int = 1,
) -> Calibration:
    """Measure real steps for about so many seconds, and choose whether to compile.

    Args:
        config: what is going to be trained.
        runtime: the device and the compute type; compiling is decided here.
        seconds: to measure for.
        left: seconds that a run without a number of steps has.
        reporter: told of compiling.
        processes: how many share a batch.
    """
    vocab_size, n_layer = config.model.vocab_size, config.model.n_layer
    sample = _sample(config, runtime, processes)
    speed = budget.measure(sample, vocab_size, runtime, seconds, processes=processes)
    depth = sample.model.n_layer
    if depth == n_layer:
        chosen, speed, why = budget.choose_compile(config, speed, left, runtime, reporter or Reporter(), processes)
        return Calibration(chosen, speed, (why,) if why else ())
    shallow = budget.measure(
        sample.replace("model", n_layer=DEPTHS[0]), vocab_size, runtime, seconds, processes=processes
    )
    further = (n_layer - depth) / (depth - DEPTHS[0])
    speed = Speed(
        speed.step + further * (speed.step - shallow.step),
        speed.validation_token + further * (speed.validation_token - shallow.validation_token),
    )
    note = f"the speed is extrapolated from {DEPTHS[0]} and {depth} layers: whole steps would have taken too long"
    return Calibration(replace(runtime, compile=config.runtime.compile == "true"), speed, (note,))


def _sample(config: RunConfig, runtime: Runtime, processes: int) -> RunConfig:
    """What to time instead of the run's own passes, so that it takes not too long: fewer rows, then fewer layers."""
    model, train = config.model, config.train
    flops_per_second = matrix_flops_per_second(runtime.dtype, runtime.device)

    def seconds(rows: int) -> float:
        passes = rows * model.block_size * 4 * flops_per_token(model).forward  # with validation's
        return (passes + optimizer_flops(model, config.optim.optimizer, ITERATIONS)) / flops_per_second

    rows = min(train.micro_batch_size or train.batch_size, math.ceil(train.batch_size / processes))
    rows = min(rows, max(1, 8192 // model.block_size))
    if seconds(rows) <= LONGEST_PASS:
        return config
    rows = min(rows, max(1, FEWEST_TOKENS // model.block_size))
    config = config.replace("train", micro_batch_size=rows)
    if seconds(rows) > LONGEST_PASS and model.n_layer > DEPTHS[1]:
        config = config.replace("model", n_layer=DEPTHS[1])
    return config
