"""Time and memory of attention against the context length, fused and explicit."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from glassgpt.errors import is_out_of_memory
from glassgpt.estimate import format_bytes
from glassgpt.model import ExplicitAttention, FusedAttention
from glassgpt.planning.memory import free_memory
from glassgpt.runtime import Runtime, synchronise

KINDS: dict[str, type[nn.Module]] = {"fused": FusedAttention, "explicit": ExplicitAttention}
#: Seconds during which a short measurement is repeated, and seconds for all measurements together.
EACH, ALL = 0.3, 30.0
#: Number of ``[B, H, T, T]`` float32 tensors that explicit attention needs at once: scores, masked scores, weights,
#: the gradients of two of them, and temporary space.
SCORE_TENSORS = 6


@dataclass(frozen=True)
class AttentionBench:
    """Time and memory of one layer's attention at one context length; the numbers are None if it was skipped."""

    context: int  # tokens, T
    kind: str  # "fused" or "explicit"
    forward_seconds: float | None = None  # median time of the forward pass without gradients, as in generation
    training_seconds: float | None = None  # median time of forward and backward together
    #: Bytes, with q, k and v. On a GPU the peak of forward and backward; on a CPU what autograd saves in the forward.
    memory: int | None = None
    skipped: str = ""  # why it was not measured; else empty


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
    """Time fused and explicit causal attention on random ``q, k, v [B, H, T, D]``, shortest context first.

    B is ``batch``, H ``heads``, D ``head_dim``, and T each of ``contexts``, in tokens.
    A measurement is skipped if it needs more than half of the free memory, or if it would take longer than the time
    that is left, extrapolated from the previous context.

    Args:
        seconds: for all measurements together, about.
        progress: called with context and kind before each measurement.

    Returns:
        Two results for each context, fused and explicit.
    """
    deadline = time.perf_counter() + seconds
    previous: dict[str, tuple[int, float]] = {}  # kind -> last context, seconds that its measurement took
    rows = []
    for context in sorted(set(contexts)):
        for kind in KINDS:
            skipped = _reason_to_skip(kind, (batch, heads, context, head_dim), runtime, previous.get(kind), deadline)
            if skipped:
                rows.append(AttentionBench(context, kind, skipped=skipped))
                continue
            if progress:
                progress(context, kind)
            start = time.perf_counter()
            row = _measure(kind, (batch, heads, context, head_dim), runtime)
            if not row.skipped:
                previous[kind] = context, time.perf_counter() - start
            rows.append(row)
    return rows


def _reason_to_skip(
    kind: str, shape: tuple[int, int, int, int], runtime: Runtime, previous: tuple[int, float] | None, deadline: float
) -> str:
    """Check memory and time before a measurement; empty if it can start."""
    B, H, T, D = shape
    needed = 16 * B * H * T * D * 4  # q, k, v, the result, their gradients, and copies of them
    if kind == "explicit":
        needed += SCORE_TENSORS * B * H * T * T * 4
    limit = free_memory(runtime.device) // 2
    if needed > limit:
        return f"needs {format_bytes(needed)}; the limit is half of the free memory, {format_bytes(limit)}"
    left = deadline - time.perf_counter()
    expected = previous[1] * (T / previous[0]) ** 2 if previous and previous[1] > 2 * EACH else 0.0
    if left <= 0 or expected > left:
        return "time limit reached" + (f"; would take about {expected:,.0f} s more" if expected else "")
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
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            training()
            memory = torch.cuda.max_memory_allocated(device) - base
        else:
            with saved_storages() as storages:
                attend(q, k, v, None)
            memory = sum(storages.values())
        return AttentionBench(T, kind, _median_seconds(forward, device), _median_seconds(training, device), memory)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return AttentionBench(T, kind, skipped="out of memory")


def _median_seconds(work: Callable[[], None], device: torch.device) -> float:
    """Median time of a call: of at least three, and as many as fit into EACH, after one warm-up call.

    A long call is made only once: warming up would not change its time much.
    """
    times: list[float] = []
    first_start = time.perf_counter()
    while len(times) < 4 or time.perf_counter() - first_start < EACH:
        start = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - start)
        if times[0] > 3 * EACH > 0:
            return times[0]
    return median(times[1:])


@contextmanager
def saved_storages() -> Iterator[dict[int, int]]:
    """Record the tensors that autograd saves for the backward pass: address of each distinct storage -> bytes."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # returning a result itself would create a reference cycle with its graph

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages
