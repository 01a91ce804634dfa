"""What a page must show, from the recorded pass and the model's weights in torch."""

import math
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal

import torch
from torch import Tensor

from glassgpt.model import GPT
from glassgpt.recording import Recording

#: Tensors whose cells the page explains, inside blocks and outside.
LINEAR = {
    "qkv": "norm 1",
    "attention output": "concatenated heads",
    "gate": "norm 2",
    "up": "norm 2",
    "mlp output": "hidden",
}


def digits(x: float) -> str:
    """Write a number as the page does: four significant digits, halves away from zero."""
    if not math.isfinite(x):
        return "NaN" if math.isnan(x) else "∞" if x > 0 else "-∞"
    if x == 0:
        return "0"
    size = abs(x)
    exact = Decimal(x)
    if size >= 1e6 or size < 1e-4:
        mantissa, exponent = f"{exact.quantize(_unit(exact, 4), ROUND_HALF_UP):.3e}".split("e")
        return f"{mantissa}e{int(exponent):+d}"
    if size >= 9999.5:
        return f"{exact.quantize(Decimal(1), ROUND_HALF_UP):f}"
    return f"{exact.quantize(_unit(exact, 4), ROUND_HALF_UP):f}"


def _unit(x: Decimal, significant: int) -> Decimal:
    """The unit of the last of that many significant digits; of 9.9996, which is rounded to 10, that of 10."""
    unit = Decimal(1).scaleb(x.adjusted() - significant + 1)
    return Decimal(1).scaleb(x.quantize(unit, ROUND_HALF_UP).adjusted() - significant + 1)


