"""Compare `glassgpt plan` with training: tokens per second and memory, on five presets.

    python benchmarks/plan_accuracy.py [--steps 25] [--rounds 1] [--json FILE] [PRESET ...]
    python benchmarks/plan_accuracy.py --smoke

Needs the `tinyshakespeare` asset (GLASSGPT_ASSETS, if there is no network), or --text. For each preset in turn, it runs
a plan and then a short training, each as a whole process with the same settings. Nothing else should run on the
machine. Planned is the speed that the plan prints; measured is the median over the steps of the run, without validating
and saving.

Memory (Linux) is the peak of a process in three training steps, minus its memory before them, with the libraries
already warmed up. It is measured twice: as usual, and with MALLOC_TOP_PAD_=0, which makes glibc return every large
block. The difference is free blocks that its allocator keeps, not tensors. The whole takes about ten minutes on two CPU
cores, most of it for medium-modern.
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
#: A plan is accurate if it differs from the measurement by at most this fraction.
TOLERANCE = 0.15
#: Log every step, and keep everything else short.
SETTINGS = ("log_interval=1", "sample_tokens=0", "eval_tokens=5000", "max_val_tokens=5000", "keep_checkpoints=0")


def compare(preset: str, text: Path, steps: int) -> dict[str, Any]:
    """Plan a run, then run it, and compare the tokens per second."""
    settings = [str(text), f"preset={preset}", f"steps={steps}", f"eval_interval={steps}", *SETTINGS]
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
    """Compare the estimated bytes with those in use, with and without the free blocks that glibc keeps."""
    occupied = {}
    for name, environment in (("occupied", {}), ("tensors", {"MALLOC_TOP_PAD_": "0"})):
        command = [sys.executable, __file__, "--worker", preset]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
        occupied[name], planned = (int(word) for word in done.stdout.split())
    return {"preset": preset, "planned": planned, **occupied, "ratio": planned / occupied["tensors"]}


def worker(preset: str) -> None:
    """Print the peak memory of three steps of a preset in this process, and the estimate, in bytes."""
    for warm_up in ("tiny", "tiny-modern"):
        take_steps(warm_up, 1, max_tokens=1)
    before = resident("VmRSS")
    rows = take_steps(preset, 3)
    print(resident("VmHWM") - before, memory(presets.get(preset).model, rows).total)


def take_steps(preset: str, steps: int, max_tokens: int = 8192) -> int:
    """Train on random tokens; return the micro-batch size: at least 1, and at most ``max_tokens`` / context."""
    config = build(preset, [presets.get(preset).layer])
    rows = max(1, min(config.train.batch_size, max_tokens // config.model.block_size))
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
    """The resident memory of this process in bytes: now (VmRSS), or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def glassgpt(verb: str, *arguments: str) -> dict[str, Any]:
    """Run a verb in a new process, and parse the JSON that it prints."""
    command = [sys.executable, "-m", "glassgpt", verb, *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def show_speed(row: dict[str, Any]) -> None:
    spread = f"{row['slowest']:,.0f} to {row['fastest']:,.0f}"
    figures = f"{row['planned']:>10,.0f}{row['measured']:>10,.0f}{row['ratio']:>7.2f}"
    print(f"{row['preset']:<16}{figures}   {spread}; {row['computed']}", flush=True)


def show_memory(row: dict[str, Any]) -> None:
    planned, tensors, occupied = (row[name] / 2**20 for name in ("planned", "tensors", "occupied"))
    print(f"{row['preset']:<16}{planned:>10,.0f}{tensors:>10,.0f}{row['ratio']:>7.2f}   {occupied:,.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=f"by default {' '.join(PRESETS)}")
    parser.add_argument("--smoke", action="store_true", help="check in seconds that this works: one preset, few steps")
    parser.add_argument("--text", type=Path, help="a text to train on; by default tinyshakespeare")
    parser.add_argument("--steps", type=int, default=25, help="of each run")
    parser.add_argument("--rounds", type=int, default=1, help="times to go through all presets")
    parser.add_argument("--json", type=Path, help="file to write every figure to")
    parser.add_argument("--worker", metavar="PRESET", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker)
        return
    if options.smoke:
        options.presets, options.text, options.steps, options.rounds = ["tiny"], Path(__file__), 3, 1
    names, text = options.presets or PRESETS, (options.text or assets.path("tinyshakespeare")).absolute()
    print(f"{os.cpu_count()} CPUs" + (f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""))
    print(f"{'preset':<16}{'planned':>10}{'measured':>10}{'ratio':>7}   slowest to fastest step, tokens/s")
    speeds, memories = [], []
    for preset in names * options.rounds:
        speeds.append(compare(preset, text, options.steps))
        show_speed(speeds[-1])
    if sys.platform == "linux":
        print(f"\n{'preset':<16}{'planned':>10}{'tensors':>10}{'ratio':>7}   MiB; peak of the process")
        for preset in names:
            memories.append(compare_memory(preset))
            show_memory(memories[-1])
    for name, rows in (("speeds", speeds), ("memories", memories)):
        accurate = sum(abs(row["ratio"] - 1) <= TOLERANCE for row in rows)
        print(f"{accurate} of {len(rows)} {name} within {TOLERANCE:.0%} of the measurement")
    if options.json:
        content = {"steps": options.steps, "speed": speeds, "memory": memories}
        options.json.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
