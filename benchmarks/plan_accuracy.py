"""What `glassgpt plan` foretells beside what training then does: tokens per second and memory, on five presets.

    python benchmarks/plan_accuracy.py [--steps 25] [--rounds 1] [--json FILE] [PRESET ...]

Needs the `tinyshakespeare` asset (GLASSGPT_ASSETS, where there is no network), or --text. For each preset in turn, a
plan and then a short run, each as a whole process with the same settings; nothing else should run on the machine.
Planned is what the plan prints; measured is the median of the run's own steps, validation and saving apart.

Memory (Linux) is what a process occupies at the peak of three steps, beyond what it did with the libraries warmed up;
once as it is, and once with MALLOC_TOP_PAD_=0, which makes glibc give every large block back. The difference is
free blocks that its allocator keeps, not tensors. About ten minutes on two CPU cores, nearly all medium-modern's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from glassgpt import api, assets
from glassgpt.config import build, presets
from glassgpt.data.batch import Batch
from glassgpt.estimate import memory
from glassgpt.model import GPT
from glassgpt.training.objective import next_token_loss
from glassgpt.training.optim import Optimizers

PRESETS = ("tiny", "tiny-modern", "small", "small-modern", "medium-modern")
#: A plan that is off by more than this share of what is measured is wrong.
TOLERANCE = 0.15
#: So that the run is its steps and little else: every step is logged, and no sample is drawn.
QUIET = ("log_interval=1", "sample_tokens=0", "eval_tokens=5000", "max_val_tokens=5000", "keep_checkpoints=0")


def compare(preset: str, text: Path, steps: int) -> dict[str, Any]:
    """Plan a run, then run it."""
    settings = [str(text), f"preset={preset}", f"steps={steps}", f"eval_interval={steps}", *QUIET]
    planned = glassgpt("plan", *settings)["measured"]
    assert planned is not None, f"{preset} does not fit into this machine's memory"
    with tempfile.TemporaryDirectory() as folder:
        run = api.find_run(glassgpt("train", *settings, "--runs-dir", folder)["run"])
        speeds = [row["perf/tok_per_s"] for row in run.metrics if "perf/tok_per_s" in row]
        runtime = run.config().runtime
    same = all(planned[name] == getattr(runtime, name) for name in ("device", "dtype", "compile"))
    measured = statistics.median(speeds)
    return {
        "preset": preset,
        "planned": planned["tokens_per_second"],
        "measured": measured,
        "ratio": planned["tokens_per_second"] / measured,
        "slowest": min(speeds),
        "fastest": max(speeds),
        "computed": f"{runtime.device}, {runtime.dtype}" + ("" if same else " (not as planned)"),
    }


def compare_memory(preset: str) -> dict[str, Any]:
    """Planned bytes, and those occupied with and without glibc's own ideas of what to keep."""
    occupied = {}
    for name, environment in (("occupied", {}), ("tensors", {"MALLOC_TOP_PAD_": "0"})):
        command = [sys.executable, __file__, "--occupied", preset]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
        occupied[name], planned = (int(word) for word in done.stdout.split())
    return {"preset": preset, "planned": planned, **occupied, "ratio": planned / occupied["tensors"]}


def occupy(preset: str) -> None:
    """Print what three steps of a preset occupy in this process at their peak, and what is planned, in bytes."""
    for warming in ("tiny", "tiny-modern"):
        take_steps(warming, 1, at_most=1)
    before = resident("VmRSS")
    rows = take_steps(preset, 3)
    print(resident("VmHWM") - before, memory(presets.get(preset).model, rows).total)


def take_steps(preset: str, steps: int, at_most: int = 8192) -> int:
    """Train on random tokens, on at most so many of them at a time, but one row; returns the rows."""
    config = build(preset, [presets.get(preset).layer])
    rows = max(1, min(config.train.batch_size, at_most // config.model.block_size))
    model = GPT(config.model)
    model.init_weights(0)
    optimizers = Optimizers(model, config.optim)
    ids = torch.randint(config.model.vocab_size, (rows, config.model.block_size + 1))
    for _ in range(steps):
        (next_token_loss(model, Batch(ids[:, :-1], ids[:, 1:])) / ids.numel()).backward()
        optimizers.step(0.0)
        optimizers.zero_grad()
    return rows


def resident(name: str) -> int:
    """Bytes that this process occupies (VmRSS), or has at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def glassgpt(verb: str, *arguments: str) -> dict[str, Any]:
    """The JSON that a verb prints, run as a process of its own."""
    command = [sys.executable, "-m", "glassgpt", verb, *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=f"by default {' '.join(PRESETS)}")
    parser.add_argument("--text", type=Path, help="a text to train on; by default tinyshakespeare")
    parser.add_argument("--steps", type=int, default=25, help="of each run")
    parser.add_argument("--rounds", type=int, default=1, help="times to go through all presets")
    parser.add_argument("--json", type=Path, help="file to write every figure to")
    parser.add_argument("--occupied", metavar="PRESET", help=argparse.SUPPRESS)  # how it calls itself
    options = parser.parse_args()
    if options.occupied:
        return occupy(options.occupied)
    text = (options.text or assets.path("tinyshakespeare")).absolute()
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else "")
    print(f"{'preset':<16}{'planned':>10}{'measured':>10}{'ratio':>7}   slowest to fastest step, tokens/s")
    rows = []
    for _ in range(options.rounds):
        for preset in options.presets or PRESETS:
            row = compare(preset, text, options.steps)
            rows.append(row)
            spread = f"{row['slowest']:,.0f} to {row['fastest']:,.0f}"
            figures = f"{row['planned']:>10,.0f}{row['measured']:>10,.0f}{row['ratio']:>7.2f}"
            print(f"{preset:<16}{figures}   {spread}; {row['computed']}", flush=True)
    held = [compare_memory(preset) for preset in options.presets or PRESETS] if sys.platform == "linux" else []
    print(f"\n{'preset':<16}{'planned':>10}{'tensors':>10}{'ratio':>7}   MiB; occupied by the process")
    for row in held:
        planned, tensors, occupied = (row[name] / 2**20 for name in ("planned", "tensors", "occupied"))
        print(
            f"{row['preset']:<16}{planned:>10,.0f}{tensors:>10,.0f}{row['ratio']:>7.2f}   {occupied:,.0f}", flush=True
        )
    for name, found in (("speeds", rows), ("memories", held)):
        good = sum(abs(row["ratio"] - 1) <= TOLERANCE for row in found)
        print(f"{good} of {len(found)} {name} within {TOLERANCE:.0%} of what was measured")
    if options.json:
        content = {"steps": options.steps, "speed": rows, "memory": held}
        options.json.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
