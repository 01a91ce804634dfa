"""Training throughput of glassgpt, nanoGPT and transformers: tokens per second on the same shape and batch.

    python benchmarks/throughput.py --nanogpt CHECKOUT --shape 4x128
    python benchmarks/throughput.py --nanogpt CHECKOUT --shape gpt2 --device cuda --dtype bfloat16 --batch 16 \\
        --block 1024
    python benchmarks/throughput.py --smoke

Every measurement is a process of its own; they run in turn, for several rounds, and the figures are medians. All train
a GPT on the same random tokens: forward, backward, clipping, optimiser, and the loss is read after every step. Loading
data, validating and saving are not included. A library that is not installed is left out.

glassgpt      GPT-2's blocks and AdamW: the same work
nanogpt       its GPT, its configure_optimizers (AdamW), the step of its train.py
transformers  GPT2LMHeadModel and AdamW (fused, as in its Trainer)
muon          glassgpt with Qwen-3's blocks and Muon on the same shape, as in its presets: different work

Each keeps its own conventions: nanoGPT's and here glassgpt's GELU is exact, that of transformers approximate (which on
a CPU takes longer); in bfloat16 the peers use autocast and
glassgpt keeps bfloat16 weights with float32 master weights; nanoGPT and transformers compile the whole model, glassgpt
its blocks. Float32 products on a GPU may use TF32 in all of them, as nanoGPT sets it. The MFU uses the FLOPs of
glassgpt.estimate, the same for the first three, and the fastest matrix product measured in the same call. Peak memory
is that of tensors on a GPU, and of the whole process on a CPU, including imports.
"""

import argparse
import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

#: Name -> layers, heads, width, context, batch size, vocabulary.
SHAPES = {
    "4x128": (4, 4, 128, 64, 12, 65),  # nanoGPT's command for a CPU
    "6x384": (6, 6, 384, 256, 16, 65),  # nanoGPT's character-level model
    "gpt2": (12, 12, 768, 256, 4, 50304),  # with nanoGPT's padded vocabulary
}
PROGRAMS = ("nanogpt", "glassgpt", "transformers", "muon")
LEARNING_RATE, BETAS, WEIGHT_DECAY, CLIP = 1e-5, (0.9, 0.99), 0.1, 1.0
WARMUP = 3
Step = Callable[[], object]


# --- the programs ----------------------------------------------------------------------------------------------------


def glassgpt_step(options: argparse.Namespace) -> Step:
    """Build a training step of glassgpt."""
    from glassgpt.config import RuntimeConfig
    from glassgpt.planning.attention_choice import measured_attention
    from glassgpt.planning.measured import Measurements
    from glassgpt.planning.timing import TimedTraining
    from glassgpt.runtime import resolve

    compile = "true" if options.mode == "compiled" else "false"
    settings = {"device": options.device, "dtype": options.dtype, "compile": compile, "threads": options.threads}
    config = glassgpt_config(options)
    runtime, _ = measured_attention(config, resolve(RuntimeConfig(**settings)), Measurements(anew=True))
    return TimedTraining(config, runtime, config.train.batch_size, config.train.batch_size).step


def glassgpt_config(options: argparse.Namespace) -> Any:
    """The configuration of the shape: GPT-2's blocks with AdamW, or Qwen-3's with Muon."""
    from glassgpt.config import build
    from glassgpt.config.presets import MODERN

    n_layer, n_head, n_embd, block_size, batch_size, vocab_size = shape_of(options)
    model: dict[str, Any] = {
        "n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": block_size, "vocab_size": vocab_size,
    }  # fmt: skip
    optim: dict[str, Any] = {"optimizer": "muon"}
    if options.worker == "muon":
        model |= MODERN
    else:
        model["mlp"] = "gelu"
        optim = {"optimizer": "adamw", "beta1": BETAS[0], "beta2": BETAS[1], "weight_decay": WEIGHT_DECAY}
        if options.no_bias:
            model |= dict.fromkeys(("qkv_bias", "attention_out_bias", "mlp_bias", "norm_bias"), False)
    train = {"batch_size": batch_size, "micro_batch_size": batch_size, "grad_clip": CLIP}
    return build("", [{"model": model, "train": train, "optim": optim}])


def nanogpt_step(options: argparse.Namespace) -> Step:
    """Build a training step of nanoGPT."""
    import torch

    module = load_module(options.nanogpt / "model.py")
    n_layer, n_head, n_embd, block_size, _, vocab_size = shape_of(options)
    config = module.GPTConfig(
        block_size=block_size, vocab_size=vocab_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd, dropout=0.0,
        bias=not options.no_bias,
    )  # fmt: skip
    with contextlib.redirect_stdout(sys.stderr):
        model = module.GPT(config).to(options.device)
        optimizer = model.configure_optimizers(WEIGHT_DECAY, LEARNING_RATE, BETAS, torch.device(options.device).type)
    network = torch.compile(model) if options.mode == "compiled" else model
    inputs, targets = random_batch(options)
    return peer_step(lambda: network(inputs, targets)[1], model, optimizer, options)


