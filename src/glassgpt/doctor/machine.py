"""The checks of the machine: what it has, what `auto` chooses here, and whether its devices compute the same.

A small GPT computes logits and gradients in several ways, each of which is compared with float32 on the CPU, without
fused attention: the plainest arithmetic there is.
"""

import copy
import importlib.util
import math
import pathlib
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from glassgpt.config import ModelConfig, RuntimeConfig
from glassgpt.data.batch import random_batch
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned
from glassgpt.errors import first_line
from glassgpt.inference.decoders import EagerDecoder
from glassgpt.model import GPT, KVCache
from glassgpt.planning.compute_dtype import MIN_SPEEDUP, matrix_flops_per_second
from glassgpt.runtime import Runtime, compiler_found, resolve, versions

#: The model that is compared: two layers, with every kind of arithmetic that ours have.
SMALL = ModelConfig(n_layer=2, n_head=4, n_kv_head=2, n_embd=64, block_size=64, vocab_size=256, dropout=0.0)
#: Relative differences (root mean square, of logits and of gradients). float32 rounds to 6e-8; sums of some hundred
#: terms in another order, through two layers and back, give 1e-6, measured on CPUs and GPUs. TF32 and bfloat16 have
#: 10 and 8 bits: 1e-3 and 5e-3 a product.
_FLOAT32, _TF32, _BFLOAT16 = 1e-4, 1e-2, 5e-2

#: Logits ``[B, T, V]`` and the gradients of the summed loss, by the names of parameters; all on the CPU in float32.
Computed = tuple[Tensor, dict[str, Tensor]]
Compute = Callable[[GPT, Tensor, Tensor], Computed]


def compute_on(device: torch.device, dtype: torch.dtype = torch.float32) -> Compute:
    """A function that computes on a device and in a type."""

    def compute(model: GPT, idx: Tensor, targets: Tensor) -> Computed:
        other = GPT(model.config)
        other.load_state_dict(model.state_dict())
        other = other.to(device=device, dtype=dtype).eval()
        logits = other(idx.to(device))
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.to(device).flatten(), reduction="sum")
        loss.backward()
        gradients = {name: p.grad.cpu().float() for name, p in other.named_parameters() if p.grad is not None}
        return logits.detach().cpu().float(), gradients

    return compute


@dataclass
class Machine:
    """This machine, with the functions that compute on its devices.

    Attributes:
        runtime: what `auto` chooses.
        devices: by name, the functions to compare with the CPU; those of the accelerators that are there.
    """

    runtime: Runtime
    devices: dict[str, Compute]

    @cached_property
    def model(self) -> GPT:
        """The small model."""
        model = GPT(SMALL)
        model.init_weights(0)
        return model.eval()

    @cached_property
    def batch(self) -> tuple[Tensor, Tensor]:
        """Random tokens ``[2, 64]``, and their targets."""
        batch = random_batch(SMALL.vocab_size, 2, SMALL.block_size)
        return batch.idx, batch.targets

    @cached_property
    def reference(self) -> Computed:
        """float32 on the CPU, with explicit attention."""
        with sdpa_kernel(SDPBackend.MATH):
            return self.compute(compute_on(torch.device("cpu")))

    def compute(self, how: Compute) -> Computed:
        """Compute logits and gradients in one way; the random state stays."""
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            return how(self.model, *self.batch)


def load_machine() -> Machine:
    """Describe this machine. Nothing is computed yet."""
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    devices += [torch.device("mps")] if torch.backends.mps.is_available() else []
    return Machine(resolve(RuntimeConfig()), {str(device): compute_on(device) for device in devices})


@dataclass(frozen=True)
class Difference:
    """How far a computation is from the reference: relative root mean squares."""

    logits: float
    gradients: float
    worst: str  # the parameter whose gradient differs most

    @property
    def largest(self) -> float:
        """The larger of the two."""
        return max(self.logits, self.gradients)

    def __str__(self) -> str:
        return f"logits differ by {self.logits:.1e}, gradients by {self.gradients:.1e}"


