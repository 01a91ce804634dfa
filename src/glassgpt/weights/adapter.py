"""LoRA adapters in the format of the `peft` library: small matrices beside a base model that is somewhere else.

=============================  =======================================================================================
``adapter_config.json``        rank, alpha, and the names of the matrices
``adapter_model.safetensors``  ``base_model.model.<published module>.lora_A.weight`` ``[rank, in]`` and ``lora_B``
                               ``[out, rank]``
``base.json``                  which base model it belongs to, with the SHA-256 of its files (glassgpt only)
=============================  =======================================================================================

In our state_dict, A and B of a published module are ``<our layer>.lora_A_<last component of the published name>``.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from glassgpt import tokenizer as tokenizers
from glassgpt.config import ModelConfig, TuneConfig
from glassgpt.errors import CheckpointError, ConfigError
from glassgpt.files import sha256_of
from glassgpt.model import GPT
from glassgpt.tokenizer.base import Tokenizer, find_tokenizer_file
from glassgpt.tokenizer.base import save as save_tokenizer
from glassgpt.weights import mapping
from glassgpt.weights.families.family import Family, shortened
from glassgpt.weights.folder import read_tensors, write_generation_config, write_json
from glassgpt.weights.loading import cast_finite, describe
from glassgpt.weights.mapping import Placement
from glassgpt.weights.sources import WeightSource, read_json, some

ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
_PREFIX = "base_model.model."
_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<matrix>[AB])(?:\.default)?\.weight")
#: Features of adapter_config.json that are not implemented, if they are set.
_UNSUPPORTED = (
    *("use_dora", "bias", "modules_to_save", "lora_bias", "layer_replication", "trainable_token_indices"),
    *("target_parameters", "alora_invocation_tokens", "arrow_config", "use_qalora", "use_bdlora", "velora_config"),
)
#: Initialisations that leave the base weights as they are; the others (PiSSA, OLoRA, ...) change them.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Base:
    """Which model an adapter was trained on.

    Attributes:
        source: the name of an asset or of a model on the hub, or a path: absolute, or relative to the adapter's folder.
        sha256: of every file of its weights, by file name.
    """

    source: str
    sha256: Mapping[str, str]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / ADAPTER_CONFIG).exists() and not (folder / "config.json").exists()


def adapter_family(config: ModelConfig) -> Family:
    """Find the family whose names an adapter of this model has; glassgpt's own if no published one can express it."""
    try:
        return mapping.family_of(config)
    except ConfigError:
        return mapping.NATIVE_FAMILY


def published_matrices(config: ModelConfig) -> dict[str, Placement]:
    """Find the matrices inside the blocks by the names of their published modules."""
    return {
        place.published.removesuffix(".weight"): place
        for place in mapping.placements(config, adapter_family(config))
        if place.ours.startswith("blocks.") and len(place.our_shape) == 2
    }


def published_parts(config: ModelConfig) -> dict[str, list[tuple[str, int]]]:
    """List, for each of our layers in the blocks, the published modules that it consists of and their outputs."""
    parts = defaultdict[str, list[tuple[str, int]]](list)
    for module, place in published_matrices(config).items():
        start, stop = place.rows or (0, place.our_shape[0])
        parts[place.ours.removesuffix(".weight")].append((module, stop - start))
    return parts


