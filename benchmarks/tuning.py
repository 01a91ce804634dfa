"""LoRA and full fine-tuning with glassgpt, and with `transformers` (and `peft`): tokens per second and peak memory.

    glassgpt export smollm2-135m-instruct --to hf --dtype float32 -o FOLDER
    python benchmarks/tuning.py --folder FOLDER
    python benchmarks/tuning.py --folder FOLDER --dtype bfloat16 --rows 4 --length 128 --rounds 5 --json FILE
    python benchmarks/tuning.py --smoke

Every measurement is a process of its own; they run in turn, for several rounds, and the figures are medians. All train
the same weights on the same rows, each a prompt that is not trained and an answer that is (half of its tokens):
forward, backward, clipping, fused AdamW, and the loss is read after every step. The losses of the first step are shown.
The peak memory is that of the process, beyond what it held after importing its libraries.

glassgpt      its train_step with answer_loss: logits only where a token is trained
transformers  its model with labels, and torch's AdamW; with LoRA, `peft` on all matrices of the blocks, rank 16

In bfloat16, both hold the weights in bfloat16; glassgpt trains float32 copies of those that it trains, `transformers`
the bfloat16 weights themselves (`--autocast`: float32 weights under autocast, as its Trainer does with bf16=True).
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inside import write_tiny_model

RANK, ALPHA = 16, 32.0
WARMUP = 2
Step = Callable[[], float]


def rows_to_train(options: argparse.Namespace, vocab_size: int) -> Any:
    """Random ids ``[rows, length + 1]``, the same in every program."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (options.rows, options.length + 1), generator=generator)


def glassgpt_step(options: argparse.Namespace) -> Step:
    """Build a training step of glassgpt."""
    import torch

    import glassgpt
    from glassgpt.config import OptimConfig, TuneConfig
    from glassgpt.data.batch import IGNORE_INDEX, Batch
    from glassgpt.training.objective import ModelWithLoss, answer_loss
    from glassgpt.training.optim import Optimizers
    from glassgpt.training.precision import MasterWeights
    from glassgpt.training.step import train_step
    from glassgpt.transforms.lora import add_lora

    model = glassgpt.load(options.folder, device="cpu")[0].train()
    if options.method == "lora":
        add_lora(model, TuneConfig(method="lora", lora_rank=RANK, lora_alpha=ALPHA), 0)
    config = OptimConfig(optimizer="adamw", adamw_learning_rate=1e-5, weight_decay=0.0)
    optimizers = Optimizers(model, config, MasterWeights(model, getattr(torch, options.dtype)))
    module = ModelWithLoss(model, answer_loss)
    ids = rows_to_train(options, model.config.vocab_size)
    targets = ids[:, 1:].clone()
    targets[:, : options.length // 2] = IGNORE_INDEX
    batch = Batch(ids[:, :-1].contiguous(), targets)

    def step() -> float:
        return train_step(
            module, optimizers, batch, batch.num_loss_tokens(), micro_batch_size=options.rows, lr_multiplier=1.0,
            grad_clip=1.0, device=torch.device("cpu"),
        ).loss  # fmt: skip

    return step


def transformers_step(options: argparse.Namespace) -> Step:
    """Build a training step of `transformers`, with `peft` for LoRA."""
    import contextlib

    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if options.autocast else getattr(torch, options.dtype)
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=dtype)
    vocab_size = model.config.vocab_size
    if options.method == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    ids = rows_to_train(options, vocab_size)
    labels = ids[:, 1:].clone()
    labels[:, : options.length // 2] = -100
    inputs = ids[:, :-1].contiguous()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        context = torch.autocast("cpu", torch.bfloat16) if options.autocast else contextlib.nullcontext()
        with context:  # shift_labels: the targets are shifted already
            loss = model(inputs, labels=labels, shift_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


PROGRAMS: dict[str, Callable[[argparse.Namespace], Step]] = {
    "glassgpt": glassgpt_step,
    "transformers": transformers_step,
}


def worker(options: argparse.Namespace) -> None:
    """Time steps in this process; print them as JSON."""
    import torch

    torch.set_num_threads(options.threads)
    if options.worker == "transformers":
        import transformers  # noqa: F401

        if options.method == "lora":
            import peft  # noqa: F401
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = PROGRAMS[options.worker](options)
    losses, times = [], []
    for _ in range(WARMUP + options.steps):
        began = time.perf_counter()
        losses.append(step())
        times.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokens = options.rows * options.length / statistics.median(times[WARMUP:])
    print(json.dumps({"tokens": tokens, "mib": (peak - imported) / 1024, "loss": losses[0]}))


def measure(program: str, options: argparse.Namespace) -> dict[str, float]:
    """Time a program in a new process."""
    command = [sys.executable, __file__, "--worker", program, "--folder", options.folder, "--method", options.method]
    for name in ("dtype", "rows", "length", "steps", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    command += ["--autocast"] if options.autocast else []
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{program} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(options: argparse.Namespace, programs: list[str]) -> list[dict[str, Any]]:
    """Measure both methods with every program, in turn; print and return the medians."""
    rows = []
    print(f"{'method':<8} {'program':<13} {'tokens/s':>9} {'ratio':>6} {'MiB':>7} {'first loss':>11}")
    for method in ("lora", "sft"):
        options.method = method
        measured: dict[str, list[dict[str, float]]] = {program: [] for program in programs}
        for number in range(options.rounds):
            for program in programs if number % 2 == 0 else reversed(programs):
                measured[program].append(measure(program, options))
        medians = {
            program: {key: statistics.median(value[key] for value in values) for key in values[0]}
            for program, values in measured.items()
        }
        for program, row in medians.items():
            ratio = medians["glassgpt"]["tokens"] / row["tokens"]
            print(
                f"{method:<8} {program:<13} {row['tokens']:>9,.1f} {ratio:>6.2f} {row['mib']:>7,.0f} "
                f"{row['loss']:>11.5f}"
            )
            rows.append({"method": method, "program": program, "ratio": ratio, **row})
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="", help="a model folder")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--autocast", action="store_true", help="transformers: float32 weights under autocast")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5, help="timed in each process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one round")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--method", default="lora", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    with tempfile.TemporaryDirectory() as name:
        programs = ["glassgpt"]
        if options.smoke:
            options.folder, options.length, options.steps, options.rounds = str(Path(name) / "model"), 16, 1, 1
            options.threads = 1
            write_tiny_model(Path(name) / "model")
        elif not options.folder:
            parser.error("--folder: give a model folder, as `glassgpt export --to hf` writes")
        if importlib.util.find_spec("transformers") and importlib.util.find_spec("peft") and not options.smoke:
            programs.append("transformers")
        print(f"{options.rows} x {options.length} tokens, {options.dtype}, {options.threads} threads, {options.rounds} "
              "processes each")  # fmt: skip
        rows = compare(options, programs)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
