"""glassgpt and nanoGPT on tinyshakespeare: tokens per second on the same model, and time to the same loss.

    python benchmarks/time_to_loss.py --nanogpt CHECKOUT
    python benchmarks/time_to_loss.py --smoke

Needs a checkout of nanoGPT and the `tinyshakespeare` asset (GLASSGPT_ASSETS, if there is no network). The programs run
in turn on this machine, each as a whole process, so imports, validation and saving count. Both train on the first 90 %
of the text. The validation loss of both is computed over the whole last 10 % by one evaluator, glassgpt's. Each round
has three runs:

peer     the CPU command of nanoGPT's README: 4 layers, 4 heads, 128 wide, context 64, batch 12, 2000 iterations
same     glassgpt on that model and batch, with AdamW, for the same number of steps
recipe   glassgpt's own recipe for a loss of 1.88 or less
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glassgpt import api, assets, data
from glassgpt.config import DataConfig
from glassgpt.loss import evaluate
from throughput import load_module

TARGET = 1.88
SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12}
PEER_SETTINGS = SHAPE | {"eval_iters": 20, "log_interval": 1, "device": "cpu", "compile": False, "dropout": 0.0}
#: The same model and batch with the same optimiser and schedule.
SAME = ["preset=small", *(f"{key}={value}" for key, value in SHAPE.items()), "optimizer=adamw"]
SAME += ["adamw_learning_rate=1e-3", "warmup_steps=100", "eval_interval=250", "sample_tokens=0", "keep_checkpoints=0"]
#: The fastest known recipe for this loss; see RESULTS.md for how it was found.
RECIPE = ["preset=small-modern", "n_layer=3", "block_size=64", "batch_size=32", "steps=105"]
RECIPE += ["adamw_learning_rate=1.5e-2", "muon_learning_rate=0.02", "schedule=trapezoid", "decay_fraction=0.7"]
RECIPE += ["min_lr_ratio=0.02", "eval_interval=105", "eval_tokens=5000", "sample_tokens=0", "keep_checkpoints=0"]
#: Added to both by --smoke.
SMOKE = ["steps=3", "warmup_steps=1", "eval_interval=3", "log_interval=1", "dtype=float32", "compile=false"]


def run_peer(checkout: Path, text: Path, iterations: int) -> dict[str, Any]:
    """Prepare the text and train nanoGPT, in a copy of the checkout."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "nanoGPT"
        shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "out*"))
        corpus = copy / "data" / "shakespeare_char"
        shutil.copy(text, corpus / "input.txt")
        (Path(folder) / "requests.py").touch()  # prepare.py imports it, but uses it only to download
        environment = {**os.environ, "PYTHONPATH": folder}
        subprocess.run([sys.executable, corpus / "prepare.py"], check=True, env=environment, stdout=subprocess.DEVNULL)
        settings = PEER_SETTINGS | {"max_iters": iterations, "lr_decay_iters": iterations}
        settings["eval_interval"] = min(250, iterations)  # when it saves a checkpoint
        flags = [f"--{key}={value}" for key, value in settings.items()]
        seconds, output = timed([sys.executable, "train.py", "config/train_shakespeare_char.py", *flags], copy)
        steps = [float(ms) / 1000 for ms in re.findall(r"^iter \d+: .* time ([\d.]+)ms", output, re.MULTILINE)]
        tokens = SHAPE["batch_size"] * SHAPE["block_size"]
        checkpoint = torch.load(copy / "out-shakespeare-char" / "ckpt.pt", weights_only=True)
        loss = validation_loss(peer_logits(copy / "model.py", checkpoint), text)
        return {"seconds": seconds, "tokens_per_second": tokens / statistics.median(steps[10:] or steps), "loss": loss}