def transformers_step(options: argparse.Namespace) -> Step:
    """Build a training step of transformers' GPT-2."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    n_layer, n_head, n_embd, block_size, _, vocab_size = shape_of(options)
    config = GPT2Config(
        vocab_size=vocab_size, n_positions=block_size, n_embd=n_embd, n_layer=n_layer, n_head=n_head, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).to(options.device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )
    network = torch.compile(model) if options.mode == "compiled" else model
    inputs, _ = random_batch(options)
    # The model shifts the labels itself, so each sequence has one target less.
    return peer_step(lambda: network(input_ids=inputs, labels=inputs).loss, model, optimizer, options)


def peer_step(loss_of: Callable[[], Any], model: Any, optimizer: Any, options: argparse.Namespace) -> Step:
    """Build a step like that of nanoGPT's train.py: autocast, backward, clip, update, read the loss."""
    import torch

    device = torch.device(options.device).type

    def step() -> None:
        context: Any = contextlib.nullcontext()
        if options.dtype != "float32":
            context = torch.autocast(device, dtype=getattr(torch, options.dtype))
        with context:
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def random_batch(options: argparse.Namespace) -> Any:
    """Random inputs and targets ``[B, T]``."""
    import torch

    _, _, _, block_size, batch_size, vocab_size = shape_of(options)
    ids = torch.randint(vocab_size, (batch_size, block_size + 1), generator=torch.Generator().manual_seed(0))
    return tuple(part.contiguous().to(options.device) for part in (ids[:, :-1], ids[:, 1:]))


