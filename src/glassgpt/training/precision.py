"""Computing in fewer bits than the weights are trained in, where that is measured to pay.

The optimiser works on float32 master weights. The model computes with a copy of them in bfloat16 or float16 that is
made once per step, so that no operation has to cast a weight; gradients arrive, and add up, in float32. In float32
the copy and the masters are the same tensors. Source: Micikevicius et al., 2018, arXiv:1710.03740.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from glassgpt.config import ModelConfig
from glassgpt.model import GPT
from glassgpt.runtime import synchronise
from glassgpt.training.objective import Batch, next_token_loss

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
            model.finish()  # the rotary tables stay exact
            for weight in model.parameters():
                weight.grad_dtype = torch.float32

    def take_gradients(self) -> None:
        """Hand the model's gradients, already float32, to the masters."""
        if self.separate:
            for name, weight in self.model.named_parameters():
                self.named[name].grad = weight.grad

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

    Halved when a gradient overflows (the step is then skipped), doubled after ``patience`` good steps. 1 for every
    other type, and then never changed.
    """

    value: float = 1.0
    good_steps: int = 0
    patience: int = 1000

    @classmethod
    def for_dtype(cls, dtype: torch.dtype) -> "LossScale":
        """Where to begin: 2 ** 16 for float16."""
        return cls(2.0**16 if dtype == torch.float16 else 1.0)

    @property
    def active(self) -> bool:
        """Whether overflows are expected and mend themselves."""
        return self.value > 1.0

    def update(self, finite: bool) -> None:
        """After each step: whether its gradients were finite."""
        if not self.active:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value = max(1.0, self.value / 2)
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

    @property
    def passed(self) -> bool:
        """Whether to compute in this type."""
        agrees = self.logits_error <= LOGITS_ERROR and self.gradient_cosine >= GRADIENT_COSINE
        return self.speedup >= FASTER and agrees

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        if self.speedup < FASTER:
            return f"{name} is not faster than float32 here ({self.speedup:.2f}x)"
        return (
            f"{name} is {self.speedup:.1f}x as fast as float32 here; logits differ by {self.logits_error:.2%}, "
            f"gradients by an angle of cosine {self.gradient_cosine:.4f}"
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
        quick = _product_seconds(torch.float32, device) / _product_seconds(dtype, device)
        if quick < FASTER:
            return SelfCheck(dtype, quick)
        expected = _run(torch.float32, config, rows, device)
        found = _run(dtype, config, rows, device)
    except (RuntimeError, NotImplementedError):  # a kernel that does not exist in this type
        return SelfCheck(dtype, 0.0)
    error = float((found[0] - expected[0]).norm() / expected[0].norm())
    cosine = float(torch.cosine_similarity(found[1], expected[1], dim=0))
    return SelfCheck(dtype, expected[2] / found[2], error, cosine)


def _product_seconds(dtype: torch.dtype, device: torch.device, size: int = 384) -> float:
    a = torch.ones(size, size, device=device, dtype=dtype)

    def product() -> float:
        synchronise(device)
        began = time.perf_counter()
        for _ in range(4):
            a @ a
        synchronise(device)
        return time.perf_counter() - began

    product()
    return min(product() for _ in range(3))


def _run(
    dtype: torch.dtype, config: ModelConfig, rows: int, device: torch.device, passes: int = 3
) -> tuple[Tensor, Tensor, float]:
    """Logits, gradients (both flat, float32) and the median seconds of a forward and backward pass."""
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
