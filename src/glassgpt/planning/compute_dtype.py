"""Choose the compute dtype by a measured self-check: faster than float32 on this device, and close to it."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from glassgpt.config import ModelConfig, OptimConfig, RunConfig
from glassgpt.data.batch import random_batch
from glassgpt.errors import first_line
from glassgpt.estimate import flops_per_token
from glassgpt.model import GPT
from glassgpt.planning.attention_choice import measured_attention
from glassgpt.planning.measured import Measurements
from glassgpt.runtime import Runtime, Stopwatch, is_steady, repeated, synchronise
from glassgpt.training.objective import ModelWithLoss, next_token_loss
from glassgpt.training.optim import Optimizers
from glassgpt.training.precision import MasterWeights
from glassgpt.training.step import train_step
from glassgpt.transforms.blocks import prepare_blocks
from glassgpt.weights.folder import DTYPES, dtype_name

#: A dtype has to be this much faster than float32, and its logits and gradients this close, to be chosen.
MIN_SPEEDUP = 1.1
MAX_LOGITS_ERROR = 0.05
MIN_GRADIENT_COSINE = 0.99
#: Tokens of the self-check at most: on a GPU more, for with few all types wait for launches.
CHECK_TOKENS, CHECK_TOKENS_ON_GPU = 1024, 16384
#: For large models on a CPU fewer, down to this number: so many that a pass takes about so many operations.
MIN_CHECK_TOKENS, CHECK_FLOPS = 256, 3e10


@dataclass(frozen=True)
class SelfCheck:
    """A compute dtype on this device, compared with float32 on the same batch.

    Attributes:
        dtype: the type.
        speedup: time of a forward and backward pass in float32 over that in this type; 0 if it was not worth trying.
        logits_error: root mean square of the difference of logits, over that of the logits.
        gradient_cosine: cosine between all gradients and those of float32.
        problem: why it could not be checked; empty if it was.
        steady: whether repeated timings agreed.
    """

    dtype: torch.dtype
    speedup: float
    logits_error: float = 0.0
    gradient_cosine: float = 1.0
    problem: str = ""
    steady: bool = True

    @property
    def passed(self) -> bool:
        """Whether to compute in this type."""
        agrees = self.logits_error <= MAX_LOGITS_ERROR and self.gradient_cosine >= MIN_GRADIENT_COSINE
        return self.speedup >= MIN_SPEEDUP and agrees

    def __str__(self) -> str:
        name = dtype_name(self.dtype)
        if self.problem:
            return f"{name} could not be checked: {self.problem}"
        if self.speedup < MIN_SPEEDUP:
            return f"{name} is not faster than float32 here ({self.speedup:.2f}x)"
        verdict = "" if self.passed else ": too much, not used"
        return (
            f"{name} is {self.speedup:.1f}x as fast as float32 here; logits differ by {self.logits_error:.2%}, "
            f"gradients by an angle of cosine {self.gradient_cosine:.4f}{verdict}"
        )


@dataclass(frozen=True)
class DtypeChoice:
    """The name of the compute dtype to use, and why; ``steady`` as in :class:`SelfCheck`."""

    name: str
    why: str
    steady: bool = True

    def __post_init__(self) -> None:
        if self.name not in DTYPES:
            raise ValueError(f"{self.name!r} is not one of {', '.join(DTYPES)}")


#: Gives the attention that trains faster in a type: fused or unfused.
AttentionOf = Callable[[torch.dtype], str]


def choose_dtype(
    config: ModelConfig, rows: int, device: torch.device, attention_of: AttentionOf = lambda dtype: "fused"
) -> DtypeChoice:
    """Choose the compute dtype for a model on a device: bfloat16, else float16, else float32."""
    results: list[SelfCheck] = []
    for dtype in (torch.bfloat16, torch.float16):
        results.append(check(dtype, config, rows, device, attention_of))
        if results[-1].passed:
            return DtypeChoice(dtype_name(dtype), str(results[-1]), results[-1].steady)
    return DtypeChoice("float32", "; ".join(map(str, results)), all(result.steady for result in results))


def measured_dtype(
    config: RunConfig, runtime: Runtime, measurements: Measurements | None = None
) -> tuple[Runtime, str]:
    """The runtime with the dtype that this device's self-check chooses, and why.

    It is made on a part of a batch, as large as can be timed quickly.
    """
    tokens = CHECK_TOKENS_ON_GPU
    if runtime.device.type != "cuda":
        tokens = min(CHECK_TOKENS, max(MIN_CHECK_TOKENS, int(CHECK_FLOPS / flops_per_token(config.model).training)))
    model = replace(config.model, block_size=min(config.model.block_size, tokens))
    rows = max(1, min(config.train.micro_batch_size or config.train.batch_size, tokens // model.block_size))
    measurements = measurements or Measurements(anew=True)

    def attention_of(dtype: torch.dtype) -> str:
        return measured_attention(config, replace(runtime, dtype=dtype), measurements)[0].attention

    choice = measurements.get(
        DtypeChoice,
        {"model": asdict(model), "rows": rows, "device": str(runtime.device), "attention": config.runtime.attention},
        lambda: choose_dtype(model, rows, runtime.device, attention_of),
    )
    if runtime.device.type == "cuda":
        torch.cuda.empty_cache()  # so that the free memory can be read
    return replace(runtime, dtype=DTYPES[choice.name], reason=choice.why), choice.why


def inference_dtype(stored: torch.dtype, quantized: bool, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype in which to generate, and the line that says so; none for float32.

    It is bfloat16 if the weights are stored so, and lose nothing, or are quantised, and lose little beside that; and if
    matrix products are measured to be faster in it.
    """
    if stored != torch.bfloat16 and not quantized:
        return torch.float32, ""
    speedup = matrix_flops_per_second(torch.bfloat16, device) / matrix_flops_per_second(torch.float32, device)
    if speedup < MIN_SPEEDUP:
        return torch.float32, ""
    why = "of the prompt and the cache of quantised weights" if quantized else "as the weights are stored"
    return torch.bfloat16, f"dtype: bfloat16, {why}; matrix products are {speedup:.1f}x as fast as in float32 here"


