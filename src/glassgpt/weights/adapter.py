"""LoRA adapters in the format of the `peft` library: small matrices beside a base model that is somewhere else.

=============================  =======================================================================================
``adapter_config.json``        rank, alpha, and the names of the matrices
``adapter_model.safetensors``  ``base_model.model.<published module>.lora_A.weight`` ``[rank, in]`` and ``lora_B``
                               ``[out, rank]``
``base.json``                  which base model it belongs to, with the SHA-256 of its files (glassgpt only)
=============================  =======================================================================================

In our state_dict, A and B of a published module are ``<our layer>.lora_A_<last component of the published name>``.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from glassgpt.config import ModelConfig, TuneConfig
from glassgpt.errors import CheckpointError, ConfigError
from glassgpt.model import GPT
from glassgpt.tokenizer.base import Tokenizer
from glassgpt.tokenizer.base import save as save_tokenizer
from glassgpt.weights import mapping
from glassgpt.weights.families.family import Family
from glassgpt.weights.folder import read_tensors, write_generation_config, write_json
from glassgpt.weights.loading import cast_finite
from glassgpt.weights.mapping import Placement
from glassgpt.weights.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS, some

BASE = "base.json"
#: Of every name in the file; `peft` wraps the model twice.
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Base:
    """Which model an adapter was trained on.

    Attributes:
        source: the name of an asset or of a model on the hub, or a path: absolute, or relative to the adapter's folder.
        sha256: of every file of its weights, by file name.
    """

    source: str
    sha256: Mapping[str, str]


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


def published_parts(config: ModelConfig) -> dict[str, dict[str, int]]:
    """Give, for each of our layers in the blocks, the published modules that it consists of and their outputs."""
    parts = defaultdict[str, dict[str, int]](dict)
    for module, place in published_matrices(config).items():
        start, stop = place.rows or (0, place.our_shape[0])
        parts[place.ours.removesuffix(".weight")][module] = stop - start
    return parts


def lora_blocks(config: ModelConfig, tune: TuneConfig) -> range:
    """List the blocks that get LoRA."""
    return range(max(0, config.n_layer - tune.lora_layers) if tune.lora_layers else 0, config.n_layer)


def chosen_matrices(config: ModelConfig, tune: TuneConfig) -> dict[str, Placement]:
    """Find the matrices that get LoRA. As in PEFT, a target is the end of a module's path.

    Raises:
        ConfigError: if no matrix has such a name.
    """
    blocks, targets = lora_blocks(config, tune), tune.lora_targets
    matrices = {
        module: place for module, place in published_matrices(config).items() if int(place.ours.split(".")[1]) in blocks
    }
    if targets.strip() == "all":
        return matrices
    names = [name.strip() for name in targets.split(",")]
    found = {name: [m for m in matrices if f".{m}".endswith(f".{name}")] if name else [] for name in names}
    if unknown := [name for name, matches in found.items() if not matches]:
        known = ", ".join(dict.fromkeys(module.rpartition(".")[2] for module in matrices))
        raise ConfigError(
            f"tune.lora_targets: this model's blocks have no matrix {', '.join(map(repr, unknown))}; "
            f"they have {known} (or write all)"
        )
    return {module: matrices[module] for matches in found.values() for module in matches}


def count_lora_parameters(config: ModelConfig, tune: TuneConfig) -> int:
    """Count the parameters of A and B; 0 without LoRA.

    Raises:
        ConfigError: if no matrix has the name of a target.
    """
    if tune.method != "lora":
        return 0
    return sum(tune.lora_rank * sum(p.published_shape) for p in chosen_matrices(config, tune).values())


def to_peft(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Rename A and B from a state_dict of ours to PEFT's names, without ``base_model.model.``."""
    found = {}
    for module, place in published_matrices(config).items():
        for matrix in "AB":
            ours = f"{place.ours.removesuffix('.weight')}.lora_{matrix}_{module.rpartition('.')[2]}"
            if ours in state:
                found[f"{module}.lora_{matrix}.weight"] = state[ours]
    return found


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
        PREFIX + name: cast_finite(t.detach(), torch.float32, name).cpu().contiguous() for name, t in tensors.items()
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
    targets = config.lora_targets.strip()
    names = targets.split(",") if targets != "all" else [module.rpartition(".")[2] for module in modules]
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
        "layers_to_transform": [*lora_blocks(model, config)] if config.lora_layers else None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def load_adapter(folder: Path, model: GPT) -> None:
    """Load a folder's A and B into a model with LoRA, strictly; the model keeps its device and dtype.

    Raises:
        CheckpointError: listing the matrices that do not fit, or naming a damaged file. The model is unchanged.
    """
    own = to_peft(model.state_dict(), model.config)
    read = {name.removeprefix(PREFIX): tensor for name, tensor in read_tensors(folder / ADAPTER_WEIGHTS).items()}
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


def _card(base: Base, config: TuneConfig) -> str:
    """Write a short card."""
    return (
        "---\nlibrary_name: peft\npipeline_tag: text-generation\ntags: [glassgpt, lora]\n---\n\n"
        f"# A LoRA adapter of {base.source}\n\n"
        f"Rank {config.lora_rank}, alpha {config.lora_alpha:g}, trained with glassgpt. `glassgpt sample`, `chat` and "
        "`export` open this folder like any model; `peft.PeftModel.from_pretrained(base, folder)` does, too.\n"
    )