def difference(found: Computed, expected: Computed) -> Difference:
    """Compare two computations; what is not finite, or missing, is infinitely far away."""
    by_name = {
        name: _relative(found[1].get(name, torch.full_like(gradient, math.inf)), gradient)
        for name, gradient in expected[1].items()
    }
    worst = max(by_name, key=lambda name: by_name[name])
    return Difference(_relative(found[0], expected[0]), by_name[worst], worst)


def _relative(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return math.inf
    value = float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))
    return value if math.isfinite(value) else math.inf


def check_facts(machine: Machine) -> Iterator[Result]:
    """Name the machine and what it has."""
    known, runtime = versions(), machine.runtime
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    compiler = compiler_found(runtime.device)
    facts = {
        "machine": known["machine"], "processor": platform.processor() or platform.machine(), "torch": known["torch"],
        "device": str(runtime.device), "gpus": gpus, "threads": runtime.threads, "compiler": compiler,
        "cpu capability": torch.backends.cpu.get_cpu_capability(), "bfloat16 units": has_bfloat16_units(runtime.device),
        "numba": importlib.util.find_spec("numba") is not None,
    }  # fmt: skip
    yield passed(
        f"{facts['machine']}; torch {facts['torch']}; device "
        f"{facts['device']}{' (' + ', '.join(gpus) + ')' if gpus else ''}, "
        f"{facts['threads']} threads, {facts['cpu capability']}; compiler: {'yes' if compiler else 'no'}; bfloat16 "
        f"units: {'yes' if facts['bfloat16 units'] else 'no'}", **facts,
    )  # fmt: skip


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether the device has instructions for products in bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.get_device_capability(device)[0] >= 8)
    if device.type == "cpu":
        flags = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, and ARM
        try:
            with pathlib.Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
                return bool(flags & set(file.read().split()))
        except OSError:
            return False
    return False


def check_choices(machine: Machine) -> Iterator[Result]:
    """What `auto` chooses for the device, the type and the compiler, and why."""
    runtime = machine.runtime
    device = runtime.device
    speedup = matrix_flops_per_second(torch.bfloat16, device) / matrix_flops_per_second(torch.float32, device)
    why_device = {"cuda": "a CUDA GPU is there", "mps": "an Apple GPU is there"}.get(device.type, "no GPU is there")
    dtype = (
        f"bfloat16 products are {speedup:.1f}x as fast as float32, so training measures whether its gradients are good"
        if speedup >= MIN_SPEEDUP else f"float32, as bfloat16 products are only {speedup:.2f}x as fast"
    )  # fmt: skip
    compiler = "compile is measured at the start of a run" if compiler_found(device) else "no compile: no C++ compiler"
    yield passed(
        f"device=auto takes {device} ({why_device}); dtype=auto: {dtype}; {compiler}", device=str(device),
        bfloat16_speedup=round(speedup, 2), threads=runtime.threads,
    )  # fmt: skip


def check_devices(machine: Machine) -> Iterator[Result]:
    """Each accelerator computes what the CPU computes, in float32."""
    if not machine.devices:
        raise NotRun("no GPU is there: nothing to compare the CPU with")
    tf32 = torch.backends.cuda.matmul.allow_tf32
    for name, how in machine.devices.items():
        try:
            torch.backends.cuda.matmul.allow_tf32 = False
            found = difference(machine.compute(how), machine.reference)
        except (RuntimeError, NotImplementedError) as error:
            yield failed("device", f"{name} cannot compute a small GPT: {first_line(error)}", device=name)
            continue
        finally:
            torch.backends.cuda.matmul.allow_tf32 = tf32
        yield _judge(name, "float32 on the CPU", found, _FLOAT32, "device")


