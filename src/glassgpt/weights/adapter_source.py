"""A base model and its LoRA adapter as one source of weights, merged as they are read.

So every verb opens an adapter's folder (one of ours, or one that the `peft` library saved) like any model.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glassgpt import tokenizer as tokenizers
from glassgpt.config import ModelConfig
from glassgpt.errors import CheckpointError
from glassgpt.files import path_exists
from glassgpt.tokenizer.base import Tokenizer, find_tokenizer_file
from glassgpt.weights import mapping
from glassgpt.weights.adapter import BASE, published_matrices
from glassgpt.weights.families.family import shortened
from glassgpt.weights.folder import read_tensors
from glassgpt.weights.loading import cast_finite, describe
from glassgpt.weights.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS, WeightSource, file_checksums, read_json, some

_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<matrix>[AB])(?:\.default)?\.weight")
#: Features of adapter_config.json that are not implemented, if they are set.
_UNSUPPORTED = (
    *("use_dora", "bias", "modules_to_save", "lora_bias", "layer_replication", "trainable_token_indices"),
    *("target_parameters", "alora_invocation_tokens", "arrow_config", "use_qalora", "use_bdlora", "velora_config"),
)
#: Initialisations that leave the base weights as they are; the others (PiSSA, OLoRA, ...) change them.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


class AdapterSource:
    """A base model and a LoRA adapter, merged in float32 as they are read; see
    :class:`~glassgpt.weights.sources.WeightSource`.

    Args:
        folder: of the adapter.
        base: the opened base model; see :func:`open_base`.

    Raises:
        CheckpointError: if the adapter is damaged, does not fit the base, or has features that are not implemented.
    """

    def __init__(self, folder: Path, base: WeightSource):
        self.path, self.base, self.files = folder, base, [folder / ADAPTER_WEIGHTS]
        self.config, self.shapes = base.config, base.shapes
        config, family = describe(base)
        self._updates = _updates(folder, config)
        own_names = mapping.full_names(base.shapes, family)
        places = mapping.placements(config, family)
        self._places = {
            own_names[p.published]: p for p in places if p.published in own_names and p.ours in self._updates
        }
        self.stored: Mapping[str, str] = dict(base.stored) | dict.fromkeys(self._places, "F32")
        self.notes = (*base.notes, f"LoRA of {folder}, merged into the weights of {base.path}")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As :meth:`WeightSource.read`; float32 where LoRA is merged."""
        part = self.base.read(name, start, stop)
        if name not in self._places:
            return part
        place, merged = self._places[name], part.to(torch.float32, copy=True)
        # The part as rows (from ``first`` on) and columns of our weight.
        ours, first, columns = merged, (place.rows or (0, 0))[0] + start, slice(None)
        if place.transpose:
            ours, first, columns = merged.T, 0, slice(start, start + len(part))
        for update in self._updates[place.ours]:
            low, high = max(first, update.start), min(first + len(ours), update.start + len(update.b))
            if low < high:
                b = update.b[low - update.start : high - update.start]
                ours[low - first : high - first] += update.scale * (b @ update.a[:, columns])
        return merged

    def tokenizer(self) -> Tokenizer:
        """As :meth:`WeightSource.tokenizer`: the adapter's own, else the base's."""
        return tokenizers.load(self.path) if find_tokenizer_file(self.path) else self.base.tokenizer()


@dataclass(frozen=True)
class _Update:
    """``scale * b @ a`` is added to a weight of ours, to the rows from ``start`` on."""

    start: int
    a: Tensor  # [rank, in]
    b: Tensor  # [rows, rank]
    scale: float


