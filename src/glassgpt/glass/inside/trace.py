"""Every tensor of a forward pass on its way: its sizes, its storage, its numbers, and the formula that made it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from glassgpt.glass.inside.formulas import formulas
from glassgpt.glass.inside.prompt import Prompt, read_prompt
from glassgpt.model import GPT
from glassgpt.recording import axes_of, evaluation_mode, watch
from glassgpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class TensorFacts:
    """A tensor of a forward pass.

    Attributes:
        name: a key of ``recording.AXES``.
        layer: from 0; None outside the blocks.
        axes: their names: B batch, T time, and so on, as in ``recording``.
        sizes: of the axes.
        dtype: as torch names it: ``float32``.
        device: ``cpu``, ``cuda:0``, ...
        storage: "new"; "view of X" if it shares its storage with X, an earlier tensor of the pass or a weight; "same as
            X" if it has the sizes and strides of X, too.
        mean: of the finite numbers, as ``std``, ``smallest`` and ``largest``; NaN if there are none.
        std: the standard deviation over all numbers, not corrected for the mean (divided by n).
        smallest: the smallest number.
        largest: the largest number.
        masked: how many numbers of the masked scores are -inf; they are not counted in ``not_finite``.
        not_finite: how many numbers are NaN or infinite.
        formula: how it was computed, with the sizes.
    """

    name: str
    layer: int | None
    axes: list[str]
    sizes: list[int]
    dtype: str
    device: str
    storage: str
    mean: float
    std: float
    smallest: float
    largest: float
    masked: int
    not_finite: int
    formula: str


@dataclass(frozen=True)
class Trace:
    """The tensors of a pass in the order in which they were computed, and the first one that is not finite, if any."""

    prompt: Prompt
    tensors: list[TensorFacts]
    first_not_finite: TensorFacts | None


@torch.no_grad()
def trace(model: GPT, tokenizer: Tokenizer, prompt: str) -> Trace:
    """Run the model on a text, with explicit attention and without dropout, and describe every tensor.

    Tensors are described when they are computed, and those of a layer are let go after it.

    Raises:
        GlassError: as :func:`read_prompt`.
    """
    found = read_prompt(model, tokenizer, prompt)
    layers = [formulas(model.config, len(found.ids), layer) for layer in range(model.config.n_layer)]
    storages = _Storages(model)
    tensors = []

    def see(name: str, layer: int | None, tensor: Tensor) -> None:
        storage = storages.describe(name, layer, tensor)
        formula = layers[layer or 0][name]
        tensors.append(_facts(name, layer, axes_of(name, model.config), tensor.detach(), storage, formula))

    with evaluation_mode(model), watch(model, see, "explicit"):
        model(found.idx(model))
    return Trace(found, tensors, next((facts for facts in tensors if facts.not_finite), None))


class _Storages:
    """Finds the tensor whose storage another one shares.

    The tensors of a layer are held until the next one begins, so that no storage is used again while it is compared.
    """

    def __init__(self, model: GPT):
        self._weights = {_storage(weight): (name, weight.detach()) for name, weight in model.named_parameters()}
        self._held = dict(self._weights)  # by storage, the name and the first tensor in it
        self._last: tuple[int | None, Tensor] | None = None

    def describe(self, name: str, layer: int | None, tensor: Tensor) -> str:
        """Return ``new``, ``view of X`` or ``same as X``."""
        if self._last is not None and self._last[0] != layer:  # of the layer before, only the residual stream is used
            last = _storage(self._last[1])
            self._held = self._weights | {last: self._held[last]}
        self._last = (layer, tensor)
        place = _storage(tensor)
        if place not in self._held:
            self._held[place] = (name, tensor)
            return "new"
        first_name, first = self._held[place]
        is_same = (first.data_ptr(), first.shape, first.stride()) == (tensor.data_ptr(), tensor.shape, tensor.stride())
        return f"{'same as' if is_same else 'view of'} {first_name}"


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _facts(
    name: str, layer: int | None, axes: tuple[str, ...], tensor: Tensor, storage: str, formula: str
) -> TensorFacts:
    values, others, masked = tensor.float(), 0, 0
    if not math.isfinite(float(values.max() - values.min())):  # much quicker than isfinite of all
        values = values[values.isfinite()]
        others = tensor.numel() - values.numel()
        masked = int(tensor.isneginf().sum()) if name == "masked scores" else 0
    mean, std, smallest, largest = _numbers(values)
    return TensorFacts(
        name, layer, list(axes), list(tensor.shape), str(tensor.dtype).removeprefix("torch."), str(tensor.device),
        storage, mean, std, smallest, largest, masked, others - masked, formula,
    )  # fmt: skip


def _numbers(values: Tensor) -> tuple[float, float, float, float]:
    """Return the mean, the standard deviation, the smallest and the largest value; NaN of no values."""
    if not values.numel():
        return (math.nan,) * 4
    smallest, largest = values.aminmax()
    std = values.std(correction=0)
    if not std.isfinite():  # squares beyond float32
        values = values.cpu().double()
        std = values.std(correction=0)
    return float(values.mean()), float(std), float(smallest), float(largest)
