"""The memory of this machine: whether a model fits, and how many sequences fit at a time."""

import math
import os
from pathlib import Path
from typing import Any

import torch

from glassgpt.config import ModelConfig, RunConfig
from glassgpt.errors import ConfigError
from glassgpt.estimate import SHARE_OF_FREE, count_parameters, largest_micro_batch
from glassgpt.processes import Processes
from glassgpt.runtime import Runtime


def require_memory(config: ModelConfig) -> None:
    """Refuse a model whose weights, gradients and optimiser state cannot fit into this machine.

    Raises:
        ConfigError: with the numbers.
    """
    total = _total_memory()
    parameters = sum(count_parameters(config).values())
    needed = 16 * parameters  # float32 weights, gradients and two moments
    if total is not None and needed > total:
        raise ConfigError(
            f"this model has {parameters:,} parameters and needs {needed / 2**30:,.0f} GiB to be trained; "
            f"this machine has {total / 2**30:,.0f} GiB. Choose a smaller preset"
        )


def free_memory(device: torch.device) -> int:
    """Bytes that this process could allocate now; 4 GiB if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        total = _total_memory()
        return 4 * 2**30 if total is None else total // 2


def _total_memory() -> int | None:
    """Bytes of main memory; None if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def memory_settings(config: RunConfig, bytes_per_weight: int, device: str) -> dict[str, Any]:
    """What :func:`glassgpt.estimate.memory` has to know of a run, beside its model and rows."""
    return {
        "bytes_per_weight": bytes_per_weight,
        "optimizer": config.optim.optimizer,
        "recompute": config.train.activation_checkpointing,
        "device": device,
    }


def choose_micro_batch_size(
    config: RunConfig, runtime: Runtime, processes: Processes | None = None
) -> tuple[RunConfig, str]:
    """Set ``micro_batch_size`` if the user did not, and say why; the batch stays the same."""
    train, world_size = config.train, processes.world_size if processes else 1
    if train.micro_batch_size:
        return config, ""
    share = math.ceil(train.batch_size / world_size)
    free = free_memory(runtime.device) // (world_size if runtime.device.type == "cpu" else 1)
    settings = memory_settings(config, runtime.dtype.itemsize, runtime.device.type)
    rows = largest_micro_batch(config.model, share, int(SHARE_OF_FREE * free), **settings)
    note = f"{rows} sequences at a time fit into the {free / 2**30:.1f} GiB of free memory; a step is still {share}"
    return config.replace("train", micro_batch_size=rows), note if rows < share else ""
