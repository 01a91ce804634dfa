"""glassgpt beside nanoGPT on tinyshakespeare: tokens per second on the same model, and time to the same loss.

    python benchmarks/time_to_loss.py --nanogpt CHECKOUT

Needs a checkout of nanoGPT and the `tinyshakespeare` asset (GLASSGPT_ASSETS, where there is no network). The programs
run in turn on this machine, each as a whole process: imports, validations and saving count. Both train on the first
90 % of the text; the validation loss of both is computed over the whole last 10 % by one evaluator, ours. Three runs
a round:

peer     the CPU command of nanoGPT's README: 4 layers, 4 heads, 128 wide, context 64, batch 12, 2000 iterations
same     glassgpt on that model and batch, with AdamW, for as many steps
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
#: The same model and batch with the same optimiser; its schedule too.
SAME = [
    "preset=small",
    *(f"{key}={value}" for key, value in SHAPE.items()),
    "optimizer=adamw",
    "adamw_learning_rate=1e-3",
]
SAME += ["warmup_steps=100", "eval_interval=250", "sample_tokens=0", "keep_checkpoints=0"]
#: The best we know for this loss; see RESULTS.md for how it was found.
RECIPE = [
    "preset=small-modern",
    "n_layer=3",
    "block_size=64",
    "batch_size=32",
    "steps=105",
    "adamw_learning_rate=1.5e-2",
]
RECIPE += ["muon_learning_rate=0.02", "schedule=trapezoid", "decay_fraction=0.7", "min_lr_ratio=0.02"]
RECIPE += ["eval_interval=105", "eval_tokens=5000", "sample_tokens=0", "keep_checkpoints=0"]


def run_peer(checkout: Path, text: Path, iterations: int) -> dict[str, Any]:
    """Prepare and train nanoGPT in a copy of the checkout."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "nanoGPT"
        shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "out*"))
        corpus = copy / "data" / "shakespeare_char"
        shutil.copy(text, corpus / "input.txt")
        (Path(folder) / "requests.py").touch()  # its prepare.py imports it, and uses it only to download
        environment = {**os.environ, "PYTHONPATH": folder}
        subprocess.run([sys.executable, corpus / "prepare.py"], check=True, env=environment, stdout=subprocess.DEVNULL)
        settings = PEER_SETTINGS | {"max_iters": iterations, "lr_decay_iters": iterations}
        flags = [f"--{key}={value}" for key, value in settings.items()]
        seconds, output = timed([sys.executable, "train.py", "config/train_shakespeare_char.py", *flags], copy)
        steps = [float(ms) / 1000 for ms in re.findall(r"^iter \d+: .* time ([\d.]+)ms", output, re.MULTILINE)]
        tokens = SHAPE["batch_size"] * SHAPE["block_size"]
        checkpoint = torch.load(copy / "out-shakespeare-char" / "ckpt.pt", weights_only=True)
        loss = validation_loss(peer_logits(copy / "model.py", checkpoint), text)
        return {"seconds": seconds, "tokens_per_second": tokens / statistics.median(steps[10:]), "loss": loss}


def peer_logits(module_file: Path, checkpoint: dict[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """nanoGPT's model with the weights of a checkpoint, as a function of tokens."""
    module = load_module(module_file)
    model = module.GPT(module.GPTConfig(**checkpoint["model_args"]))
    model.load_state_dict(checkpoint["model"])
    model.eval()

    def logits_of(idx: torch.Tensor) -> torch.Tensor:
        idx = idx.contiguous()
        return model(idx, idx)[0]  # without targets it gives the last position alone

    return logits_of


def run_ours(text: Path, settings: list[str], seed: int) -> dict[str, Any]:
    """Train glassgpt by its command line."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "glassgpt",
            "train",
            str(text),
            *settings,
            f"seed={seed}",
            "--runs-dir",
            folder,
            "--json",
        ]
        seconds, output = timed(command, Path(folder))
        ending = json.loads(output)
        rows = api.find_run(ending["run"]).metrics
        speeds = [row["perf/tok_per_s"] for row in rows if "perf/tok_per_s" in row]
        model, _ = api.load(Path(ending["run"]) / "best", device="cpu")
        loss = validation_loss(model, text)
        return {"seconds": seconds, "tokens_per_second": statistics.median(speeds[1:]), "loss": loss}


def timed(command: list[Any], folder: Path) -> tuple[float, str]:
    """Wall time of a whole process, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return seconds, done.stdout


def validation_loss(logits_of: Callable[[torch.Tensor], torch.Tensor], text: Path) -> float:
    """Loss over the whole validation split: the last 10 %, in windows of 64 tokens."""
    stream = data.prepare(data.read_text(str(text)), DataConfig())
    expected = round(0.1 * text.stat().st_size)
    assert abs(len(stream.val) - expected) <= 1, "both programs split at 90 %"
    return evaluate(logits_of, np.asarray(stream.val), SHAPE["block_size"], torch.device("cpu")).loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, metavar="CHECKOUT", help="a checkout of nanoGPT")
    parser.add_argument(
        "--rounds",
        type=int,
        default=1,
        help="times to run the three in turn, each with another seed of ours; medians are reported",
    )
    parser.add_argument("--iterations", type=int, default=2000, help="of the peer, and steps of the same model")
    parser.add_argument("--json", type=Path, help="file to write every figure to")
    parser.add_argument("--without-same", action="store_true", help="leave out the run of the same model")
    options = parser.parse_args()
    if not (options.nanogpt / "train.py").exists():
        parser.error(f"{options.nanogpt} is no checkout of nanoGPT: it has no train.py")
    text = assets.path("tinyshakespeare")
    rounds: dict[str, list[dict[str, Any]]] = {"peer": [], "same": [], "recipe": []}
    for number in range(options.rounds):
        for name, run in (
            ("peer", lambda: run_peer(options.nanogpt, text, options.iterations)),
            ("same", lambda seed=number + 1: run_ours(text, [*SAME, f"steps={options.iterations}"], seed)),
            ("recipe", lambda seed=number + 1: run_ours(text, RECIPE, seed)),
        ):
            if name == "same" and options.without_same:
                continue
            figures = run()
            rounds[name].append(figures)
            shown = ", ".join(f"{key} {value:,.4g}" for key, value in figures.items())
            print(f"round {number + 1} {name:<7} {shown}", flush=True)
    median = {
        name: {key: statistics.median(figures[key] for figures in runs) for key in runs[0]}
        for name, runs in rounds.items()
        if runs
    }
    peer, recipe = median["peer"], median["recipe"]
    if same := median.get("same"):
        print(f"\ntokens/s, same model and batch: {same['tokens_per_second'] / peer['tokens_per_second']:.2f}x")
        print(f"whole process, same work:       {peer['seconds'] / same['seconds']:.2f}x")
    losses = sorted(figures["loss"] for figures in rounds["recipe"])
    reached = "reached" if recipe["loss"] <= TARGET else "NOT reached"
    reached += f" (median {recipe['loss']:.4f}; {losses[0]:.4f} to {losses[-1]:.4f})"
    print(f"time to validation loss {TARGET}:   {peer['seconds'] / recipe['seconds']:.2f}x, {reached}")
    if options.json:
        options.json.write_text(json.dumps({"rounds": rounds, "median": median}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