class Oracle:
    """The pass of one prompt, and the terms of which every number is made, in float64."""

    def __init__(self, model: GPT, recording: Recording):
        self.model, self.config, self.recording = model, model.config, recording

    def tensor(self, name: str, layer: int | None) -> Tensor:
        """Return a recorded tensor without the batch dimension, float64."""
        tensor = self.recording.get(name, layer)
        return (tensor if name == "position embedding" else tensor[0]).double()

    def names(self) -> list[tuple[str, int | None]]:
        """Return every tensor of the pass."""
        return list(self.recording.tensors)

    def terms(self, name: str, layer: int | None, index: list[int]) -> list[float]:
        """Return the terms that the page lists for one number; none where nothing is added up."""
        parts = {
            "scores": self._scores, "scaled scores": self._copy_of("scores"),
            "masked scores": self._copy_of("scaled scores"), "attention weights": self._weights,
            "head outputs": self._mixed, "concatenated heads": self._concatenated,
            "hidden": self._hidden, "logits": self._logits, "embeddings": self._embeddings,
            "k per query head": self._repeated(self._key_name()), "v per query head": self._repeated("v"),
        }  # fmt: skip
        kinds: dict[str, Callable[..., Tensor]] = {"residual": self._residual, "norm": self._norm, "final": self._norm}
        kinds |= {"normed": self._norm, "rotated": self._rotated}
        if name in LINEAR or name in ("q", "k", "v"):
            terms = self._linear(name, layer, index)
        elif function := parts.get(name) or kinds.get(name.split()[0]):
            terms = function(name, layer, index)
        else:
            return []
        return terms.double().flatten().tolist()

    def residual_before(self, layer: int) -> Tensor:
        """Return the residual stream at the beginning of a block."""
        return self.tensor("embeddings", None) if layer == 0 else self.tensor("residual after mlp", layer - 1)

    def _linear(self, name: str, layer: int, index: list[int]) -> Tensor:
        block = self.model.blocks[layer]
        attention, mlp = block.attention, block.mlp
        if name in ("q", "k", "v"):
            q, k, _ = self.config.qkv_sizes
            head, t, d = index
            row = {"q": 0, "k": q, "v": q + k}[name] + head * self.config.head_dim + d
            name = "qkv"
        else:
            t, row = index
        modules = {"qkv": attention.qkv, "attention output": attention.out, "gate": mlp.gate, "up": mlp.up}
        linear = modules.get(name, mlp.down)
        products = self.tensor(LINEAR[name], layer)[t] * linear.weight[row].double()
        return products if linear.bias is None else torch.cat([products, linear.bias[row : row + 1].double()])

    def _logits(self, name: str, layer: None, index: list[int]) -> Tensor:
        t, token = index
        return self.tensor("final norm", None)[t] * self.model.head.weight[token].double()

    def _embeddings(self, name: str, layer: None, index: list[int]) -> Tensor:
        t, c = index
        if self.config.position == "rope":
            return torch.empty(0)
        return torch.stack([self.tensor(f"{kind} embedding", None)[t, c] for kind in ("token", "position")])

    def _residual(self, name: str, layer: int, index: list[int]) -> Tensor:
        t, c = index
        before, added = self.residual_before(layer), "attention output"
        if name == "residual after mlp":
            before, added = self.tensor("residual after attention", layer), "mlp output"
        return torch.stack([before[t, c], self.tensor(added, layer)[t, c]])

    def _norm(self, name: str, layer: int | None, index: list[int]) -> Tensor:
        inputs = {
            "norm 1": lambda: self.residual_before(layer),
            "norm 2": lambda: self.tensor("residual after attention", layer),
            "normed q": lambda: self.tensor("q", layer), "normed k": lambda: self.tensor("k", layer),
            "final norm": lambda: self.residual_before(self.config.n_layer),
        }  # fmt: skip
        x = inputs[name]()[tuple(index[:-1])]
        return x if self.config.norm == "layernorm" and not name.startswith("normed") else x * x

    def _rotated(self, name: str, layer: int, index: list[int]) -> Tensor:
        head, t, d = index
        source = f"normed {name[-1]}" if self.config.qk_norm else name[-1]
        x, half = self.tensor(source, layer)[head, t], self.config.head_dim // 2
        partner = -x[d + half] if d < half else x[d - half]
        return torch.stack([x[d] * self.model.rope_cos[t, d].double(), partner * self.model.rope_sin[t, d].double()])

    def _key_name(self) -> str:
        normed = "normed k" if self.config.qk_norm else "k"
        return "rotated k" if self.config.position == "rope" else normed

    def _kv_head(self, head: int) -> int:
        return head * self.config.n_kv_head // self.config.n_head

    def _repeated(self, source: str) -> Callable[..., Tensor]:
        def terms(name: str, layer: int, index: list[int]) -> Tensor:
            head, s, d = index
            return self.tensor(source, layer)[self._kv_head(head), s, d]

        return terms

    def _scores(self, name: str, layer: int, index: list[int]) -> Tensor:
        head, t, s = index
        key = self._key_name()
        q, k = self.tensor(key.replace("k", "q"), layer), self.tensor(key, layer)
        return q[head, t] * k[self._kv_head(head), s]

    def _copy_of(self, source: str) -> Callable[..., Tensor]:
        return lambda name, layer, index: self.tensor(source, layer)[tuple(index)]

    def _weights(self, name: str, layer: int, index: list[int]) -> Tensor:
        head, t, _ = index
        row = self.tensor("masked scores", layer)[head, t]
        return (row - row.max()).exp()[: t + 1]

    def _mixed(self, name: str, layer: int, index: list[int]) -> Tensor:
        head, t, d = index
        weights = self.tensor("attention weights", layer)[head, t, : t + 1]
        return weights * self.tensor("v", layer)[self._kv_head(head), : t + 1, d]

    def _concatenated(self, name: str, layer: int, index: list[int]) -> Tensor:
        t, a = index
        return self.tensor("head outputs", layer)[a // self.config.head_dim, t, a % self.config.head_dim]

    def _hidden(self, name: str, layer: int, index: list[int]) -> Tensor:
        up = self.tensor("up", layer)[tuple(index)]
        if self.config.mlp != "swiglu":
            return up
        return torch.nn.functional.silu(self.tensor("gate", layer)[tuple(index)]) * up