def _updates(folder: Path, config: ModelConfig) -> dict[str, list[_Update]]:
    """Read an adapter's files as updates of our weights, by our name.

    Raises:
        CheckpointError: naming all that does not fit.
    """
    content = _read_config(folder)
    matrices = published_matrices(config)
    pairs, problems = defaultdict[str, dict[str, Tensor]](dict), []
    for name, tensor in read_tensors(folder / ADAPTER_WEIGHTS).items():
        match = _NAME.fullmatch(name)
        if match is None or match["module"] not in matrices:
            problems.append(f"{name} {list(tensor.shape)} belongs to no matrix of the model's blocks")
            continue
        pairs[match["module"]][match["matrix"]] = cast_finite(tensor, torch.float32, f"{folder}: {name}")
    updates = defaultdict[str, list[_Update]](list)
    for module, pair in pairs.items():
        place = matrices[module]
        start, stop = place.rows or (0, place.our_shape[0])
        a, b = pair.get("A", torch.empty(0)), pair.get("B", torch.empty(0))
        rank = a.shape[:1] or (0,)
        if a.shape != (*rank, place.our_shape[1]) or b.shape != (stop - start, *rank):
            problems.append(
                f"{module} has A {list(a.shape)} and B {list(b.shape)}, expected [rank, {place.our_shape[1]}] "
                f"and [{stop - start}, rank]"
            )
            continue
        updates[place.ours].append(_Update(start, a, b, _scale(content, module, rank[0])))
    if problems or not updates:
        raise CheckpointError(
            f"the adapter of {folder} does not fit its base model: {some(problems or ['it is empty'])}"
        )
    return updates


def _read_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json; refuse what is not implemented."""
    content = read_json(folder / ADAPTER_CONFIG)
    unsupported = [key for key in _UNSUPPORTED if content.get(key) not in (None, False, "none", [], {})]
    if content.get("peft_type") != "LORA":
        unsupported.append("peft_type")
    if content.get("init_lora_weights", True) not in _INITS:
        unsupported.append("init_lora_weights")
    if unsupported:
        values = ", ".join(f"{key}={shortened(content.get(key))}" for key in unsupported)
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG}: {values}: not implemented; merge the adapter with peft "
            "(merge_and_unload), save the model, and open that"
        )
    return content


def _scale(content: Mapping[str, Any], module: str, rank: int) -> float:
    """Compute the factor of B A. ``alpha_pattern`` gives modules whose name matches a pattern another alpha."""
    alpha = content.get("lora_alpha", 8)
    try:
        for pattern, other in reversed((content.get("alpha_pattern") or {}).items()):
            alpha = other if re.fullmatch(rf"(.*\.)?({pattern})", module) else alpha  # the first that matches
        return float(alpha) / (math.sqrt(rank) if content.get("use_rslora") else rank)
    except (re.error, AttributeError, TypeError, ValueError, ZeroDivisionError):
        raise CheckpointError(
            f"adapter_config.json: lora_alpha or alpha_pattern is no number or pattern ({module})"
        ) from None


def open_base(folder: Path, open_weights: Callable[[str], WeightSource]) -> WeightSource:
    """Open the base model of an adapter's folder: what ``base.json`` names, else what adapter_config.json names.

    A path is relative to the adapter's folder, or to the current one, or absolute.

    Raises:
        CheckpointError: if it cannot be found, or is not the model that the adapter was trained on.
    """
    path, key, expected = folder / ADAPTER_CONFIG, "base_model_name_or_path", None
    if (folder / BASE).exists():
        path, key = folder / BASE, "source"
        expected = read_json(path).get("sha256")
    named = read_json(path).get(key)
    if not isinstance(named, str) or not named or (expected is None) == (key == "source"):
        raise CheckpointError(f"{path} does not say which model the adapter of {folder} belongs to")
    is_path = path_exists(folder / named)
    if is_path and (folder / named).resolve() == folder.resolve():
        raise CheckpointError(f"{path}: {key}: the adapter names itself as its base model")
    try:
        base = open_weights(str(folder / named) if is_path else named)
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder} is an adapter of {named!r}, which cannot be opened: {error}\n"
            f"(If it has moved, write its new path into {path} as {key})"
        ) from None
    if expected is not None and expected != file_checksums(base):
        raise CheckpointError(
            f"{folder} is an adapter of {named!r}, whose weights are not those that it was trained on (their SHA-256 "
            "differs); restore them, or train the adapter again"
        )
    return base
