"""Measure the curve that a recipe ships with: three seeds, each as a whole process.

    python benchmarks/recipe_curve.py shakespeare-char-fast --machine "2 cores of ..."

Needs the recipe's text (GLASSGPT_ASSETS, where there is no network). Writes the validation losses of every seed, and
the wall time of every process, to `src/glassgpt/curves/NAME.json`, which training then prints its band from. Runs that
are already finished in --runs-dir are read, not repeated.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from glassgpt.config import presets
from glassgpt.training.checkpoint import Run

TEXT = "tinyshakespeare"


def measure(name: str, seed: int, folder: Path, settings: list[str]) -> dict[str, Any]:
    """Train one seed, unless it has been; its run and its seconds."""
    run, timing = Run(folder / f"{name}-{seed}"), folder / f"{name}-{seed}.seconds"
    if not timing.exists():
        command = [sys.executable, "-m", "glassgpt", "train", TEXT, f"preset={name}", f"seed={seed}", *settings]
        began = time.perf_counter()
        subprocess.run([*command, "--name", run.name, "--runs-dir", str(folder)], check=True)
        timing.write_text(f"{time.perf_counter() - began:.1f}", encoding="utf-8")
    losses = {row["step"]: row["val/loss"] for row in run.metrics if "val/loss" in row}
    final = next(row["final/val_loss"] for row in run.metrics if "final/val_loss" in row)
    seconds = float(timing.read_text(encoding="utf-8"))
    print(f"{name} seed {seed}: {final:.4f} nats after {seconds:.0f} s", flush=True)
    return {
        "losses": losses,
        "final": final,
        "seconds": seconds,
        "text_sha256": run.provenance()["text_sha256"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=presets.names())
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that change its speed, not its loss")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPUs", help="what it runs on, in words")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    options = parser.parse_args()
    options.runs_dir.mkdir(parents=True, exist_ok=True)
    found = [measure(options.recipe, seed, options.runs_dir, options.settings) for seed in options.seeds]
    steps = sorted(found[0]["losses"])
    content = {
        "command": f"glassgpt train {TEXT} preset={options.recipe} seed=N, for N in {options.seeds}",
        "machine": options.machine,
        "text_sha256": found[0]["text_sha256"],
        "losses": {step: [round(one["losses"][step], 4) for one in found] for step in steps},
        "final": [round(one["final"], 4) for one in found],
        "seconds": [one["seconds"] for one in found],
    }
    target = Path(__file__).parents[1] / "src" / "glassgpt" / "curves" / f"{options.recipe}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    median, seconds = statistics.median(content["final"]), statistics.median(content["seconds"])
    print(f"median {median:.4f} nats over the whole split, {seconds:.0f} s; written to {target}")


if __name__ == "__main__":
    main()
