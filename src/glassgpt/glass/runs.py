"""Summarize runs, and compare their settings."""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from glassgpt.training.checkpoint import Run


def summarize_run(run: Run) -> dict[str, Any]:
    """Return a run's size, steps, losses and time. A loss that was not measured yet is None."""
    rows = run.metrics
    final: dict[str, Any] = next((row for row in reversed(rows) if "final/val_loss" in row), {})
    names = ("val/loss", "val/ema_loss", "time/elapsed_s")
    losses, ema_losses, seconds = ([row[key] for row in rows if row.get(key) is not None] for key in names)
    config = run.config()
    parameters = None
    weights = run.best / "model.safetensors"
    with contextlib.suppress(OSError, SafetensorError), safe_open(weights, framework="np") as file:  # missing, damaged
        parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return {
        "name": run.name,
        "source": Path(config.data.source).name,
        "preset": config.preset,
        "parameters": parameters,
        "steps": max((row["step"] for row in rows), default=0),
        "best validation": min(losses + ema_losses, default=None),
        "whole split": final.get("final/val_loss"),
        "bits per byte": final.get("final/val_bpb"),
        "seconds": max(seconds, default=None),
    }


def differing_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the settings that are not the same in all runs: by name, the value of each run."""
    configs = [_flatten(run.config().to_dict()) for run in runs]
    settings = {key: [config[key] for config in configs] for key in configs[0]}
    return {key: values for key, values in settings.items() if len(set(map(str, values))) > 1}


def _flatten(config: dict[str, Any]) -> dict[str, Any]:
    sections = {section: values for section, values in config.items() if isinstance(values, dict)}
    settings = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    return {"preset": config["preset"], **settings}
