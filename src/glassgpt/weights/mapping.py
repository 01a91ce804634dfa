"""Map our weights and fields to the published ones and back: names, shapes and config.json.

The tables are in :mod:`glassgpt.weights.families`; this module applies them.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from glassgpt.config import ModelConfig
from glassgpt.errors import CheckpointError, ConfigError
from glassgpt.model import meta_model
from glassgpt.weights.families import FAMILIES
from glassgpt.weights.families.family import Family, ParsedConfig, Rule, shortened
from glassgpt.weights.sources import some

#: model_type of glassgpt's own format, which has our names and can hold every configuration.
NATIVE = "glassgpt"
#: Keys of config.json that do not change what a model computes; they are never reported as unsupported.
_IRRELEVANT = re.compile(
    "architectures|auto_map|.*_(token_id|version|dropout|pdrop|scaling|parameters|params|range|name_or_path)"
    "|(torch_)?dtype|(id2|)label(2id|)|is_.*decoder|model_type|n_ctx|output_.*|pretraining_tp|return_dict|use_cache"
    "|activation_function|(use_|)sliding_window|max_window_layers"
)


@dataclass(frozen=True)
class Placement:
    """A published weight and the weight of ours (or the part of it) that it corresponds to.

    Attributes:
        published: its published name.
        published_shape: its shape under that name.
        ours: the name of our weight.
        our_shape: the shape of our weight.
        rows: the rows of our weight that it fills; None for all.
        transpose: whether it is stored transposed (GPT-2's Conv1D).
        tied: whether it is the head of a model with tied embeddings, which is not in the file.
    """

    published: str
    published_shape: tuple[int, ...]
    ours: str
    our_shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    transpose: bool = False
    tied: bool = False

    @property
    def operation(self) -> str:
        """Describe in words how the published weight becomes ours."""
        if self.tied:
            return "tied: left out"
        if self.rows:
            return f"rows {self.rows[0]}:{self.rows[1]} of the fused q, k, v"
        return "transpose" if self.transpose else "copy"

    def view(self, ours: Tensor) -> Tensor:
        """View our weight in the published shape: read from the view to save, write to it to load."""
        part = ours[slice(*self.rows)] if self.rows else ours
        return part.T if self.transpose else part


def placements(config: ModelConfig, family: Family) -> list[Placement]:
    """List every published weight of a model with its place in ours, in the order of the family's table."""
    shapes = _our_shapes(config)
    found = []
    for rule in family.rules or tuple(Rule(name, (name,)) for name in shapes):
        for i in range(config.n_layer) if "{i}" in rule.ours else (0,):
            ours = rule.ours.format(i=i)
            if ours not in shapes:
                continue  # a bias or norm that this configuration does not have
            shape, start = shapes[ours], 0
            tied = ours == "head.weight" and config.tie_embeddings
            if len(rule.published) == 1:
                name, published = rule.published[0].format(i=i), shape[::-1] if rule.transpose else shape
                found.append(Placement(name, published, ours, shape, transpose=rule.transpose, tied=tied))
                continue
            for name, size in zip(rule.published, config.qkv_sizes, strict=True):
                found.append(Placement(name.format(i=i), (size, *shape[1:]), ours, shape, (start, start + size)))
                start += size
    return found


@functools.lru_cache(maxsize=4)
def _our_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Give the shapes of our weights by name, without allocating memory."""
    return {name: tuple(tensor.shape) for name, tensor in meta_model(config).state_dict().items()}


def to_published(state_dict: Mapping[str, Tensor], config: ModelConfig, family: Family) -> dict[str, Tensor]:
    """Rename our weights to the published names. The tensors are views, and a tied head is left out."""
    return {p.published: p.view(state_dict[p.ours]) for p in placements(config, family) if not p.tied}


def full_names(names: Iterable[str], family: Family) -> dict[str, str]:
    """Map full published names to a source's own: base models lack the prefix. Constants of old files are left out."""
    kept = [name for name in names if not name.endswith(family.ignored or ("\0",))]
    embedding = family.rules[0].published[0] if family.rules else ""
    if family.prefix and embedding not in kept and embedding.removeprefix(family.prefix) in kept:
        return {name if name == "lm_head.weight" else family.prefix + name: name for name in kept}
    return {name: name for name in kept}


NATIVE_FAMILY = Family(
    model_type=NATIVE,
    architecture="GPT",
    keys={field.name: field.name for field in fields(ModelConfig)},
    write=lambda config: {},
    read=lambda content: ParsedConfig({}, []),
)


def family_of(config: ModelConfig) -> Family:
    """Find the family that can express a configuration.

    Raises:
        ConfigError: if there is none, naming the fields that differ from the closest family.
    """
    reasons = {family: family.problems(config) for family in FAMILIES.values()}
    closest = min(reasons, key=lambda family: len(reasons[family]))
    if not reasons[closest]:
        return closest
    raise ConfigError(
        f"no published family can express this model: {'; '.join(reasons[closest])}. "
        "Change it, or keep checkpoints in glassgpt's own format with train.format=native"
    )


def to_hf_config(config: ModelConfig, family: Family) -> dict[str, Any]:
    """Give the entries of config.json that describe the architecture."""
    entries = {key: getattr(config, name) for name, key in family.keys.items()}
    described = {"architectures": [family.architecture], "model_type": family.model_type}
    return described | entries | family.write(config)


def from_hf_config(content: Mapping[str, Any]) -> tuple[ModelConfig, Family]:
    """Read a config.json into a model configuration and its family.

    Raises:
        CheckpointError: if the family, or a feature of the model, is not implemented; all such features are named.
        ConfigError: if the values are not a valid model.
    """
    if content.get("model_type") == NATIVE:
        return ModelConfig(**{key: value for key, value in content.items() if key in NATIVE_FAMILY.keys}), NATIVE_FAMILY
    family = FAMILIES.get(str(content.get("model_type")))
    if family is None:
        raise CheckpointError(_unknown_family(content))
    unsupported = [
        f"{key}={content[key]!r} ({value!r} is implemented)"
        for key, value in family.expected.items()
        if content.get(key, value) != value
    ]
    if entry := content.get("quantization_config"):
        method = entry.get("quant_method") if isinstance(entry, dict) else entry
        unsupported.append(
            f"quantization_config, quant_method={shortened(method)} (weights in float32, float16, bfloat16, or "
            "quantised by glassgpt, are supported)"
        )
    parsed = family.read(content)
    if unsupported := unsupported + parsed.unsupported:
        raise CheckpointError(
            f"this {family.model_type} model uses features that this version does not implement: "
            + "; ".join(unsupported)
        )
    values: dict[str, Any] = {**family.defaults, **family.fixed}
    for name, key in family.keys.items():
        if content.get(key) is not None:
            values[name] = content[key]
        elif key in content and name in ("n_kv_head", "head_dim", "intermediate_size"):
            values.pop(name, None)  # null: derived from the other fields
    values |= {other: values[one] for one, other in family.equal}
    return ModelConfig(**{**values, **parsed.fields}), family


def _unknown_family(content: Mapping[str, Any]) -> str:
    """Write the error message for an unknown family: its name, and its config.json keys that no family here has."""
    known = set[str]().union(*({*family.keys.values(), *family.expected} for family in FAMILIES.values()))
    name, architectures = f"model_type {content.get('model_type')!r}", content.get("architectures")
    if isinstance(architectures, list) and architectures:
        name = f"{architectures[0]} ({name})"
    unknown = [
        f"{key}={value!r}" for key, value in content.items() if key not in known and not _IRRELEVANT.fullmatch(key)
    ]
    unknown = [text if len(text) < 60 else text[:57] + "..." for text in unknown]
    details = f"; its config.json has fields that are not supported: {some(unknown, 12)}" if unknown else ""
    return f"{name} is not a supported family (supported: {', '.join(FAMILIES)}){details}"
