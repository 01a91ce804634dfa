"""Measure the peak of a device: matrix product FLOP/s and memory bandwidth. And a stopwatch for parts of a step."""

import time
from collections.abc import Callable
from functools import partial

import torch

from glassgpt.runtime import synchronise

#: Sizes of the square matrices. Small ones do not reach the peak of a GPU; large ones are too slow on a CPU.
MATRIX_SIZES = {"cpu": (512, 1024, 2048), "mps": (1024, 2048, 4096), "cuda": (2048, 4096, 8192)}
#: Size of the tensor that is copied or read, in bytes: larger than any cache.
COPY_BYTES = {"cpu": 2**28, "mps": 2**28, "cuda": 2**30}


def matrix_peak(device: torch.device, dtype: torch.dtype, seconds: float = 2.0) -> float:
    """Measure the FLOP/s of the fastest square matrix product, in about ``seconds``.

    A product of two ``[n, n]`` matrices counts as 2 n^3 operations. The result is the peak that a program can reach
    with the threads and precision settings of this process, not the one on a data sheet. A dtype without hardware
    support can be a hundred times slower: then only the smallest size is measured.
    """
    sizes, best = MATRIX_SIZES[device.type], 0.0
    for size in sizes:
        flops = 2 * size**3
        if best and flops / best > seconds / len(sizes):  # one product would exceed the time for this size
            break
        # Random numbers: on zeros a GPU uses less power and clocks higher.
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        product = partial(torch.mm, left, right, out=torch.empty_like(left))
        best = max(best, flops / fastest(product, device, seconds / len(sizes)))
    return best


def memory_bandwidth(device: torch.device, seconds: float = 1.0) -> float:
    """Measure the bytes/s, read plus written, of the fastest copy of a large tensor, in about ``seconds``.

    Many CPUs also read each cache line before they overwrite it; that third transfer is not counted.
    """
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)  # float32
    target = torch.zeros_like(source)  # touch every page before the timing
    return 2 * source.nbytes / fastest(lambda: target.copy_(source), device, seconds)


def read_bandwidth(device: torch.device, seconds: float = 1.0) -> float:
    """Measure the bytes/s at which a large tensor is read, by its sum, with all threads, in about ``seconds``."""
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)  # float32
    return source.nbytes / fastest(source.sum, device, seconds)


def fastest(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Time a function repeatedly for about ``seconds`` and return the shortest time of a call.

    On a GPU ten calls are timed together, which hides the time of launching them. If the first call already takes
    longer than ``seconds``, its time is returned.
    """
    calls = 1 if device.type == "cpu" else 10
    first_start = time.perf_counter()
    work()
    synchronise(device)
    best = time.perf_counter() - first_start
    while best <= seconds and time.perf_counter() - first_start < seconds:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        synchronise(device)
        best = min(best, (time.perf_counter() - start) / calls)
    return best
