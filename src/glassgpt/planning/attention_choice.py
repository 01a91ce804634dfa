"""Choose the attention of training by a measurement: fused, or unfused where that is faster."""

import time
from dataclasses import replace

import torch

from glassgpt.config import RunConfig
from glassgpt.model import FusedAttention, UnfusedAttention
from glassgpt.planning.compute_dtype import median_seconds
from glassgpt.runtime import Runtime

#: Unfused attention has to be this much faster: it keeps its weights.
MIN_SPEEDUP = 1.1
#: Tokens to measure on, at most, if that is not one row.
_TOKENS = 4096


def measured_attention(config: RunConfig, runtime: Runtime) -> tuple[Runtime, str]:
    """The runtime with the attention that trains faster, and why; only CPUs in 16 bits have a choice.

    Forward and backward passes of one layer are timed, on up to 4,096 tokens.
    """
    if config.runtime.attention != "auto" or runtime.device.type != "cpu" or runtime.dtype == torch.float32:
        return runtime, ""
    model = config.model
    rows = max(1, min(config.train.micro_batch_size or config.train.batch_size, _TOKENS // model.block_size))
    heads = (model.n_head, model.n_kv_head, model.n_kv_head)
    q, k, v = (
        torch.ones(rows, H, model.block_size, model.head_dim, dtype=runtime.dtype, requires_grad=True) for H in heads
    )

    def seconds(attend: torch.nn.Module) -> float:
        def once() -> float:
            began = time.perf_counter()
            torch.autograd.grad(attend(q, k, v, None)[0].sum(), (q, k, v))
            return time.perf_counter() - began

        return median_seconds(once, 0.05)

    gain = seconds(FusedAttention()) / seconds(UnfusedAttention())
    if gain < MIN_SPEEDUP:
        return runtime, ""
    return replace(runtime, attention="unfused"), f"unfused attention is {gain:.1f}x as fast as fused attention here"
