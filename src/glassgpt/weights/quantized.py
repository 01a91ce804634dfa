"""Folders of quantised models, as :mod:`glassgpt.transforms.quantize` makes them.

A quantised matrix ``W.weight`` is two tensors of model.safetensors, ``W.weight.values`` and ``W.weight.scales``, as
:class:`~glassgpt.model.quantized.QuantizedMatrix` has them (always [out, in]; GPT-2's others are stored transposed).
config.json says how each is stored::

    "quantization_config": {
      "quant_method": "glassgpt", "bits": 4, "group_size": 64,
      "modules": {"model.embed_tokens": {"bits": 8, "group_size": null}, "model.layers.0.mlp.up_proj": {}, ...}
    }

A module's own entries win over those of all. A null group_size is a whole row.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from glassgpt.config import ModelConfig
from glassgpt.errors import CheckpointError
from glassgpt.model import GPT
from glassgpt.model.quantized import Quantization, dequantize_rows, quantized_layers
from glassgpt.weights import mapping
from glassgpt.weights.families.family import Family, shortened
from glassgpt.weights.loading import describe
from glassgpt.weights.mapping import Placement
from glassgpt.weights.sources import FolderSource, read_json, some

QUANTIZATION_KEY, METHOD = "quantization_config", "glassgpt"
VALUES, SCALES = PARTS = (".values", ".scales")


def is_quantized_folder(folder: Path) -> bool:
    """Whether a folder's config.json says that glassgpt has quantised the model.

    Raises:
        CheckpointError: if config.json is missing or damaged.
    """
    entry = read_json(folder / "config.json").get(QUANTIZATION_KEY)
    return isinstance(entry, dict) and entry.get("quant_method") == METHOD


class QuantizedFolderSource(FolderSource):
    """A folder of a quantised model; see :class:`~glassgpt.weights.sources.QuantizedSource`.

    Raises:
        CheckpointError: as FolderSource; if config.json and the tensors do not agree.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        entry = self.config[QUANTIZATION_KEY]
        self.config = {key: value for key, value in self.config.items() if key != QUANTIZATION_KEY}
        self.quantized: Mapping[str, Quantization] = {}  # so that describe can read what is plain
        config, family = describe(self)
        places = _matrices(config, family)
        self.quantized = _read_layout(folder, entry, places)
        shapes, stored = dict(self.shapes), dict(self.stored)
        problems = []
        for name, kind in self.quantized.items():
            rows, columns = _size(places[name])
            if name in shapes:
                problems.append(f"{name} is there twice, also as plain weights")
            for tensor, dtype, shape in (
                (name + VALUES, *(("I8", (rows, columns)) if kind.bits == 8 else ("U8", (rows, columns // 2)))),
                (name + SCALES, "F32", (rows, columns // kind.group_size)),
            ):
                found = shapes.pop(tensor, None), stored.pop(tensor, None)
                if found != (shape, dtype):
                    has = f"is {found[1]} {list(found[0])}" if found[0] is not None else "is missing"
                    problems.append(f"{tensor} {has}, expected {dtype} {list(shape)}")
            shapes[name], stored[name] = places[name].published_shape, f"INT{kind.bits}"
        if problems:
            raise CheckpointError(f"the weights of {folder} do not fit its {QUANTIZATION_KEY}: {some(problems)}")
        self.shapes, self.stored = shapes, stored
        self._transposed = {name for name in self.quantized if places[name].transpose}
        self._last: tuple[str, Tensor] | None = None  # a transposed matrix, which is read in parts

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As :meth:`~glassgpt.weights.sources.WeightSource.read`; float32 if the tensor is quantised."""
        if name not in self.quantized:
            return super().read(name, start, stop)
        if name in self._transposed:
            if self._last is None or self._last[0] != name:
                self._last = name, dequantize_rows(*self.read_quantized(name), self.quantized[name]).T
            return self._last[1][start:stop]
        values, scales = (super(QuantizedFolderSource, self).read(name + part, start, stop) for part in PARTS)
        return dequantize_rows(values, scales, self.quantized[name])

    def read_quantized(self, name: str) -> tuple[Tensor, Tensor]:
        """As :meth:`~glassgpt.weights.sources.QuantizedSource.read_quantized`."""
        return super().read(name + VALUES), super().read(name + SCALES)


def _matrices(config: ModelConfig, family: Family) -> dict[str, Placement]:
    """Give the published matrices that can be quantised, by name: of linear layers, the embedding and the head."""
    return {
        place.published: place
        for place in mapping.placements(config, family)
        if len(place.our_shape) == 2 and place.ours != "position_embedding.weight" and not place.tied
    }


def _size(place: Placement) -> tuple[int, int]:
    """Give the rows and columns of a matrix, ``[out, in]``."""
    return place.published_shape[::-1] if place.transpose else place.published_shape  # type: ignore[return-value]


def _read_layout(folder: Path, entry: Mapping[str, Any], places: Mapping[str, Placement]) -> dict[str, Quantization]:
    """Read how each matrix is stored.

    Raises:
        CheckpointError: naming what cannot be.
    """
    modules = entry.get("modules")
    if not isinstance(modules, dict) or not modules:
        raise CheckpointError(
            f"{folder}: config.json: {QUANTIZATION_KEY}: modules={shortened(modules)} should name the matrices"
        )
    found, problems = dict[str, Quantization](), []
    for module, own in modules.items():
        place = places.get(name := f"{module}.weight")
        if place is None or not isinstance(own, dict):
            reason = "is no matrix of this model" if place is None else f"has {shortened(own)}, which is not an object"
            problems.append(f"{shortened(module)} {reason}")
            continue
        bits, size = ({**entry, **own}.get(key) for key in ("bits", "group_size"))
        columns = _size(place)[1]
        size = columns if size is None else size
        if type(bits) is not int or bits not in (4, 8):
            problems.append(f"bits={shortened(bits)} of {module} is neither 4 nor 8")
        elif type(size) is not int or size < 1 or columns % size or (bits == 4 and size % 2):
            even = "an even divisor" if bits == 4 else "a divisor"
            problems.append(f"group_size={shortened(size)} of {module} is not {even} of its {columns} inputs")
        else:
            found[name] = Quantization(bits, size)
    if problems:
        raise CheckpointError(f"{folder}: config.json: {QUANTIZATION_KEY}: {some(problems)}")
    return found


def to_published(model: GPT, family: Family) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Name the tensors of a quantised model as its folder does, and give the ``quantization_config`` to it."""
    layers, state = quantized_layers(model), model.state_dict()
    tensors, kinds = dict[str, Tensor](), dict[str, tuple[Quantization, int]]()
    for place in mapping.placements(model.config, family):
        layer = layers.get(place.ours.removesuffix(".weight")) if place.ours.endswith(".weight") else None
        if place.tied:
            continue
        if layer is None:
            tensors[place.published] = place.view(state[place.ours])
            continue
        rows = slice(*place.rows) if place.rows else slice(None)
        tensors[place.published + VALUES], tensors[place.published + SCALES] = layer.values[rows], layer.scales[rows]
        kinds[place.published.removesuffix(".weight")] = layer.kind, layer.in_features
    bits = min(kind.bits for kind, _ in kinds.values())
    written = {
        module: {"bits": kind.bits, "group_size": None if kind.group_size == columns else kind.group_size}
        for module, (kind, columns) in kinds.items()
    }
    sizes = [entry["group_size"] for entry in written.values() if entry["bits"] == bits]
    common = {"bits": bits, "group_size": max(set(sizes), key=sizes.count)}
    modules = {module: {} if entry == common else entry for module, entry in written.items()}
    return tensors, {"quant_method": METHOD, **common, "modules": modules}