def load_module(file: Path) -> ModuleType:
    """Import a Python file as a module."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    return module


# --- a measurement, in a process of its own --------------------------------------------------------------------------


def work(options: argparse.Namespace) -> dict[str, float]:
    """Measure one program, or the fastest matrix product, in this process."""
    import torch

    from glassgpt.bench.memory import peak_resident
    from glassgpt.bench.roofline import matrix_peak
    from glassgpt.estimate import flops_per_token
    from glassgpt.runtime import synchronise

    torch.set_float32_matmul_precision("high")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.worker == "peak":
        return {"matrix_peak": matrix_peak(device, getattr(torch, options.dtype), 0.0 if options.smoke else 2.0)}
    torch.manual_seed(0)
    builders = {"nanogpt": nanogpt_step, "transformers": transformers_step}
    step = builders.get(options.worker, glassgpt_step)(options)
    seconds: list[float] = []
    warmed_up = time.perf_counter()
    while len(seconds) < WARMUP + options.steps:
        start = time.perf_counter()
        step()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
        if len(seconds) == WARMUP:
            warmed_up = time.perf_counter()
        if len(seconds) > WARMUP + 2 and time.perf_counter() - warmed_up > options.seconds:
            break
    gpu = device.type == "cuda"
    return {
        "step_seconds": statistics.median(seconds[WARMUP:]),
        "first_step_seconds": seconds[0],
        "steps": len(seconds) - WARMUP,
        "peak_memory": torch.cuda.max_memory_allocated(device) if gpu else (peak_resident() or 0),
        "flops_per_token": flops_per_token(glassgpt_config(options).model).training,
    }


def measure(program: str, mode: str, arguments: list[str]) -> dict[str, float]:
    """Measure in a new process."""
    command = [sys.executable, __file__, *arguments, "--worker", program, "--mode", mode]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        sys.exit(f"{program} ({mode}) failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


# --- all of them -----------------------------------------------------------------------------------------------------


def shape_of(options: argparse.Namespace) -> tuple[int, int, int, int, int, int]:
    """Layers, heads, width, context, batch size and vocabulary, after --block and --batch."""
    n_layer, n_head, n_embd, block_size, batch_size, vocab_size = SHAPES[options.shape]
    return n_layer, n_head, n_embd, options.block or block_size, options.batch or batch_size, vocab_size


def compare(options: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """Run everything in turn; each round starts one place later than the last."""
    default_modes = "eager,compiled" if options.device == "cpu" else "compiled"
    programs = options.programs.split(",") if options.programs else list(PROGRAMS)
    for name, missing in (
        ("nanogpt", "" if options.nanogpt else "give --nanogpt CHECKOUT"),
        ("transformers", "" if importlib.util.find_spec("transformers") else "it is not installed"),
    ):
        if missing and name in programs:
            programs.remove(name)
            print(f"left out: {name}: {missing}")
    runs = [(program, mode) for mode in (options.modes or default_modes).split(",") for program in programs]
    rounds: dict[str, list[dict[str, float]]] = {f"{program} {mode}": [] for program, mode in runs}
    peaks: list[float] = []
    for number in range(options.rounds):
        peaks.append(measure("peak", "eager", arguments)["matrix_peak"])
        start = number % len(runs)
        for program, mode in runs[start:] + runs[:start]:
            figures = measure(program, mode, arguments)
            rounds[f"{program} {mode}"].append(figures)
            print(f"round {number + 1} {program:<12} {mode:<8} {figures['step_seconds'] * 1000:>10,.2f} ms", flush=True)
    tokens = shape_of(options)[3] * shape_of(options)[4]
    peak = statistics.median(peaks)
    median: dict[str, dict[str, float]] = {}
    for name, rows in rounds.items():
        row = {key: statistics.median(figures[key] for figures in rows) for key in rows[0]}
        row["tokens_per_second"] = tokens / row["step_seconds"]
        row["mfu"] = row["flops_per_token"] * row["tokens_per_second"] / peak
        median[name] = row
    settings = {key: str(value) for key, value in vars(options).items() if value is not None and key != "nanogpt"}
    return {"settings": settings, "matrix_peak": peak, "median": median, "rounds": rounds}


def show(options: argparse.Namespace, results: dict[str, Any]) -> None:
    n_layer, n_head, n_embd, block_size, batch_size, vocab_size = shape_of(options)
    print(
        f"\n{n_layer} layers, {n_head} heads, {n_embd} wide, vocabulary {vocab_size:,}; {batch_size} x {block_size} "
        f"tokens per step; {options.device}, {options.dtype}; fastest matrix product "
        f"{results['matrix_peak'] / 1e9:,.0f} GFLOP/s"
    )
    median = results["median"]
    print(f"\n{'':<22} {'tokens/s':>12} {'ms/step':>10} {'MFU':>7} {'peak memory':>13}")
    for name, row in median.items():
        print(
            f"{name:<22} {row['tokens_per_second']:>12,.0f} {1000 * row['step_seconds']:>10,.2f} "
            f"{row['mfu']:>7.1%} {row['peak_memory'] / 2**20:>9,.0f} MiB"
        )
    print()
    for name in median:
        program, mode = name.split()
        for peer in ("nanogpt", "transformers"):
            if program in ("glassgpt", "muon") and f"{peer} {mode}" in median:
                ratio = median[name]["tokens_per_second"] / median[f"{peer} {mode}"]["tokens_per_second"]
                print(f"{name} / {peer} {mode}: {ratio:.2f}x tokens/s")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, metavar="CHECKOUT", help="a checkout of nanoGPT; by default left out")
    parser.add_argument("--smoke", action="store_true", help="check in seconds that this works: one step, eager")
    parser.add_argument("--shape", choices=SHAPES, default="4x128")
    parser.add_argument("--batch", type=int, default=0, help="sequences per step; 0: the shape's")
    parser.add_argument("--block", type=int, default=0, help="context in tokens; 0: the shape's")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="type to compute in")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: PyTorch's default")
    parser.add_argument("--no-bias", action="store_true", help="without biases in nanoGPT (its default) and glassgpt")
    parser.add_argument("--modes", help="eager,compiled or one of them; by default both on a CPU, else compiled")
    parser.add_argument("--programs", help=f"some of {','.join(PROGRAMS)}; by default all")
    parser.add_argument("--steps", type=int, default=30, help=f"steps to time, after {WARMUP} to warm up")
    parser.add_argument("--seconds", type=float, default=60, help="time limit for the steps of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="times to run all programs")
    parser.add_argument("--json", type=Path, help="file to write every figure to")
    parser.add_argument("--worker", choices=(*PROGRAMS, "peak"), help=argparse.SUPPRESS)
    parser.add_argument("--mode", choices=("eager", "compiled"), default="eager", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.nanogpt is not None and not (options.nanogpt / "model.py").exists():
        parser.error(f"{options.nanogpt} is not a checkout of nanoGPT: model.py does not exist")
    for value, valid in ((options.modes, ("eager", "compiled")), (options.programs, PROGRAMS)):
        for name in (value or valid[0]).split(","):
            if name not in valid:
                parser.error(f"{name!r} is not one of {', '.join(valid)}")
    if options.smoke:
        options.modes, options.steps, options.rounds = "eager", 1, 1
    return options


def main() -> None:
    options = parse()
    if options.worker:
        print(json.dumps(work(options)))
        return
    results = compare(options, sys.argv[1:])
    show(options, results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