def peer_logits(module_file: Path, checkpoint: dict[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Load a nanoGPT checkpoint; return its logits as a function of tokens."""
    module = load_module(module_file)
    model = module.GPT(module.GPTConfig(**checkpoint["model_args"]))
    model.load_state_dict(checkpoint["model"])
    model.eval()

    def logits_of(idx: torch.Tensor) -> torch.Tensor:
        idx = idx.contiguous()
        return model(idx, idx)[0]  # without targets it returns only the last position

    return logits_of


def run_ours(text: Path, settings: list[str], seed: int) -> dict[str, Any]:
    """Train glassgpt with its command line."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "glassgpt", "train", str(text), *settings, f"seed={seed}"]
        seconds, output = timed([*command, "--runs-dir", folder, "--json"], Path(folder))
        run = json.loads(output)["run"]
        speeds = [row["perf/tok_per_s"] for row in api.find_run(run).metrics if "perf/tok_per_s" in row]
        model, _ = api.load(Path(run) / "best", device="cpu")
        loss = validation_loss(model, text)
        return {"seconds": seconds, "tokens_per_second": statistics.median(speeds[1:]), "loss": loss}


def timed(command: list[Any], folder: Path) -> tuple[float, str]:
    """Run a process; return its wall time and its output."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return seconds, done.stdout


def validation_loss(logits_of: Callable[[torch.Tensor], torch.Tensor], text: Path) -> float:
    """Compute the loss over the whole validation split: the last 10 %, in windows of 64 tokens."""
    config = DataConfig(source=str(text))
    stream = data.prepare(data.find_source(config), config)
    expected = round(0.1 * text.stat().st_size)
    assert abs(len(stream.val) - expected) <= 1, "both programs split at 90 %"
    return evaluate(logits_of, np.asarray(stream.val), SHAPE["block_size"], torch.device("cpu")).loss


def compare(options: argparse.Namespace, text: Path) -> dict[str, list[dict[str, Any]]]:
    """Run the programs in turn, round after round."""
    smoke = SMOKE if options.smoke else []
    runs: dict[str, Callable[[int], dict[str, Any]]] = {
        "peer": lambda seed: run_peer(options.nanogpt, text, options.iterations),
        "same": lambda seed: run_ours(text, [*SAME, f"steps={options.iterations}", *smoke], seed),
        "recipe": lambda seed: run_ours(text, [*RECIPE, *smoke], seed),
    }
    if not options.nanogpt:
        print("left out: nanoGPT: give --nanogpt CHECKOUT")
        del runs["peer"]
    if options.without_same:
        del runs["same"]
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for seed in range(1, options.rounds + 1):
        for name, run in runs.items():
            rounds[name].append(run(seed))
            figures = ", ".join(f"{key} {value:,.4g}" for key, value in rounds[name][-1].items())
            print(f"round {seed} {name:<7} {figures}", flush=True)
    return rounds


def show(rounds: dict[str, list[dict[str, Any]]], median: dict[str, dict[str, float]]) -> None:
    peer, same, recipe = (median.get(name) for name in ("peer", "same", "recipe"))
    if peer and same:
        print(f"\ntokens/s, same model and batch: {same['tokens_per_second'] / peer['tokens_per_second']:.2f}x")
        print(f"whole process, same work:       {peer['seconds'] / same['seconds']:.2f}x")
    losses = sorted(figures["loss"] for figures in rounds["recipe"])
    reached = "reached" if recipe["loss"] <= TARGET else "NOT reached"
    reached += f" (median {recipe['loss']:.4f}; {losses[0]:.4f} to {losses[-1]:.4f})"
    speed = f"{peer['seconds'] / recipe['seconds']:.2f}x" if peer else f"{recipe['seconds']:.1f} s"
    print(f"time to validation loss {TARGET}:   {speed}, {reached}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, metavar="CHECKOUT", help="a checkout of nanoGPT; by default left out")
    parser.add_argument("--smoke", action="store_true", help="check in seconds that this works: three steps, tiny text")
    parser.add_argument("--rounds", type=int, default=1, help="times to run all three; glassgpt's seed is the round")
    parser.add_argument("--iterations", type=int, default=2000, help="of the peer, and steps of the same model")
    parser.add_argument("--json", type=Path, help="file to write every figure to")
    parser.add_argument("--without-same", action="store_true", help="leave out the run of the same model")
    options = parser.parse_args()
    if options.nanogpt and not (options.nanogpt / "train.py").exists():
        parser.error(f"{options.nanogpt} is not a checkout of nanoGPT: train.py does not exist")
    if options.smoke:
        options.rounds, options.iterations = 1, 3
    rounds = compare(options, Path(__file__).absolute() if options.smoke else assets.path("tinyshakespeare"))
    median = {
        name: {key: statistics.median(figures[key] for figures in runs) for key in runs[0]}
        for name, runs in rounds.items()
    }
    show(rounds, median)
    if options.json:
        options.json.write_text(json.dumps({"rounds": rounds, "median": median}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