def to_peft(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Rename A and B from a state_dict of ours to PEFT's names, without ``base_model.model.``."""
    names = {
        f"{module}.lora_{matrix}.weight": f"{ours}.lora_{matrix}_{module.rpartition('.')[2]}"
        for ours, parts in published_parts(config).items()
        for module, _ in parts
        for matrix in "AB"
    }
    return {published: state[ours] for published, ours in names.items() if ours in state}


def save_adapter(
    folder: Path,
    model: GPT,
    tokenizer: Tokenizer,
    config: TuneConfig,
    base: Base,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write an adapter's files into an existing folder; `peft` opens it. A and B are float32.

    Args:
        folder: an existing folder.
        model: with LoRA.
        tokenizer: saved with it.
        config: of the LoRA.
        base: the model it was added to.
        state: a state_dict to save instead of the model's own, such as the float32 masters'.

    Raises:
        CheckpointError: if a value is NaN or infinite.
    """
    tensors = to_peft(state or model.state_dict(), model.config)
    saved = {
        _PREFIX + name: cast_finite(t.detach(), torch.float32, name).cpu().contiguous() for name, t in tensors.items()
    }
    save_file(saved, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    modules = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    write_json(folder / ADAPTER_CONFIG, _adapter_config(model.config, config, base, modules))
    write_json(folder / BASE, asdict(base))
    save_tokenizer(tokenizer, folder, model.config.block_size)
    write_generation_config(folder, tokenizer)
    (folder / "README.md").write_text(_card(base, config), encoding="utf-8", newline="\n")


def _adapter_config(model: ModelConfig, config: TuneConfig, base: Base, modules: list[str]) -> dict[str, Any]:
    """Give the entries of adapter_config.json, as `peft` writes them."""
    names = config.lora_targets.split(",") if config.lora_targets != "all" else [m.rpartition(".")[2] for m in modules]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.source,
        "revision": None,
        "inference_mode": True,
        "r": config.lora_rank,
        "lora_alpha": int(config.lora_alpha) if config.lora_alpha.is_integer() else config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "use_rslora": config.rslora,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": any(place.transpose for place in published_matrices(model).values()),
        "target_modules": sorted({name.strip() for name in names}),
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def load_adapter(folder: Path, model: GPT) -> None:
    """Load a folder's A and B into a model with LoRA, strictly; the model keeps its device and dtype.

    Raises:
        CheckpointError: listing the matrices that do not fit, or naming a damaged file. The model is unchanged.
    """
    own = to_peft(model.state_dict(), model.config)
    read = {name.removeprefix(_PREFIX): tensor for name, tensor in read_tensors(folder / ADAPTER_WEIGHTS).items()}
    problems = [f"{name} is missing" for name in own if name not in read]
    problems += [f"{name} is unexpected" for name in read if name not in own]
    problems += [
        f"{name} is {list(tensor.shape)}, expected {list(own[name].shape)}"
        for name, tensor in read.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if problems:
        raise CheckpointError(f"the adapter of {folder} does not fit the model's LoRA: {some(problems)}")
    cast = {name: cast_finite(tensor, own[name].dtype, f"{folder}: {name}") for name, tensor in read.items()}
    for name, tensor in cast.items():
        own[name].copy_(tensor)


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
        first, ours = (place.rows or (0, 0))[0] + start, merged
        columns = slice(None)
        if place.transpose:  # rows of the file are columns of our weight
            first, ours, columns = 0, merged.T, slice(start, start + len(part))
        for update in self._updates[place.ours]:  # of rows from update.start on
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
    for pattern, other in (content.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = other
            break
    return float(alpha) / (math.sqrt(rank) if content.get("use_rslora") else rank)


def open_base(folder: Path, open_weights: Callable[[str], WeightSource]) -> WeightSource:
    """Open the base model of an adapter's folder: what ``base.json`` names, else what adapter_config.json names.

    A path is relative to the adapter's folder, or to the current one, or absolute.

    Raises:
        CheckpointError: if it cannot be found, or is not the model that the adapter was trained on.
    """
    expected: Mapping[str, str] = {}
    named = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if (folder / BASE).exists():
        content = read_json(folder / BASE)
        named, expected = content.get("source"), content.get("sha256") or {}
    if not isinstance(named, str) or not named:
        raise CheckpointError(f"{folder} is an adapter that names no base model (base_model_name_or_path)")
    beside = folder / named
    try:
        base = open_weights(str(beside) if beside.exists() else named)
    except CheckpointError as error:
        raise CheckpointError(f"{folder} is an adapter of {named!r}, which cannot be opened: {error}") from None
    files = getattr(base, "files", [base.path]) if expected else []
    found = {path.name: sha256_of(path) for path in files}
    if found != dict(expected):
        raise CheckpointError(
            f"{folder} is an adapter of {named!r}, whose weights are not those that it was trained on (their SHA-256 "
            "differs); restore them, or train the adapter again"
        )
    return base


def _card(base: Base, config: TuneConfig) -> str:
    """Write a short card."""
    return (
        "---\nlibrary_name: peft\npipeline_tag: text-generation\ntags: [glassgpt, lora]\n---\n\n"
        f"# A LoRA adapter of {base.source}\n\n"
        f"Rank {config.lora_rank}, alpha {config.lora_alpha:g}, trained with glassgpt. `glassgpt sample`, `chat` and "
        "`export` open this folder like any model; `peft.PeftModel.from_pretrained(base, folder)` does, too.\n"
    )
