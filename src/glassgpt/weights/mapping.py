"""Our names and the published names side by side: where each weight goes, both ways, and what config.json says.

The tables of the families are in :mod:`glassgpt.weights.families`; here they are put to use.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from glassgpt.config import ModelConfig
from glassgpt.errors import CheckpointError, ConfigError
from glassgpt.model import meta_model
from glassgpt.weights.families import FAMILIES, Family, Found, Rule

#: model_type of glassgpt's own format, in which names are ours and every configuration has a place.
NATIVE = "glassgpt"
#: Keys of config.json that say nothing of how a model computes, and so are never named as unsupported.
_INCIDENTAL = re.compile(
    "architectures|auto_map|.*_(token_id|version|dropout|pdrop|scaling|parameters|params|range|name_or_path)"
    "|(torch_)?dtype|(id2|)label(2id|)|is_.*decoder|model_type|n_ctx|output_.*|pretraining_tp|return_dict|use_cache"
    "|activation_function|(use_|)sliding_window|max_window_layers"
)


@dataclass(frozen=True)
class Placement:
    """A published weight beside ours: one line of the side-by-side table.

    Attributes:
        published: its published name.
        published_shape: its shape under that name.
        ours: the name of our weight that it is, or is a part of.
        our_shape: that weight's shape.
        rows: the rows of ours that it fills, where it is a part.
        part: which part: "q", "k" or "v"; empty where it is the whole.
        transpose: whether it is stored the other way round.
        tied: whether it is a head that is the token embedding, and left out of the file.
    """

    published: str
    published_shape: tuple[int, ...]
    ours: str
    our_shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    part: str = ""
    transpose: bool = False
    tied: bool = False

    @property
    def operation(self) -> str:
        """What becomes of the published weight, in words."""
        if self.tied:
            return "tied: left out"
        if self.rows:
            return f"rows {self.rows[0]}:{self.rows[1]} of the fused q, k, v"
        return "transpose" if self.transpose else "copy"

    def of(self, ours: Tensor) -> Tensor:
        """A view of our weight that has the published one's shape; reading from it saves, writing to it loads."""
        part = ours[slice(*self.rows)] if self.rows else ours
        return part.T if self.transpose else part


def explain(config: ModelConfig, family: Family | None = None) -> list[Placement]:
    """Every published weight of a model beside ours, in the order of the family's table.

    Raises:
        ConfigError: if no family is given, and none can express the model.
    """
    return placements(config, family or family_of(config))


def placements(config: ModelConfig, family: Family) -> list[Placement]:
    """Where each weight of a model goes; see :class:`Placement`."""
    shapes, sizes = our_shapes(config), dict(zip("qkv", config.qkv_sizes, strict=True))
    found = []
    for rule in family.rules or native_rules(config):
        for i in range(config.n_layer) if "{i}" in rule.ours else (0,):
            ours = rule.ours.format(i=i)
            if ours not in shapes:
                continue  # a bias or norm that this configuration does not have
            shape, start = shapes[ours], 0
            tied = ours == "head.weight" and config.tie_embeddings
            if len(rule.theirs) == 1:
                name, published = rule.theirs[0].format(i=i), shape[::-1] if rule.transpose else shape
                found.append(Placement(name, published, ours, shape, transpose=rule.transpose, tied=tied))
                continue
            for name, (part, size) in zip(rule.theirs, sizes.items(), strict=True):
                rows = (start, start + size)
                found.append(Placement(name.format(i=i), (size, *shape[1:]), ours, shape, rows, part))
                start += size
    return found


@functools.lru_cache(maxsize=4)
def our_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """The shapes of our weights by name; nothing is allocated."""
    return {name: tuple(tensor.shape) for name, tensor in meta_model(config).state_dict().items()}


def to_published(state: Mapping[str, Tensor], config: ModelConfig, family: Family) -> dict[str, Tensor]:
    """Our weights under the family's names: views, so this takes no memory. A tied head is left out."""
    return {place.published: place.of(state[place.ours]) for place in placements(config, family) if not place.tied}


