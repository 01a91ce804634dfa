"""The cost of attention as the context grows: fused and explicit, in time and in memory."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from glassgpt.model import ExplicitAttention, FusedAttention
from glassgpt.planning.memory import free_memory
from glassgpt.runtime import Runtime, synchronise
from glassgpt.training import guard

KINDS: dict[str, type[nn.Module]] = {"fused": FusedAttention, "explicit": ExplicitAttention}
#: Seconds for one measurement, where it is short: repeated until then. And for all of them together.
EACH, ALL = 0.3, 30.0
#: What the explicit form holds at once, in ``[B, H, T, T]`` tensors of float32: scores, masked scores, weights, and
#: in the backward pass the gradients of two of them and room to compute.
HELD = 6


@dataclass(frozen=True)
class AttentionBench:
    """The cost of one attention of one layer at one context length; all numbers None where it was not measured.

    Attributes:
        context: tokens, T.
        kind: ``fused`` or ``explicit``.
        forward_seconds: of the forward pass without gradients, as in generation; the median of several.
        training_seconds: of forward and backward together.
        memory: bytes. On a GPU the peak of forward and backward; on a CPU what the forward pass keeps for the
            backward pass. q, k and v are in both.
        skipped: why it was not measured; empty if it was.
    """

    context: int
    kind: str
    forward_seconds: float | None = None
    training_seconds: float | None = None
    memory: int | None = None
    skipped: str = ""


def bench_attention(
    contexts: Sequence[int],
    heads: int,
    head_dim: int,
    runtime: Runtime,
    *,
    batch: int = 1,
    seconds: float = ALL,
    progress: Callable[[int, str], None] | None = None,
) -> list[AttentionBench]:
    """Time both forms of causal attention on random ``q, k, v [B, H, T, D]``, shortest context first.

    A context whose scores would not fit into half of the free memory is skipped, and so is one that would take
    longer than what is left of the time, judged from the context before it.

    Args:
        contexts: lengths T in tokens.
        heads: H.
        head_dim: D.
        runtime: where to compute, and in which type.
        batch: B.
        seconds: for all measurements together, about.
        progress: told of each context and kind as its measurement begins.

    Returns:
        Two results for each context, fused and explicit.
    """
    deadline = time.perf_counter() + seconds
    before: dict[str, tuple[int, float]] = {}  # of each kind: the last context, and what measuring it took
    rows = []
    for context in sorted(set(contexts)):
        for kind in KINDS:
            skipped = _why_not(kind, (batch, heads, context, head_dim), runtime, before.get(kind), deadline)
            if skipped:
                rows.append(AttentionBench(context, kind, skipped=skipped))
                continue
            if progress:
                progress(context, kind)
            start = time.perf_counter()
            row = _measure(kind, (batch, heads, context, head_dim), runtime)
            if not row.skipped:
                before[kind] = context, time.perf_counter() - start
            rows.append(row)
    return rows


def _why_not(
    kind: str, shape: tuple[int, int, int, int], runtime: Runtime, before: tuple[int, float] | None, deadline: float
) -> str:
    """Why a measurement should not be begun; empty if it should."""
    B, H, T, D = shape
    needed = 16 * B * H * T * D * 4  # q, k, v, the result, their gradients, and copies of them
    if kind == "explicit":
        needed += HELD * B * H * T * T * 4
    free = free_memory(runtime.device) // 2
    if needed > free:
        return f"needs {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB may be taken"
    left = deadline - time.perf_counter()
    expected = before[1] * (T / before[0]) ** 2 if before and before[1] > 2 * EACH else 0.0
    if left <= 0 or expected > left:
        return f"would take about {expected:,.0f} s more, and the time is over" if expected else "the time is over"
    return ""


def _measure(kind: str, shape: tuple[int, int, int, int], runtime: Runtime) -> AttentionBench:
    device, attend, T = runtime.device, KINDS[kind](), shape[2]
    base = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(shape, generator=generator).to(device, runtime.dtype).requires_grad_() for _ in range(3)
    )  # [B, H, T, D] each

    def forward() -> None:
        with torch.no_grad():
            attend(q, k, v, None)

    def training() -> None:
        q.grad = k.grad = v.grad = None
        attend(q, k, v, None)[0].sum().backward()

    try:
        memory = _memory(lambda: attend(q, k, v, None)[0], training, device, base)
        return AttentionBench(T, kind, _typical(forward, device), _typical(training, device), memory)
    except RuntimeError as error:
        if not guard.is_out_of_memory(error):
            raise
        return AttentionBench(T, kind, skipped="memory ran out")


def _typical(work: Callable[[], None], device: torch.device) -> float:
    """Median seconds of a call: of three at least, and as many as fit in EACH, after one to warm up.

    A call that is long by itself is made once: what warming up saves is nothing beside it.
    """
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < 4 or time.perf_counter() - began < EACH:
        start = time.perf_counter()
        work()
        synchronise(device)
        taken.append(time.perf_counter() - start)
        if taken[0] > 3 * EACH > 0:
            return taken[0]
    return median(taken[1:])


def _memory(forward: Callable[[], Tensor], training: Callable[[], None], device: torch.device, base: int) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        training()
        return torch.cuda.max_memory_allocated(device) - base
    with saved_storages() as storages:
        forward()
    return sum(storages.values())


@contextmanager
def saved_storages() -> Iterator[dict[int, int]]:
    """Collect what autograd saves for the backward pass: the bytes of every distinct storage, by its address."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself, where it is a result, would hold on to its own graph

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages
