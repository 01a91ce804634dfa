"""Report the cost of a planned run as plain numbers: parameters, FLOPs, memory against context, speed, time."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glassgpt.config import RunConfig
from glassgpt.errors import ConfigError
from glassgpt.estimate import (
    SHARE_OF_FREE,
    Memory,
    count_parameters,
    flops_per_token,
    format_bytes,
    largest_micro_batch,
    memory,
    optimizer_flops,
)
from glassgpt.planning.budget import chat_validation_seconds, validation_seconds
from glassgpt.planning.memory import free_memory, memory_settings, require_memory
from glassgpt.planning.run_plan import RunPlan
from glassgpt.runtime import resolve
from glassgpt.training.optim import ITERATIONS
from glassgpt.weights.adapter import count_lora_parameters


@dataclass(frozen=True)
class Machine:
    """Where a run would compute: a device, the bytes of a weight, and the free memory if the device is here."""

    device: str
    bytes_per_weight: int
    free: int | None

    @classmethod
    def of(cls, config: RunConfig, *, required: bool) -> "Machine":
        """The machine that a configuration describes.

        Raises:
            ConfigError: if the device is required and not here.
        """
        try:
            device = resolve(config.runtime).device
            kind, free = device.type, free_memory(device)
        except ConfigError:
            if required:
                raise
            kind, free = config.runtime.device.partition(":")[0], None
        short = config.runtime.dtype in ("bfloat16", "float16") or (config.runtime.dtype == "auto" and kind == "cuda")
        return cls(kind, 2 if short else 4, free)

    def memory(self, config: RunConfig, rows: int) -> Memory:
        """The memory of training with so many rows per forward pass."""
        return memory(config.model, rows, **self._settings(config))

    def micro_batch_size(self, config: RunConfig) -> int:
        """Rows per forward pass: as the user set, or as training would choose."""
        train = config.train
        if train.micro_batch_size or self.free is None:
            return train.micro_batch_size or train.batch_size
        return largest_micro_batch(
            config.model, train.batch_size, int(SHARE_OF_FREE * self.free), **self._settings(config)
        )

    def _settings(self, config: RunConfig) -> dict[str, Any]:
        return memory_settings(config, self.bytes_per_weight, self.device)


def memory_problem(config: RunConfig, machine: Machine) -> str:
    """Why this machine cannot train the model, even one sequence at a time; empty if it can."""
    needed = machine.memory(config, 1).total
    try:
        require_memory(config.model)
    except ConfigError as error:
        return f"{error}. Planned by arithmetic only"
    if machine.free is None or needed <= machine.free:
        return ""
    return (
        f"even one sequence at a time needs {format_bytes(needed)}, and {format_bytes(machine.free)} are free here: "
        "planned by arithmetic only"
    )


def cost_report(plan: RunPlan, machine: Machine, notes: Sequence[str]) -> dict[str, Any]:
    """All numbers, as JSON values; bytes, seconds and FLOPs are plain numbers."""
    config = plan.config
    config = config.replace("model", block_size=config.tune.max_length or config.model.block_size)
    model = config.model
    groups, flops = count_parameters(model), flops_per_token(model)
    rows = machine.micro_batch_size(config)
    contexts = sorted({max(1, round(model.block_size * factor)) for factor in (0.25, 0.5, 1, 2, 4)})
    return {
        "preset": config.preset,
        "config": plan.config.to_dict(),
        "parameters": groups | {"total": sum(groups.values())},
        "lora_parameters": count_lora_parameters(model, config.tune),
        "flops_per_token": dataclasses.asdict(flops) | {"forward": flops.forward, "training": _training_flops(config)},
        "optimizer_flops_per_step": optimizer_flops(model, config.optim.optimizer, ITERATIONS),
        "device": machine.device,
        "bytes_per_weight": machine.bytes_per_weight,
        "free_bytes": machine.free,
        "micro_batch_size": rows,
        "memory": [_memory_row(config, machine, rows, context) for context in contexts],
        "measured": _measured_values(plan),
        "notes": list(notes),
    }


def _training_flops(config: RunConfig) -> int:
    """FLOPs per token of forward and backward; with LoRA, frozen weights need no product for their own gradient."""
    flops = flops_per_token(config.model)
    return 2 * flops.forward if config.tune.method == "lora" else flops.training


def _memory_row(config: RunConfig, machine: Machine, rows: int, context: int) -> dict[str, Any]:
    """The memory of the model with another context."""
    longer = config.replace("model", block_size=context)
    needed = machine.memory(longer, rows)
    row = {"context": context, **dataclasses.asdict(needed), "total": needed.total}
    row["training_flops_per_token"] = _training_flops(longer)
    row["largest_micro_batch"] = None
    if machine.free is not None:
        fits = machine.memory(longer, 1).total <= machine.free
        row["largest_micro_batch"] = (
            machine.micro_batch_size(longer.replace("train", micro_batch_size=0)) if fits else 0
        )
    return row


def _measured_values(plan: RunPlan) -> dict[str, Any] | None:
    """Speed and time; None if nothing was timed."""
    if plan.timing is None or plan.runtime is None:
        return None
    config, timing, train = plan.config, plan.timing, plan.config.train
    tokens = config.tokens_per_step
    flops = tokens * _training_flops(config)
    flops += optimizer_flops(config.model, config.optim.optimizer, ITERATIONS)
    validation = 0.0
    if plan.stream:
        validation = validation_seconds(config, plan.stream, timing, train.steps)
    elif plan.chats:
        validation = chat_validation_seconds(config, plan.chats, timing, train.steps)
    return {
        **plan.runtime.resolved(),
        "tokens_per_second": plan.tokens_per_second,
        "seconds_per_step": timing.seconds_per_step,
        "tokens_per_step": plan.tokens_per_step,
        "flops_per_second": flops / timing.seconds_per_step,
        "steps": train.steps,
        "timed": plan.timed,
        "training_seconds": train.steps * timing.seconds_per_step,
        "validation_seconds": validation,
    }