def check_reduced(machine: Machine) -> Iterator[Result]:
    """TF32 on a GPU, and bfloat16 on the device, are as close as their bits allow."""
    device = machine.runtime.device
    tf32 = torch.backends.cuda.matmul.allow_tf32
    if device.type == "cuda":
        try:
            torch.backends.cuda.matmul.allow_tf32 = True
            found = difference(machine.compute(compute_on(device)), machine.reference)
            yield _judge(f"TF32 on {device}", "float32 on the CPU", found, _TF32, "precision")
        finally:
            torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        found = difference(machine.compute(compute_on(device, torch.bfloat16)), machine.reference)
    except (RuntimeError, NotImplementedError) as error:
        yield passed(f"bfloat16 is not there on {device}: {first_line(error)}")
        return
    yield _judge(f"bfloat16 on {device}", "float32", found, _BFLOAT16, "precision")


def check_attention(machine: Machine) -> Iterator[Result]:
    """Fused attention computes what explicit attention computes."""
    fused = machine.compute(compute_on(torch.device("cpu")))
    yield _judge(
        "fused attention on the CPU", "explicit attention", difference(fused, machine.reference), _FLOAT32, "device"
    )


def check_kernels(machine: Machine) -> Iterator[Result]:
    """The numba kernels for decoding compute what the model computes."""
    from glassgpt.inference.kernel_decoder import KernelDecoder, unsupported

    model = copy.deepcopy(machine.model)  # the kernels move its weights
    if reason := unsupported(model):
        raise NotRun(f"the kernels do not run here: {reason}")
    decoder = KernelDecoder(model)
    if not decoder.is_compiled():
        raise NotRun("the kernels are not compiled yet, which takes 10 to 20 s; any `decode=kernels` compiles them")
    idx = machine.batch[0]
    with torch.no_grad():
        expected = machine.model(idx)[:, -1:]
        cache = KVCache(SMALL, idx.size(0), capacity=idx.size(1), device=idx.device, dtype=torch.float32)
        EagerDecoder(machine.model)(idx[:, :-1], cache)
        found = decoder(idx[:, -1:], cache)
    yield _judge("a decode step by the kernels", "the "
                                                 "model", difference((found, {"": found}), (expected, {"": expected})),
                 _FLOAT32, "device")  # fmt: skip


def _judge(name: str, reference: str, found: Difference, limit: float, finding: str) -> Result:
    evidence: dict[str, Any] = {
        "logits": found.logits,
        "gradients": found.gradients,
        "limit": limit,
        "worst gradient": found.worst,
    }
    message = f"{name} against {reference}: {found}"
    if found.largest > 10 * limit:
        return failed(finding, f"{message} ({found.worst}); rounding explains {limit:.0e}: do not trust it", **evidence)
    if found.largest > limit:
        return warned(finding, f"{message} ({found.worst}); rounding explains {limit:.0e}", **evidence)
    return passed(message, **evidence)


MACHINE_CHECKS: tuple[Check[Machine], ...] = (
    Check("machine", "Names the machine, its devices, threads, compiler and bfloat16 units.", "nothing is computed",
          "none", (), check_facts),
    Check("choices", "Says what `auto` chooses for device, type and compiler, and why.", "two small matrix products",
          f"bfloat16 has to be {MIN_SPEEDUP} times as fast to be measured further", (), check_choices),
    Check("devices agree", "Computes logits and gradients of a 2-layer GPT on each accelerator and on the CPU, in "
                           "float32.",
          "one pass per device", f"a relative difference of {_FLOAT32:.0e} is warned of, ten times that fails: "
                                 f"rounding "
          "gives 1e-6; a wrong kernel gives 1e-2 and more", ("device",), check_devices),
    Check("fused attention", "Compares fused attention with explicit attention, logits and gradients.", "two passes",
          f"as for devices: {_FLOAT32:.0e}", ("device",), check_attention),
    Check("reduced precision", "Compares bfloat16, and TF32 on a GPU, with float32.", "one pass each",
          f"{_BFLOAT16:.0e} and {_TF32:.0e}: 8 and 10 bits, through two layers and "
          f"back", ("precision",), check_reduced),
    Check("decode kernels", "Compares a decode step of the numba kernels with the model.", "two passes; loads numba",
          f"as for devices: {_FLOAT32:.0e}", ("device",), check_kernels, fast=False),
)  # fmt: skip
