"""Load SmolLM2 from one GGUF file in glassgpt and `transformers`: time to load, to the first token, and peak memory.

    python benchmarks/loading.py
    python benchmarks/loading.py --file MODEL.gguf --rounds 5 --threads 1 --json FILE
    python benchmarks/loading.py --smoke

Every measurement is a process of its own that imports the library, loads model and tokenizer from the file in float32,
and greedily generates one token after a short prompt; both programs have to generate the same one. They run in turn,
and the first one alternates. The figures are medians. `transformers` is left out if it is not installed.

glassgpt        glassgpt.load(FILE), then generate
transformers    AutoModelForCausalLM and AutoTokenizer .from_pretrained(..., gguf_file=FILE), then generate

Seconds are wall time, with processor time in brackets, which is more reliable on a busy machine. Peak memory is that of
the process (VmHWM on Linux); the size of the float32 weights is given for comparison.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glassgpt import assets
from glassgpt.bench.memory import peak_resident

PROMPT = "The capital of France is"
STEPS = ("import", "load", "first token", "all")


class Clock:
    """Measures the wall and processor seconds of each step."""

    def __init__(self) -> None:
        self.start = self.last = (time.perf_counter(), time.process_time())
        self.steps: dict[str, tuple[float, float]] = {}

    def __call__(self, step: str) -> None:
        """End a step, which started at the previous call."""
        now = (time.perf_counter(), time.process_time())
        self.steps[step] = (now[0] - self.last[0], now[1] - self.last[1])
        self.steps["all"] = (now[0] - self.start[0], now[1] - self.start[1])
        self.last = now


def load_glassgpt(file: Path, threads: int, clock: Clock) -> tuple[int, int]:
    import torch

    import glassgpt
    from glassgpt.inference.decode import generate
    from glassgpt.sampling import SamplingConfig

    if threads:
        torch.set_num_threads(threads)
    clock("import")
    model, tokenizer = glassgpt.load(file, device="cpu")
    clock("load")
    ids = tokenizer.encode(PROMPT)
    step = next(generate(model, [ids], 1, SamplingConfig(temperature=0)))
    clock("first token")
    return step.tokens[0], sum(p.numel() * p.element_size() for p in model.parameters())


def load_transformers(file: Path, threads: int, clock: Clock) -> tuple[int, int]:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if threads:
        torch.set_num_threads(threads)
    transformers.logging.disable_progress_bar()
    clock("import")
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    clock("load")
    inputs = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=1, do_sample=False, pad_token_id=0)
    clock("first token")
    return int(ids[0, -1]), sum(p.numel() * p.element_size() for p in model.parameters())


PROGRAMS: dict[str, Callable[[Path, int, Clock], tuple[int, int]]] = {
    "glassgpt": load_glassgpt,
    "transformers": load_transformers,
}


def measure(program: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a program in a new process."""
    command = [sys.executable, __file__, "--worker", program, "--file", options.file]
    command += ["--threads", str(options.threads)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    if options.threads:
        environment["OMP_NUM_THREADS"] = str(options.threads)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{program} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def worker(options: argparse.Namespace) -> None:
    """Measure a program in this process, and print the figures as JSON."""
    clock = Clock()
    token, weights = PROGRAMS[options.worker](Path(options.file), options.threads, clock)
    print(json.dumps({"steps": clock.steps, "token": token, "weights": weights, "peak": peak_resident()}))


def write_tiny_model(file: Path) -> None:
    """Write a random Llama model of two small layers, with a tokenizer trained on this script, as GGUF."""
    from glassgpt.config import build, presets
    from glassgpt.model import GPT
    from glassgpt.tokenizer import BPETokenizer
    from glassgpt.weights.gguf.export import write_gguf

    tokenizer = BPETokenizer.train(Path(__file__).read_text(encoding="utf-8"), 300)
    llama = {
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 32,
        "block_size": 64,
        "vocab_size": tokenizer.vocab_size,
        "qk_norm": False,
    }
    model = GPT(build("", [presets.get("tiny-modern").layer, {"model": llama}]).model)
    model.init_weights(0)
    write_gguf(file, model, tokenizer, dtype="f32")


def compare(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Measure the programs in turn, and check that they generate the same token."""
    names = [name for name in PROGRAMS if importlib.util.find_spec(name)]
    if len(names) == 1:
        print("left out: transformers: it is not installed")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names if number % 2 == 0 else names[::-1]:
            results[name].append(measure(name, options))
            seconds = results[name][-1]["steps"]["all"][0]
            print(f"round {number + 1}  {name:<13} {seconds:6.2f} s", file=sys.stderr, flush=True)
    tokens = {name: {result["token"] for result in results[name]} for name in names}
    assert len(set.union(*tokens.values())) == 1, f"the programs generate different first tokens: {tokens}"
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="check in seconds that this works: once, a tiny model")
    parser.add_argument("--file", default="", help="a .gguf file; by default the asset smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: its default")
    parser.add_argument("--json", help="file to write all measurements to")
    parser.add_argument("--worker", choices=PROGRAMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.smoke:
            options.rounds, options.file = 1, f"{folder}/tiny.gguf"
            write_tiny_model(Path(options.file))
        options.file = options.file or str(assets.path("smollm2-135m-instruct"))
        results = compare(options)
    show(results)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2), encoding="utf-8")


def show(results: dict[str, list[dict[str, Any]]]) -> None:
    """Print the medians as a Markdown table."""
    rounds = len(results["glassgpt"])
    print(f"| medians of {rounds} rounds | " + " | ".join(STEPS) + " | peak memory | weights |")
    print("|---" * (len(STEPS) + 3) + "|")
    for name, rows in results.items():
        cells = []
        for step in STEPS:
            wall, cpu = (statistics.median(row["steps"][step][i] for row in rows) for i in (0, 1))
            cells.append(f"{wall:.2f} s ({cpu:.2f})")
        peak, weights = (statistics.median(row[key] or 0 for row in rows) / 1e6 for key in ("peak", "weights"))
        print(f"| {name} | " + " | ".join(cells) + f" | {peak:,.0f} MB | {weights:,.0f} MB |")


if __name__ == "__main__":
    main()
