"""``glassgpt runs list | show | compare``, ``plot`` and ``presets``."""

from pathlib import Path
from typing import Any

import typer

from glassgpt.cli.arguments import JSON_OPTION, PICTURES, RUNS_OPTION, check_out, verb_group
from glassgpt.cli.printing.output import print_json, print_table, print_text, say
from glassgpt.errors import GlassError

app = verb_group("runs", "List, show and compare runs.")


def presets(json: bool = JSON_OPTION) -> None:
    """List every preset with its numbers."""
    from glassgpt.config import presets
    from glassgpt.estimate import count_parameters

    rows: list[dict[str, Any]] = []
    for name in presets.names():
        preset = presets.get(name)
        keys = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
        row = {"name": name, "parameters": sum(count_parameters(preset.model).values())}
        row |= {key: getattr(preset.model, key) for key in keys}
        rows.append(row | {"description": preset.description})
    if json:
        print_json(rows)
        return
    cells = [[f"{value:,}" if key == "parameters" else str(value) for key, value in row.items()] for row in rows]
    print_table(list(rows[0]), cells, right=range(1, 7))
    print_text("\nauto, the default of `glassgpt train`, chooses a size for the text, the machine and the time.")


@app.command("list")
def list_runs(folder: Path = RUNS_OPTION, json: bool = JSON_OPTION) -> None:
    """List the runs, oldest first, with their losses in nats per token; a damaged one is listed as broken."""
    from glassgpt import api
    from glassgpt.glass.runs import summarize_run

    rows: list[dict[str, Any]] = []
    for run in api.list_runs(folder):
        try:
            rows.append(summarize_run(run))
        except GlassError as error:
            say(f"warning: {error}")
            rows.append({"name": run.name, "source": "(broken)", "broken": str(error)})
    if json:
        print_json(rows)
    elif not rows:
        say(f"no runs in {folder}/ yet; `glassgpt quickstart` trains one")
    else:
        keys = ["name", "source", "parameters", "steps", "best validation", "whole split", "bits per byte"]
        print_table(keys, [[_cell(row.get(key)) for key in keys] for row in rows], right=range(2, 7))


@app.command()
def show(name: str = typer.Argument(..., metavar="RUN"), folder: Path = RUNS_OPTION, json: bool = JSON_OPTION) -> None:
    """Show one run: its losses, its checkpoints, and its full configuration."""
    from glassgpt import api
    from glassgpt.glass.runs import summarize_run

    run = api.find_run(name, folder)
    summary = summarize_run(run)
    checkpoints = [path.name for path in (run.best, run.last, *run.numbered()) if path.exists()]
    kept = list(run.kept())
    if json:
        print_json(summary | {"checkpoints": checkpoints, "kept": kept, "config": run.config().to_dict()})
        return
    values = summary | {"checkpoints": ", ".join(checkpoints), "kept": _shortened(kept)}
    print_table([], [[key, _cell(value)] for key, value in values.items()])
    print_text("\n" + (run.path / "run.toml").read_text(encoding="utf-8").rstrip("\n"))


@app.command()
def compare(
    names: list[str] = typer.Argument(..., metavar="RUN"), folder: Path = RUNS_OPTION, json: bool = JSON_OPTION
) -> None:
    """Compare runs: their losses, and the settings in which they differ."""
    from glassgpt import api
    from glassgpt.glass.runs import differing_settings, summarize_run

    runs = [api.find_run(name, folder) for name in names]
    summaries, differing = [summarize_run(run) for run in runs], differing_settings(runs)
    if json:
        print_json({"runs": summaries, "differ": differing})
        return
    results = ["parameters", "steps", "best validation", "whole split", "bits per byte", "seconds"]
    rows = [[key, *(_cell(summary[key]) for summary in summaries)] for key in results]
    rows += [[key, *(_cell(value) for value in values)] for key, values in differing.items()]
    print_table(["", *(run.name for run in runs)], rows, right=range(1, len(runs) + 1))


def plot(
    names: list[str] = typer.Argument(..., metavar="RUN", help="Runs to draw, on one figure."),
    out: Path = typer.Option(None, "--out", "-o", help="PNG or SVG to write; by default curve.png in the first run."),
    folder: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Draw the loss curves of runs, with baselines, to PNG or SVG."""
    from glassgpt import api
    from glassgpt.glass.curves import draw_curves

    runs = [api.find_run(name, folder) for name in names]
    target = out or runs[0].path / "curve.png"
    check_out(target, suffix=PICTURES)
    draw_curves(runs, target)
    if json:
        print_json({"path": str(target)})
    else:
        print(target)


def _shortened(steps: list[int]) -> str:
    """Name the steps of kept checkpoints; of many, the first three and the last."""
    if not steps:
        return "-"
    shown = steps if len(steps) <= 5 else [*steps[:3], "...", steps[-1]]
    return f"{len(steps)} in kept/: steps {', '.join(map(str, shown))}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-3 < abs(value) < 1e4 or value == 0 else f"{value:g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
