"""Loading SmolLM2 from one GGUF file, beside `transformers`: time to load, to the first token, and peak memory.

    python benchmarks/loading.py
    python benchmarks/loading.py --file MODEL.gguf --rounds 5 --threads 1 --json FILE

Every measurement is a process of its own that imports the library, loads model and tokenizer from the file in float32,
and makes one token after a short prompt, greedily; both have to make the same one. Rounds are interleaved, and begin
with the other program each time; what counts are the medians.

glassgpt        glassgpt.load(FILE), then generate
transformers    AutoModelForCausalLM and AutoTokenizer .from_pretrained(..., gguf_file=FILE), then generate

Seconds are wall time, and processor time in brackets, which says more on a busy machine. Peak memory is the process's
own (VmHWM on Linux); the weights alone, in float32, are given beside it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glassgpt.bench.memory import peak_resident

PROMPT = "The capital of France is"
STEPS = ("import", "load", "first token", "all")


class Clock:
    """Wall and processor seconds of each step."""

    def __init__(self) -> None:
        self.began = self.last = (time.perf_counter(), time.process_time())
        self.steps: dict[str, tuple[float, float]] = {}

    def __call__(self, step: str) -> None:
        """The step that began with the last call, or with the clock, is over."""
        now = (time.perf_counter(), time.process_time())
        self.steps[step] = (now[0] - self.last[0], now[1] - self.last[1])
        self.steps["all"] = (now[0] - self.began[0], now[1] - self.began[1])
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
    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    clock("load")
    given = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        made = model.generate(**given, max_new_tokens=1, do_sample=False, pad_token_id=0)
    clock("first token")
    return int(made[0, -1]), sum(p.numel() * p.element_size() for p in model.parameters())


PROGRAMS: dict[str, Callable[[Path, int, Clock], tuple[int, int]]] = {
    "glassgpt": load_glassgpt,
    "transformers": load_transformers,
}


def measure(program: str, options: argparse.Namespace) -> dict[str, Any]:
    """One fresh process."""
    command = [sys.executable, __file__, "--child", program, "--file", options.file, "--threads", str(options.threads)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    if options.threads:
        environment["OMP_NUM_THREADS"] = str(options.threads)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{program} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def child(options: argparse.Namespace) -> None:
    clock = Clock()
    token, weights = PROGRAMS[options.child](Path(options.file), options.threads, clock)
    print(json.dumps({"steps": clock.steps, "token": token, "weights": weights, "peak": peak_resident()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", default="", help="a .gguf file; by default the asset smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: its own choice")
    parser.add_argument("--json", help="file to write all measurements to")
    parser.add_argument("--child", choices=PROGRAMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.file:
        from glassgpt import assets

        options.file = str(assets.path("smollm2-135m-instruct"))
    if options.child:
        child(options)
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in PROGRAMS}
    for number in range(options.rounds):
        names = list(PROGRAMS)
        for name in names[number % 2 :] + names[: number % 2]:
            found[name].append(measure(name, options))
            wall = found[name][-1]["steps"]["all"][0]
            print(f"round {number + 1}  {name:<13} {wall:6.2f} s", file=sys.stderr, flush=True)
    tokens = {result["token"] for results in found.values() for result in results}
    assert len(tokens) == 1, f"the programs disagree on the first token: {tokens}"
    show(found)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2), encoding="utf-8")


def show(found: dict[str, list[dict[str, Any]]]) -> None:
    """The medians, as a table in Markdown."""
    print(
        f"| medians of {len(next(iter(found.values())))} rounds | " + " | ".join(STEPS) + " | peak memory | weights |"
    )
    print("|---" * (len(STEPS) + 3) + "|")
    for name, results in found.items():
        cells = []
        for step in STEPS:
            wall, cpu = (statistics.median(result["steps"][step][i] for result in results) for i in (0, 1))
            cells.append(f"{wall:.2f} s ({cpu:.2f})")
        peak, weights = (statistics.median(result[key] for result in results) / 1e6 for key in ("peak", "weights"))
        print(f"| {name} | " + " | ".join(cells) + f" | {peak:,.0f} MB | {weights:,.0f} MB |")


if __name__ == "__main__":
    main()