def names_in(shapes: Mapping[str, Any], family: Family) -> dict[str, str]:
    """The full published names of what a source has, and the source's own name for each.

    Base models are published without the prefix. Constants that old files hold are left out.
    """
    kept = [name for name in shapes if not name.endswith(family.ignored or ("\0",))]
    embedding = family.rules[0].theirs[0] if family.rules else ""
    if family.prefix and embedding not in shapes and embedding.removeprefix(family.prefix) in shapes:
        return {name if name == "lm_head.weight" else family.prefix + name: name for name in kept}
    return {name: name for name in kept}


def native_rules(config: ModelConfig) -> tuple[Rule, ...]:
    """The table of our own format: every weight under our name."""
    return tuple(Rule(name, (name,)) for name in our_shapes(config))


NATIVE_FAMILY = Family(
    model_type=NATIVE,
    architecture="GPT",
    prefix="",
    fixed={},
    choices={},
    joint=(),
    keys={field.name: field.name for field in fields(ModelConfig)},
    defaults={},
    expected={},
    write=lambda config: {},
    read=lambda content: Found({}, []),
    rules=(),  # as many as the configuration has weights
    ignored=(),
)


def family_of(config: ModelConfig) -> Family:
    """The family that can express a configuration.

    Raises:
        ConfigError: if none can, naming the fields that stand in the way of the nearest.
    """
    reasons = {family: family.problems(config) for family in FAMILIES.values()}
    nearest = min(reasons, key=lambda family: len(reasons[family]))
    if not reasons[nearest]:
        return nearest
    raise ConfigError(
        f"no published family can express this model: {'; '.join(reasons[nearest])}. "
        "Change it, or keep checkpoints in glassgpt's own format with train.format=native"
    )


def to_hf_config(config: ModelConfig, family: Family) -> dict[str, Any]:
    """The entries of config.json that describe the architecture."""
    entries = {key: getattr(config, name) for name, key in family.keys.items()}
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **entries,
        **family.write(config),
    }


def from_hf_config(content: Mapping[str, Any]) -> tuple[ModelConfig, Family]:
    """The configuration that a config.json describes, and its family.

    Raises:
        CheckpointError: for a family, or a feature of one, that this version does not implement; all are named.
        ConfigError: if the numbers make no model.
    """
    if content.get("model_type") == NATIVE:
        return ModelConfig(**{key: value for key, value in content.items() if key in NATIVE_FAMILY.keys}), NATIVE_FAMILY
    family = FAMILIES.get(str(content.get("model_type")))
    if family is None:
        raise CheckpointError(_unknown(content))
    unsupported = [
        f"{key}={content[key]!r} ({value!r} is implemented)"
        for key, value in family.expected.items()
        if content.get(key, value) != value
    ]
    if content.get("quantization_config"):
        unsupported.append("quantization_config (weights in float32, float16 or bfloat16 are read)")
    found = family.read(content)
    unsupported += found.unsupported
    if unsupported:
        raise CheckpointError(
            f"this {family.model_type} model uses what this version does not implement: {'; '.join(unsupported)}"
        )
    values: dict[str, Any] = {**family.defaults, **family.fixed}
    for name, key in family.keys.items():
        if content.get(key) is not None:
            values[name] = content[key]
        elif key in content and name in ("n_kv_head", "head_dim", "intermediate_size"):
            values.pop(name, None)  # null: derived from the others
    values |= {other: values[one] for one, other in family.joint}
    return ModelConfig(**{**values, **found.fields}), family


def _unknown(content: Mapping[str, Any]) -> str:
    """Why a model of an unknown family is not read: its name, and those of its fields that no family here has."""
    known = set[str]().union(*({*family.keys.values(), *family.expected} for family in FAMILIES.values()))
    names = content.get("architectures")
    name = f"{names[0]} (model_type {content.get('model_type')!r})" if isinstance(names, list) and names else None
    name = name or f"model_type {content.get('model_type')!r}"
    strange = [
        f"{key}={value!r}" for key, value in content.items() if key not in known and not _INCIDENTAL.fullmatch(key)
    ]
    strange = [text if len(text) < 60 else text[:57] + "..." for text in strange]
    shown = ", ".join(strange[:12]) + (f" and {len(strange) - 12} more" if len(strange) > 12 else "")
    fields = f"; its config.json has fields that are not supported: {shown}" if strange else ""
    return f"{name} is not one that this version reads (these are: {', '.join(FAMILIES)}){fields}"
