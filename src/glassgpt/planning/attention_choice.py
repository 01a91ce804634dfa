"""Choose the attention of training by a measurement: fused, or unfused where that is faster."""

import time
from dataclasses import dataclass, replace

import torch
from torch import nn

from glassgpt.config import RunConfig
from glassgpt.model import FusedAttention, UnfusedAttention
from glassgpt.planning.measured import Measurements
from glassgpt.runtime import Runtime, is_steady, repeated

#: Unfused attention has to be this much faster: it keeps its weights.
MIN_SPEEDUP = 1.1
#: Tokens to measure on, at most, if that is not one row.
_TOKENS = 2048


@dataclass(frozen=True)
class UnfusedGain:
    """How many times as fast as fused attention the unfused one trains; ``steady``: whether repeated timings agreed."""

    gain: float
    steady: bool = True


def measured_attention(config: RunConfig, runtime: Runtime, measurements: Measurements) -> tuple[Runtime, str]:
    """The runtime with the attention that trains faster, and why; only CPUs in 16 bits have a choice.

    Forward and backward passes of one layer are timed, on up to 2,048 tokens, unless they have been before.
    """
    if config.runtime.attention != "auto":
        return replace(runtime, attention=config.runtime.attention), ""
    if runtime.device.type != "cpu" or runtime.dtype == torch.float32:
        return runtime, ""
    model, train = config.model, config.train
    rows = max(1, min(train.micro_batch_size or train.batch_size, _TOKENS // model.block_size))
    heads = (model.n_head, model.n_kv_head, model.n_kv_head)
    conditions = {"rows": rows, "heads": heads, "context": model.block_size, "size": model.head_dim}
    dtype = runtime.resolved()["dtype"]

    def measure() -> UnfusedGain:
        shapes = [(rows, H, model.block_size, model.head_dim) for H in heads]
        qkv = [torch.ones(shape, dtype=runtime.dtype, requires_grad=True) for shape in shapes]
        fused, unfused = (_seconds(attend, qkv) for attend in (FusedAttention(), UnfusedAttention()))
        return UnfusedGain(min(fused) / min(unfused), is_steady(fused) and is_steady(unfused))

    gain = measurements.get(UnfusedGain, {**conditions, "dtype": dtype}, measure).gain
    if gain < MIN_SPEEDUP:
        return runtime, ""
    return replace(runtime, attention="unfused"), f"unfused attention is {gain:.1f}x as fast as fused attention here"


def _seconds(attend: nn.Module, qkv: list[torch.Tensor]) -> list[float]:
    """Seconds of forward and backward passes."""

    def once() -> float:
        began = time.perf_counter()
        torch.autograd.grad(attend(*qkv, None)[0].sum(), qkv)
        return time.perf_counter() - began

    once()  # in which libraries prepare their kernels
    return repeated(once, 0.03)
