"""Measure the validation curve that ships with a recipe: three seeds, each as a whole process.

    python benchmarks/recipe_curve.py shakespeare-char-fast --machine "2 cores of ..."
    python benchmarks/recipe_curve.py --smoke

Needs the recipe's text (GLASSGPT_ASSETS, if there is no network). Writes the validation losses and the wall time of
every seed to `src/glassgpt/config/curves/NAME.json`, from which training prints its expected range. Runs that are
already finished in --runs-dir are read, not repeated.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from glassgpt.config import presets
from glassgpt.files import write_text
from glassgpt.training.checkpoint import Run

TEXT = "tinyshakespeare"
CURVES = Path(__file__).parents[1] / "src" / "glassgpt" / "config" / "curves"
SMOKE_SETTINGS = ["steps=3", "eval_interval=1", "n_layer=1", "n_embd=32", "n_head=2", "block_size=32", "batch_size=4"]
SMOKE_SETTINGS += ["sample_tokens=0", "dtype=float32", "compile=false"]


def measure(name: str, text: str, seed: int, folder: Path, settings: list[str]) -> dict[str, Any]:
    """Train one seed, or read its finished run; return its losses and seconds."""
    run, timing = Run(folder / f"{name}-{seed}"), folder / f"{name}-{seed}.seconds"
    if not timing.exists():
        command = [sys.executable, "-m", "glassgpt", "train", text, f"preset={name}", f"seed={seed}", *settings]
        start = time.perf_counter()
        subprocess.run([*command, "--name", run.name, "--runs-dir", str(folder)], check=True)
        timing.write_text(f"{time.perf_counter() - start:.1f}", encoding="utf-8")
    losses = {row["step"]: row["val/loss"] for row in run.metrics if "val/loss" in row}
    final = next(row["final/val_loss"] for row in run.metrics if "final/val_loss" in row)
    seconds = float(timing.read_text(encoding="utf-8"))
    print(f"{name} seed {seed}: {final:.4f} nats after {seconds:.0f} s", flush=True)
    text_sha256, dtype = run.provenance()["text_sha256"], run.config().runtime.dtype
    return {"losses": losses, "final": final, "seconds": seconds, "text_sha256": text_sha256, "dtype": dtype}


def write_curve(options: argparse.Namespace, text: str, folder: Path, target: Path) -> None:
    """Measure all seeds, and write their curve to a JSON file."""
    rows = [measure(options.recipe, text, seed, folder, options.settings) for seed in options.seeds]
    command = " ".join(["glassgpt train", text, f"preset={options.recipe}", *options.settings, "seed=N"])
    content = {
        "command": f"{command}, for N in {options.seeds}",
        "machine": options.machine,
        "dtype": rows[0]["dtype"],
        "text_sha256": rows[0]["text_sha256"],
        "losses": {step: [round(row["losses"][step], 4) for row in rows] for step in sorted(rows[0]["losses"])},
        "final": [round(row["final"], 4) for row in rows],
        "seconds": [row["seconds"] for row in rows],
    }
    write_text(target, json.dumps(content, indent=1) + "\n")
    median, seconds = statistics.median(content["final"]), statistics.median(content["seconds"])
    print(f"median {median:.4f} nats over the whole validation split, {seconds:.0f} s; written to {target}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", choices=presets.names(), default="shakespeare-char-fast")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that change its speed, not its loss")
    parser.add_argument("--smoke", action="store_true", help="check in seconds that this works: one seed, three steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPUs", help="a description of the machine")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    options = parser.parse_args()
    if options.smoke:
        options.seeds, options.settings = [1], SMOKE_SETTINGS
        with tempfile.TemporaryDirectory() as folder:
            write_curve(options, __file__, Path(folder), Path(folder) / "curve.json")
        return
    options.runs_dir.mkdir(parents=True, exist_ok=True)
    write_curve(options, TEXT, options.runs_dir, CURVES / f"{options.recipe}.json")


if __name__ == "__main__":
    main()
