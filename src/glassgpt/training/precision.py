"""Computing in fewer bits than the weights are trained in, where that is measured to pay.

The optimiser works on float32 master weights. The model computes with a copy of them in bfloat16 or float16 that is
made once per step, so that no operation has to cast a weight; the gradients of micro-batches add up in float32. In
float32 the copy and the masters are the same tensors. Source: Micikevicius et al., 2018, arXiv:1710.03740.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from glassgpt.config import ModelConfig
from glassgpt.data.batch import Batch
from glassgpt.model import GPT
from glassgpt.runtime import synchronise
from glassgpt.training.objective import next_token_loss

#: A type has to be this much faster than float32, and its logits and gradients this close, to be chosen.
FASTER = 1.1
LOGITS_ERROR = 0.05
GRADIENT_COSINE = 0.99


class MasterWeights:
    """The float32 weights of a model that computes in ``dtype``; the model is cast in place.

    Attributes:
        named: the masters by parameter name; in float32 these are the model's own parameters.
    """

    def __init__(self, model: GPT, dtype: torch.dtype):
        self.model = model
        self.named: dict[str, Tensor] = dict(model.named_parameters())
        self.separate = dtype != torch.float32
        if self.separate:
            self.named = {name: weight.detach().clone() for name, weight in self.named.items()}
            model.to(dtype)
            model.tie_weights_and_build_rope()  # the rotary tables stay exact

    def collect(self) -> None:
        """After a backward pass: add the model's gradients to the masters', in float32."""
        if not self.separate:
            return  # they are the same tensors, and autograd has added them up
        for name, weight in self.model.named_parameters():
            if weight.grad is None:
                continue
            gradient, master = weight.grad.float(), self.named[name]
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            weight.grad = None

    def hand_back(self) -> None:
        """Before the backward pass in which processes exchange gradients: put all that was collected in its place."""
        if not self.separate:
            return
        for name, weight in self.model.named_parameters():
            master = self.named[name]
            if master.grad is not None:
                weight.grad, master.grad = master.grad.to(weight.dtype), None

    def gradients(self) -> list[Tensor]:
        """The float32 gradients."""
        return [weight.grad for weight in self.named.values() if weight.grad is not None]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for weight in (*self.model.parameters(), *self.named.values()):
            weight.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the model."""
        if self.separate:
            for name, weight in self.model.named_parameters():
                weight.copy_(self.named[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The model's state in float32."""
        state = {**self.model.state_dict(), **self.named}
        if self.model.config.tie_embeddings:
            state["head.weight"] = state["token_embedding.weight"]
        return state


@dataclass
class LossScale:
    """Keeps float16's small gradients from becoming zero: losses are scaled up, gradients back down.

    Halved when a gradient overflows (the step is then skipped), doubled after ``patience`` good steps. For every other
    type it is 1 and not active.
    """

    value: float = 1.0
    good_steps: int = 0
    active: bool = False
    patience: int = 1000

    @classmethod
    def for_dtype(cls, dtype: torch.dtype, value: float = 0.0, good_steps: int = 0) -> "LossScale":
        """The scale of a type: as it stood, or for float16 from 2 ** 16."""
        if dtype != torch.float16:
            return cls()
        return cls(value or 2.0**16, good_steps, active=True)

    @property
    def mends(self) -> bool:
        """Whether an overflow is expected, and a smaller scale will mend it."""
        return self.active and self.value > 1.0

    def update(self, finite: bool) -> None:
        """After each step: whether its gradients were finite."""
        if not self.active:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value = self.value / 2
        elif self.good_steps == self.patience:
            self.value, self.good_steps = self.value * 2, 0


@dataclass(frozen=True)
class SelfCheck:
    """What a compute type did on this device, against float32 on the same batch.

    Attributes:
        speedup: time of a forward and backward pass in float32 over that in this type; 0 if it was not worth trying.
        logits_error: root mean square of the difference of logits, over that of the logits.
        gradient_cosine: cosine between all gradients and those of float32.
    """

    dtype: torch.dtype
    speedup: float
    logits_error: float = 0.0
    gradient_cosine: float = 1.0
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether to compute in this type."""
        agrees = self.logits_error <= LOGITS_ERROR and self.gradient_cosine >= GRADIENT_COSINE
        return self.speedup >= FASTER and agrees

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        if self.problem:
            return f"{name} could not be checked: {self.problem}"
        if self.speedup < FASTER:
            return f"{name} is not faster than float32 here ({self.speedup:.2f}x)"
        verdict = "" if self.passed else ": too much, not used"
        return (
            f"{name} is {self.speedup:.1f}x as fast as float32 here; logits differ by {self.logits_error:.2%}, "
            f"gradients by an angle of cosine {self.gradient_cosine:.4f}{verdict}"
        )


def choose_dtype(config: ModelConfig, rows: int, device: torch.device) -> tuple[torch.dtype, str]:
    """The compute type that pays for a model on a device: bfloat16, else float16, else float32; and why."""
    said = []
    for dtype in (torch.bfloat16, torch.float16):
        found = check(dtype, config, rows, device)
        said.append(str(found))
        if found.passed:
            return dtype, said[-1]
    return torch.float32, "; ".join(said)


def check(dtype: torch.dtype, config: ModelConfig, rows: int, device: torch.device) -> SelfCheck:
    """Measure one compute type against float32 on a fresh model and random tokens ``[rows, block_size]``.

    A type without hardware can be a hundred times slower, so a small matrix product goes first.
    """
    try:
        quick = matrix_flops_per_second(dtype, device) / matrix_flops_per_second(torch.float32, device)
        if quick < FASTER:
            return SelfCheck(dtype, quick)
        expected = _run(torch.float32, config, rows, device)
        found = _run(dtype, config, rows, device)
    except (RuntimeError, NotImplementedError) as error:  # out of memory, or a kernel that this type lacks
        return SelfCheck(dtype, 0.0, problem=str(error).strip().splitlines()[0][:120])
    distance = float((found[0] - expected[0]).norm() / expected[0].norm())
    cosine = float(torch.cosine_similarity(found[1].double(), expected[1].double(), dim=0))  # in float32 it exceeds 1
    return SelfCheck(dtype, expected[2] / found[2], distance, cosine)


def matrix_flops_per_second(dtype: torch.dtype, device: torch.device) -> float:
    """How fast a small square product of matrices is, roughly: the fastest of some; of few, where one takes long."""
    size = 256 if device.type == "cpu" else 2048
    a = torch.ones(size, size, device=device, dtype=dtype)
    seconds: list[float] = []
    while len(seconds) < 10 and sum(seconds) < 0.05:
        synchronise(device)
        began = time.perf_counter()
        a @ a
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def _run(
    dtype: torch.dtype, config: ModelConfig, rows: int, device: torch.device, passes: int = 3
) -> tuple[Tensor, Tensor, float]:
    """Logits, gradients (both flat, float32) and the fewest seconds of a forward and backward pass."""
    model = GPT(config)
    model.init_weights(0)
    model = model.to(device)
    MasterWeights(model, dtype)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (rows, config.block_size + 1), generator=generator).to(device)
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
    model.eval()  # dropout would differ
    seconds = []
    for _ in range(passes):
        model.zero_grad()
        synchronise(device)
        began = time.perf_counter()
        (next_token_loss(model, batch) / ids[:, 1:].numel()).backward()
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    with torch.no_grad():
        logits = model(batch.idx[:1]).float().flatten()
    gradients = torch.cat([weight.grad.float().flatten() for weight in model.parameters() if weight.grad is not None])
    return logits, gradients, min(seconds)
