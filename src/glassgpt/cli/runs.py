"""``glassgpt presets``, ``runs list | show | compare`` and ``plot``: what there is, and how it went."""

import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glassgpt.cli.common import JSON_OPTION, RUNS_OPTION, print_json, print_table
from glassgpt.errors import GlassError

if TYPE_CHECKING:
    from glassgpt.training.checkpoint import Run

runs = typer.Typer(name="runs", help="What has been trained.", no_args_is_help=True, rich_markup_mode=None)


def presets(json: bool = JSON_OPTION) -> None:
    """List every preset with its numbers."""
    from glassgpt.config import presets
    from glassgpt.model import meta_model

    rows: list[dict[str, Any]] = []
    for name in presets.names():
        preset = presets.get(name)
        model = preset.model
        parameters = meta_model(model).num_parameters()
        rows.append(
            {
                "name": name,
                "parameters": parameters,
                "n_layer": model.n_layer,
                "n_head": model.n_head,
                "n_embd": model.n_embd,
                "block_size": model.block_size,
                "vocab_size": model.vocab_size,
                "description": preset.description,
            }
        )
    if json:
        print_json(rows)
        return
    cells = [[f"{value:,}" if key == "parameters" else str(value) for key, value in row.items()] for row in rows]
    print_table(list(rows[0]), cells, right=range(1, 7))
    print("\nauto, the default of `glassgpt train`, chooses a modern shape for the text, the machine and the time.")


@runs.command("list")
def list_runs(folder: Path = RUNS_OPTION, json: bool = JSON_OPTION) -> None:
    """List the runs, oldest first, with their losses in nats per token."""
    from glassgpt import api
    from glassgpt.cli.common import say

    rows = []
    for run in api.list_runs(folder):
        try:
            rows.append(_summary(run))
        except GlassError as error:
            say(f"warning: {error}")
    if json:
        print_json(rows)
    elif not rows:
        say(f"no runs in {folder}/ yet; `glassgpt quickstart` makes one")
    else:
        keys = ["name", "source", "parameters", "steps", "best validation", "whole split", "bits per byte"]
        print_table(keys, [[_cell(row[key]) for key in keys] for row in rows], right=range(2, 7))


@runs.command()
def show(run: str = typer.Argument(..., metavar="RUN"), folder: Path = RUNS_OPTION, json: bool = JSON_OPTION) -> None:
    """Show one run: its losses, its checkpoints, and its whole configuration."""
    from glassgpt import api

    found = api.find_run(run, folder)
    summary = _summary(found)
    checkpoints = [path.name for path in (found.best, found.last, *found.numbered()) if path.exists()]
    if json:
        print_json(summary | {"checkpoints": checkpoints, "config": found.config().to_dict()})
        return
    print_table(["", ""], [[key, _cell(value)] for key, value in summary.items()])
    print(f"checkpoints      {', '.join(checkpoints)}\n")
    print((found.path / "run.toml").read_text(encoding="utf-8"), end="")


@runs.command()
def compare(
    names: list[str] = typer.Argument(..., metavar="RUN"), folder: Path = RUNS_OPTION, json: bool = JSON_OPTION
) -> None:
    """Compare runs: their losses, and the settings in which they differ."""
    from glassgpt import api

    found = [api.find_run(name, folder) for name in names]
    summaries = [_summary(run) for run in found]
    settings = [_flat(run.config().to_dict()) for run in found]
    keys = [key for key in settings[0] if len({str(values[key]) for values in settings}) > 1]
    differing = {key: [values[key] for values in settings] for key in keys}
    if json:
        print_json({"runs": summaries, "differ": differing})
        return
    results = ["parameters", "steps", "best validation", "whole split", "bits per byte", "seconds"]
    rows = [[key, *(_cell(summary[key]) for summary in summaries)] for key in results]
    rows += [[key, *(_cell(value) for value in values)] for key, values in differing.items()]
    print_table(["", *(run.name for run in found)], rows, right=range(1, len(found) + 1))


def plot(
    names: list[str] = typer.Argument(..., metavar="RUN", help="Runs to draw, on one figure."),
    out: Path = typer.Option(None, "--out", "-o", help="PNG to write; by default curve.png in the first run."),
    folder: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Draw training and validation curves with the baselines, to a PNG."""
    from glassgpt import api
    from glassgpt.glass.curves import draw_curves

    found = [api.find_run(name, folder) for name in names]
    target = out or found[0].path / "curve.png"
    draw_curves(found, target)
    if json:
        print_json({"path": str(target)})
    else:
        print(target)


def _summary(run: "Run") -> dict[str, Any]:
    """The numbers of a run. Losses are None where there is none yet."""
    from safetensors import SafetensorError, safe_open

    rows = run.metrics
    final: dict[str, Any] = next((row for row in reversed(rows) if "final/val_loss" in row), {})
    losses = [row["val/loss"] for row in rows if row.get("val/loss") is not None]
    config = run.config()
    parameters = None
    weights = run.best / "model.safetensors"
    with contextlib.suppress(OSError, SafetensorError), safe_open(weights, framework="np") as file:  # or none yet
        parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return {
        "name": run.name,
        "source": Path(config.data.source).name,
        "preset": config.preset,
        "parameters": parameters,
        "steps": max((row["step"] for row in rows), default=0),
        "best validation": min(losses, default=None),
        "whole split": final.get("final/val_loss"),
        "bits per byte": final.get("final/val_bpb"),
        "seconds": max((row["time/elapsed_s"] for row in rows if "time/elapsed_s" in row), default=None),
    }


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    flat = {"preset": config["preset"]}
    for section, values in config.items():
        if isinstance(values, dict):
            flat |= {f"{section}.{key}": value for key, value in values.items()}
    return flat


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-3 < abs(value) < 1e4 or value == 0 else f"{value:g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