def check(
    dtype: torch.dtype,
    config: ModelConfig,
    rows: int,
    device: torch.device,
    attention_of: AttentionOf = lambda dtype: "fused",
) -> SelfCheck:
    """Measure one compute dtype against float32 on a fresh model and random tokens ``[rows, block_size]``.

    A type without hardware support can be a hundred times slower, so a small matrix product goes first.
    """
    try:
        product_speedup = matrix_flops_per_second(dtype, device) / matrix_flops_per_second(torch.float32, device)
        if product_speedup < MIN_SPEEDUP:
            return SelfCheck(dtype, product_speedup)
        expected = _run(torch.float32, config, rows, device, attention_of(torch.float32))
        found = _run(dtype, config, rows, device, attention_of(dtype))
    except (RuntimeError, NotImplementedError) as error:  # out of memory, or a kernel that this type lacks
        return SelfCheck(dtype, 0.0, problem=first_line(error))
    distance = float((found.logits - expected.logits).norm() / expected.logits.norm())
    speedup = min(expected.seconds) / min(found.seconds)
    steady = is_steady(expected.seconds) and is_steady(found.seconds)
    return SelfCheck(dtype, speedup, distance, _cosine(found.gradients, expected.gradients), steady=steady)


def _cosine(ones: list[Tensor], others: list[Tensor]) -> float:
    """The cosine between two lists of gradients, summed in float64: a sum in float32 gives more than 1."""
    dot = norm = other_norm = 0.0
    for one, other in zip(ones, others, strict=True):  # one tensor at a time, to save memory
        x, y = one.cpu().double().flatten(), other.cpu().double().flatten()  # not every device has float64
        dot, norm, other_norm = dot + float(x @ y), norm + float(x @ x), other_norm + float(y @ y)
    return dot / math.sqrt(norm * other_norm) if norm * other_norm > 0 else math.nan


def matrix_flops_per_second(dtype: torch.dtype, device: torch.device) -> float:
    """The speed of a small square product of matrices."""
    size = 256 if device.type == "cpu" else 2048
    a = torch.ones(size, size, device=device, dtype=dtype)

    def product() -> float:
        synchronise(device)
        began = time.perf_counter()
        a @ a
        synchronise(device)
        return time.perf_counter() - began

    product()  # in which libraries choose and prepare their kernels, which can take longer than all the rest
    return 2 * size**3 / min(repeated(product, 0.02))


@dataclass(frozen=True)
class _Passes:
    """Logits (flat) and float32 gradients without dropout, and seconds of forward and backward passes with it."""

    logits: Tensor
    gradients: list[Tensor]
    seconds: list[float]


def _run(dtype: torch.dtype, config: ModelConfig, rows: int, device: torch.device, attention: str) -> _Passes:
    model = GPT(config)
    model.init_weights(0)
    prepare_blocks(model, recompute=False, compile=False, attention=attention)
    model = model.to(device)
    optimizers = _NoUpdates(model, OptimConfig(optimizer="adamw"), MasterWeights(model, dtype))
    batch = random_batch(config.vocab_size, rows, config.block_size)

    def forward_and_backward() -> float:
        watch = Stopwatch(device)
        watch.mark()
        train_step(
            ModelWithLoss(model, next_token_loss), optimizers, batch, batch.num_loss_tokens(), micro_batch_size=rows,
            lr_multiplier=0.0, grad_clip=0.0, device=device, mark=watch.mark,
        )  # fmt: skip
        return sum(watch.laps()[:2])

    model.eval()  # dropout would differ
    forward_and_backward()  # libraries prepare their kernels in the first pass, which is not timed
    gradients = optimizers.weights.gradients()
    with torch.no_grad():
        logits = model(batch.idx[:1].to(device)).float().flatten()
    model.train()
    return _Passes(logits, gradients, repeated(forward_and_backward, 0.05))


class _NoUpdates(Optimizers):
    """Optimisers that change no weight, and so need no memory for their state."""

    def step(self, multiplier: float) -> None:
        """Do nothing."""
