"""glassgpt's chunked cross-entropy and Muon, and those of torch (2.13 or later): time and memory of the same work.

    python benchmarks/against_torch.py
    python benchmarks/against_torch.py --device cuda --dtype bfloat16 --tokens 16384 --json FILE
    python benchmarks/against_torch.py --smoke

Every measurement is a process of its own. The seconds are the median of the rounds after a warm-up, of a forward and
backward pass (cross-entropy) or of one step (Muon). Memory is the growth of the process's peak (on the CPU) or of the
GPU's; the gradients are part of it. The results are compared, too: the largest difference of the gradients, relative to
the largest gradient, or of the weights after a step.

cross-entropy   "ours" is summed_cross_entropy, "torch" F.linear_cross_entropy with chunks as long as ours, "auto" with
                its own choice of chunks, "logits" with all logits at once
muon            of the matrices of a GPT's blocks: "ours" and torch.optim.Muon with as many iterations; ours splits
                fused projections, which torch cannot, so here they count as one matrix on both sides
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt.bench.memory import peak_resident
from glassgpt.training import objective
from glassgpt.training.objective import summed_cross_entropy
from glassgpt.training.optim import ITERATIONS, Muon

PROGRAMS = {"cross-entropy": ("ours", "torch", "auto", "logits"), "muon": ("ours", "torch")}


def cross_entropy(program: str, options: argparse.Namespace) -> tuple[Callable[[], object], list[Tensor]]:
    """Give a forward and backward pass, and the tensors whose gradients it makes."""
    made = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    hidden = torch.randn(options.tokens, options.width, **made, requires_grad=True)
    weight = (torch.randn(options.vocab, options.width, **made) / options.width**0.5).requires_grad_()
    targets = torch.randint(options.vocab, (options.tokens,), device=options.device)
    targets[::8] = -100
    chunks: dict[str, Any] = {"ours": None, "logits": None}
    if program not in chunks:
        rows = objective._parts(options.tokens, weight)[0].stop
        chunks["auto"] = torch.nn.LinearCrossEntropyOptions()
        chunks["torch"] = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows, chunking_method=None)

    def step() -> None:
        hidden.grad = weight.grad = None
        if program == "ours":
            loss = summed_cross_entropy(hidden, weight, targets, -100)
        else:
            loss = F.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=chunks[program])
        loss.backward()

    return step, [hidden, weight]


def muon(program: str, options: argparse.Namespace) -> tuple[Callable[[], object], list[Tensor]]:
    """Give one step, and the weights that it updates."""
    width = options.width
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * options.layers
    weights = [torch.nn.Parameter(torch.randn(shape, device=options.device)) for shape in shapes]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    if program == "ours":
        dtype = getattr(torch, options.dtype)
        ours = Muon([(weight, (len(weight),)) for weight in weights], 0.01, 0.95, 0.1, dtype)
        return ours.step, list(weights)
    return torch.optim.Muon(weights, lr=0.01, weight_decay=0.1, ns_steps=ITERATIONS).step, list(weights)


def peak(device: str) -> int:
    """Give the peak memory so far, in bytes."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else peak_resident() or 0


def worker(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one program in this process."""
    task, program = options.worker.split("/")
    torch.manual_seed(0)
    step, tensors = (cross_entropy if task == "cross-entropy" else muon)(program, options)
    before, seconds = peak(options.device), []
    step()
    results = [tensor.detach() if task == "muon" else tensor.grad for tensor in tensors]
    samples = [result.flatten()[:: max(1, result.numel() // 500)].float().tolist() for result in results]
    for _ in range(options.rounds):
        if options.device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        if options.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "bytes": peak(options.device) - before, "samples": samples}


def difference(one: list[list[float]], other: list[list[float]]) -> float:
    """Give the largest difference, relative to the largest number of the same tensor."""
    pairs = [(torch.tensor(a), torch.tensor(b)) for a, b in zip(one, other, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    for name, number in {"tokens": 4096, "width": 384, "vocab": 50257, "layers": 6, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--smoke", action="store_true", help="small numbers, one round")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.smoke:
        options.tokens, options.width, options.vocab, options.layers, options.rounds = 64, 16, 300, 1, 1
    if options.worker:
        print(json.dumps(worker(options)))
        return
    if not hasattr(F, "linear_cross_entropy"):
        sys.exit(f"needs torch 2.13 or later, not {torch.__version__}")
    figures: dict[str, Any] = {}
    for task, programs in PROGRAMS.items():
        for program in programs:
            command = [sys.executable, __file__, *sys.argv[1:], "--worker", f"{task}/{program}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{task} of {program} failed:\n{done.stderr}")
            found = figures[f"{task}/{program}"] = json.loads(done.stdout.splitlines()[-1])
            apart = difference(found["samples"], figures[f"{task}/ours"]["samples"])
            print(
                f"{task:14} {program:7} {found['seconds'] * 1000:9.1f} ms {found['bytes'] / 1e6:9.1f} MB   "
                f"differs from ours by {apart:.1e}"
            )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:  # noqa: PTH123
            json.dump(figures, file)


if __name__ == "__main__":
    main()
