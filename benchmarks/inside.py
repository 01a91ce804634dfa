"""Look inside SmolLM2 with glassgpt, `transformers` and TransformerLens: seconds and peak memory of the same results.

    glassgpt export smollm2-135m-instruct --to hf --dtype float32 -o FOLDER
    python benchmarks/inside.py --folder FOLDER
    python benchmarks/inside.py --folder FOLDER --transformer-lens PYTHON --rounds 5 --json FILE
    python benchmarks/inside.py --smoke

Every measurement is a process of its own that loads the model in float32, reads the same tokens twice, and reports the
seconds of the second reading and the peak memory of the process. The programs run in turn. The figures are medians.

attention   the weights of every head, [layers, heads, T, T]
lens        the most likely token, and its probability, of every layer at every position
why         what each head, each MLP and the embedding add to the logit of the next token

Last, what recording costs when it is off: the seconds of a training step of glassgpt's model (forward and backward
pass) before any recording and after one, in turn in one process.

TransformerLens (any 3.x or later, through its TransformerBridge) needs PYTHON, an interpreter that has it. It is left
out without one, and `transformers` is left out if it is not installed. `transformers` has no function for `why`.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TASKS = ("attention", "lens", "why")
#: Largest difference of two programs' results that is rounding.
TOLERANCE = 1e-3


class GlassGPT:
    """The functions of glassgpt.inside."""

    def __init__(self, folder: str):
        import glassgpt

        self.inside = glassgpt.inside
        self.model, self.tokenizer = glassgpt.load(folder, device="cpu")

    def run(self, task: str, ids: list[int]) -> Any:
        """Return the result of a task."""
        text = self.tokenizer.decode(ids)
        if task == "attention":
            return self.inside.attention(self.model, self.tokenizer, text).weights
        if task == "lens":
            return self.inside.lens(self.model, self.tokenizer, text).probability
        return self.inside.why(self.model, self.tokenizer, text).heads


class Transformers:
    """`transformers` with output_attentions and output_hidden_states."""

    def __init__(self, folder: str):
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")

    def run(self, task: str, ids: list[int]) -> Any:
        """Return the result of a task."""
        if task == "why":
            return None
        idx = self.torch.tensor([ids])
        with self.torch.no_grad():
            if task == "attention":
                return self.torch.cat(self.model(idx, output_attentions=True).attentions)
            states = self.model(idx, output_hidden_states=True).hidden_states
            final = [*(self.model.model.norm(state) for state in states[:-1]), states[-1]]
            return self.torch.cat([self.model.lm_head(state).softmax(-1).amax(-1) for state in final])


class TransformerLens:
    """TransformerLens: run_with_cache, and the functions of its cache."""

    def __init__(self, folder: str):
        import torch
        from transformer_lens.model_bridge import TransformerBridge

        self.torch = torch
        self.model = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)

    def run(self, task: str, ids: list[int]) -> Any:
        """Return the result of a task."""
        idx = self.torch.tensor([ids])
        with self.torch.no_grad():
            if task == "attention":
                wanted = lambda name: name.endswith("hook_pattern")  # noqa: E731
                _, cache = self.model.run_with_cache(idx, names_filter=wanted)
                return self.torch.cat([tensor for name, tensor in cache.items() if wanted(name)])
            logits, cache = self.model.run_with_cache(idx)
            if task == "lens":
                states = cache.accumulated_resid(layer=-1, apply_ln=True)  # [layers + 1, 1, T, C]
                return self.torch.cat([self.model.unembed(state).softmax(-1).amax(-1) for state in states])
            token = int(logits[0, -1].argmax())
            parts = cache.stack_head_results(layer=-1, pos_slice=-1)  # [layers x heads, 1, C]
            scaled = cache.apply_ln_to_stack(parts, layer=-1, pos_slice=-1)
            direction = self.model.ln_final.weight * self.model.W_U[:, token]  # apply_ln_to_stack leaves out the weight
            return (scaled[:, 0] @ direction).view(self.model.cfg.n_layers, -1)


PROGRAMS: dict[str, Any] = {"glassgpt": GlassGPT, "transformers": Transformers, "TransformerLens": TransformerLens}


def worker(options: argparse.Namespace) -> None:
    """Run one task in this process; print seconds and memory as JSON, and save the result."""
    import numpy as np
    import torch

    torch.set_num_threads(options.threads)
    program = PROGRAMS[options.worker](options.folder)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ids = json.loads(Path(options.ids).read_text(encoding="utf-8"))
    for _ in range(2):
        start = time.perf_counter()
        result = program.run(options.task, ids)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if result is not None:
        np.save(options.result, np.asarray(result))
    print(json.dumps({"seconds": seconds, "loaded": loaded / 1024, "peak": peak / 1024, "done": result is not None}))


def measure(program: str, task: str, options: argparse.Namespace, result: Path) -> dict[str, Any]:
    """Run a task in a new process."""
    python = options.transformer_lens if program == "TransformerLens" else sys.executable
    command = [python, __file__, "--worker", program, "--task", task, "--folder", options.folder]
    command += ["--ids", options.ids, "--result", str(result), "--threads", str(options.threads)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{program}, {task} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def write_ids(folder: str, count: int, file: Path) -> None:
    """Write the ids of a part of this script that has as many tokens, and the same again after decoding."""
    import glassgpt

    tokenizer = glassgpt.load_tokenizer(folder)
    ids = tokenizer.encode(Path(__file__).read_text(encoding="utf-8"))
    for start in range(len(ids) - count):
        chosen = ids[start : start + count]
        if tokenizer.encode(tokenizer.decode(chosen)) == chosen:
            file.write_text(json.dumps(chosen), encoding="utf-8")
            return
    sys.exit(f"no text of {count} tokens found")


def compare(options: argparse.Namespace, programs: list[str], temporary: Path) -> list[dict[str, Any]]:
    """Measure every task with every program, in turn, and compare the results with those of glassgpt."""
    import numpy as np

    rows = []
    for task in TASKS:
        measured: dict[str, list[dict[str, Any]]] = {program: [] for program in programs}
        for number in range(options.rounds):
            for program in programs if number % 2 == 0 else reversed(programs):
                measured[program].append(measure(program, task, options, temporary / f"{program}.npy"))
        expected = np.load(temporary / "glassgpt.npy")
        for program, values in measured.items():
            if not values[0]["done"]:
                continue
            difference = float(np.abs(np.load(temporary / f"{program}.npy").reshape(expected.shape) - expected).max())
            if difference > TOLERANCE:
                sys.exit(f"{task}: {program} and glassgpt differ by {difference}")
            row = {"task": task, "program": program, "difference": difference}
            rows.append(row | {key: statistics.median(v[key] for v in values) for key in ("seconds", "loaded", "peak")})
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    print(f"{'task':<10} {'program':<16} {'seconds':>8} {'ratio':>6} {'MiB over loading':>17} {'differs by':>11}")
    for row in rows:
        ours = next(r["seconds"] for r in rows if r["task"] == row["task"] and r["program"] == "glassgpt")
        added = row["peak"] - row["loaded"]
        print(
            f"{row['task']:<10} {row['program']:<16} {row['seconds']:>8.3f} {row['seconds'] / ours:>6.2f} "
            f"{added:>17,.0f} {row['difference']:>11.1e}"
        )


def cost_when_off(options: argparse.Namespace) -> tuple[float, float]:
    """Return the median seconds of a training step with a model that was never recorded, and with one that was."""
    import torch

    import glassgpt
    from glassgpt.recording import record

    torch.set_num_threads(options.threads)
    models = [glassgpt.load(options.folder, device="cpu")[0] for _ in range(2)]
    idx = torch.tensor([json.loads(Path(options.ids).read_text(encoding="utf-8"))])
    record(models[1], idx)
    seconds: list[list[float]] = [[], []]
    for number in range(max(10, 4 * options.rounds)):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            start = time.perf_counter()
            models[which](idx).logsumexp(-1).mean().backward()
            seconds[which].append(time.perf_counter() - start)
    return statistics.median(seconds[0][2:]), statistics.median(seconds[1][2:])


def write_tiny_model(folder: Path) -> None:
    """Write a random Llama model of two layers, with a byte-level tokenizer trained on this script."""
    import glassgpt
    from glassgpt.config import build, presets
    from glassgpt.model import GPT
    from glassgpt.tokenizer import BPETokenizer

    tokenizer = BPETokenizer.train(Path(__file__).read_text(encoding="utf-8"), 300)
    llama = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 64, "qk_norm": False}
    llama["vocab_size"] = tokenizer.vocab_size
    model = GPT(build("", [presets.get("tiny-modern").layer, {"model": llama}]).model)
    model.init_weights(0)
    glassgpt.save(model, tokenizer, folder)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="", help="a model folder of a Llama-family model")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--transformer-lens", metavar="PYTHON", help="an interpreter that has TransformerLens")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one round")
    for hidden in ("--worker", "--task", "--ids", "--result"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        if options.smoke:
            options.folder, options.tokens, options.rounds, options.threads = str(temporary / "model"), 20, 1, 1
            write_tiny_model(temporary / "model")
        elif not options.folder:
            parser.error("--folder: give a model folder, as `glassgpt export --to hf` writes")
        options.ids = str(temporary / "ids.json")
        write_ids(options.folder, options.tokens, temporary / "ids.json")
        programs = ["glassgpt"]
        if importlib.util.find_spec("transformers") and not options.smoke:
            programs.append("transformers")
        if options.transformer_lens:
            programs.append("TransformerLens")
        else:
            print("left out: TransformerLens: give --transformer-lens PYTHON")
        print(f"{options.tokens} tokens, {options.threads} threads, medians of {options.rounds} processes each\n")
        rows = compare(options, programs, temporary)
        print_rows(rows)
        plain, recorded = cost_when_off(options)
    print(
        f"\na training step: {plain:.4f} s never recorded, {recorded:.4f} s after a recording: {recorded / plain:.3f}"
    )
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
