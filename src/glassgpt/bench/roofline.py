"""What a device can do at most, measured on it: matrix products per second, and bytes copied per second."""

import time
from collections.abc import Callable
from functools import partial

import torch

from glassgpt.runtime import synchronise

#: Sides of the square matrices tried. Small ones never reach the peak of a GPU; large ones take a CPU too long.
MATRIX_SIZES = {"cpu": (512, 1024, 2048), "mps": (1024, 2048, 4096), "cuda": (2048, 4096, 8192)}
#: Bytes of the tensor that is copied: more than any cache holds.
COPY_BYTES = {"cpu": 2**28, "mps": 2**28, "cuda": 2**30}


def matrix_peak(device: torch.device, dtype: torch.dtype, seconds: float = 2.0) -> float:
    """FLOP/s of the fastest square matrix product found in about so many seconds.

    A product of two ``[n, n]`` matrices counts as 2 n^3 operations. It is the peak that a program can see, with the
    threads and the precision settings of this process, and not the one on a data sheet. A type that the device has
    no hardware for can be a hundred times slower: then only the smallest size is tried.
    """
    sizes, best = MATRIX_SIZES[device.type], 0.0
    for size in sizes:
        flops = 2 * size**3
        if best and flops / best > seconds / len(sizes):  # one product would take more than this size's share
            break
        # Random numbers: a GPU clocks higher on zeros than on anything that a model multiplies.
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        product = partial(torch.mm, left, right, out=torch.empty_like(left))
        took = fastest(product, device, seconds / len(sizes))
        best = max(best, flops / took)
    return best


def memory_bandwidth(device: torch.device, seconds: float = 1.0) -> float:
    """Bytes/s of the fastest copy of a large tensor, in about so many seconds; what is read and what is written count.

    A processor that first reads the lines it is about to overwrite moves half as much again, which is not counted.
    """
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)  # float32
    target = torch.zeros_like(source)  # written once: memory that is only promised is slow at its first touch
    took = fastest(lambda: target.copy_(source), device, seconds)
    return 2 * source.numel() * source.element_size() / took


def fastest(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest of several calls, after one to warm up, in about so many seconds.

    On a GPU ten calls are timed together, so that starting them does not count. Work that is slow already in its
    first call is not repeated.
    """
    together = 1 if device.type == "cpu" else 10
    began = time.perf_counter()
    work()
    synchronise(device)
    best = time.perf_counter() - began
    if best > seconds:
        return best
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        for _ in range(together):
            work()
        synchronise(device)
        best = min(best, (time.perf_counter() - start) / together)
    return best
