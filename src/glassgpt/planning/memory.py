"""The memory of this machine: whether a model fits, and how many sequences fit at a time."""

import math
from pathlib import Path
from typing import Any

import psutil
import torch

from glassgpt.config import ModelConfig, RunConfig
from glassgpt.errors import ConfigError
from glassgpt.estimate import SHARE_OF_FREE, count_parameters, format_bytes, largest_micro_batch
from glassgpt.processes import Processes
from glassgpt.runtime import Runtime
from glassgpt.weights.adapter import count_lora_parameters

#: Where a control group tells its memory: folder, limit, usage, and the key in memory.stat of files that were read.
_CGROUP_1 = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
_CGROUP_2 = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"


def require_memory(config: ModelConfig) -> None:
    """Refuse a model whose weights, gradients and optimiser state cannot fit into this machine.

    Raises:
        ConfigError: with the numbers.
    """
    total = _total_memory()
    parameters = sum(count_parameters(config).values())
    needed = 16 * parameters  # float32 weights, gradients and two moments
    if needed > total:
        raise ConfigError(
            f"this model has {parameters:,} parameters and needs {format_bytes(needed)} to be trained; "
            f"this machine has {format_bytes(total)}. Choose a smaller preset"
        )


def free_memory(device: torch.device) -> int:
    """Bytes that this process could allocate now, within the limits of its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([psutil.virtual_memory().available, *(left for _, left in _container_limits())])


def _total_memory() -> int:
    """Bytes of main memory, within the limits of the container."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _container_limits())])


def _container_limits(root: Path = Path("/")) -> list[tuple[int, int]]:
    """Read the memory limits of this process's control groups (cgroups, versions 1 and 2) and of those around them.

    Returns:
        For each, the limit and how much of it is left, in bytes. The cache of files that were read counts as left: the
        kernel gives it up.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, limit_file, usage_file, cache = _CGROUP_1 if controllers else _CGROUP_2
        innermost = root / mount / path.lstrip("/")
        for folder in (innermost, *innermost.parents):
            try:
                limit, used = (int((folder / name).read_text(encoding="ascii")) for name in (limit_file, usage_file))
                statistics = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
                cached = sum(int(line.split()[1]) for line in statistics if line.startswith(f"{cache} "))
            except (OSError, ValueError):  # no such group, or no limit: "max"
                continue
            found.append((limit, max(0, limit - used + cached)))
    return found


def memory_settings(config: RunConfig, bytes_per_weight: int, device: str) -> dict[str, Any]:
    """What :func:`glassgpt.estimate.memory` has to know of a run, beside its model and rows."""
    return {
        "bytes_per_weight": bytes_per_weight,
        "optimizer": config.optim.optimizer,
        "recompute": config.train.activation_checkpointing,
        "device": device,
        "attention": "unfused" if config.runtime.attention == "unfused" else "fused",
        "lora": count_lora_parameters(config.model, config.tune),
        "ema": config.optim.ema > 0,
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
    note = f"{rows} sequences at a time fit into the {format_bytes(free)} of free memory; a step is still {share}"
    return config.replace("train", micro_batch_size=rows), note if rows < share else ""
