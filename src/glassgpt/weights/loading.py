"""Build a model from published weights: create it without memory, match all tensors, then fill it tensor by tensor.

No weight is read before every name and shape matches. Beside the model, memory holds at most one part of one tensor
(for files in torch's old format, one shard).
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from glassgpt.config import ModelConfig
from glassgpt.errors import CheckpointError, ConfigError
from glassgpt.files import Progress
from glassgpt.model import GPT, materialize, meta_model
from glassgpt.model.quantized import QuantizedEmbedding, QuantizedLinear, replace_layer
from glassgpt.tokenizer.base import Tokenizer
from glassgpt.weights import mapping
from glassgpt.weights.families.family import Family
from glassgpt.weights.mapping import Placement
from glassgpt.weights.sources import QuantizedSource, WeightSource

#: Bytes of a tensor that are read at a time.
PART = 2**24
#: Stored types that are not weights by themselves: integers belong to formats with scales beside them.
_NOT_WEIGHTS = re.compile(r"BOOL|[UI](8|16|32|64)|F[468]_\w+|F4|C64|torch\..*")
#: The number of a block in the name of a weight.
_NUMBER = re.compile(r"(?<=^blocks)\.\d+")
#: The kinds of mismatch, and how the summary calls them.
_KINDS = {"missing": "missing", "unexpected": "unexpected", "shape": "of another shape", "type": "of another type"}
#: At most so many mismatches of each kind are listed.
_MAX_LISTED = 8
#: Prefixes that wrappers (torch.compile, DDP, PEFT) and larger models put before all names.
_PREFIXES = ("_orig_mod.", "module.", "model.", "base_model.model.", "transformer.", "language_model.")


def load_source(
    source: WeightSource,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    keep_quantized: bool = False,
    progress: Progress | None = None,
) -> tuple[GPT, Tokenizer]:
    """Load a source's model, in eval mode, and its tokenizer. The weights are float32 and on the CPU by default.

    With ``keep_quantized``, weights that the source has as integers with scales stay so; else they are dequantised.

    Raises:
        CheckpointError: if weights are missing, damaged, unexpected or of another shape (all of them are listed), or
            not finite in this dtype; or if the tokenizer has more tokens than the model.
        TokenizerError: if the tokenizer is missing or damaged.
    """
    config, family = describe(source)
    placements = match_tensors(source, config, family)
    tokenizer = source.tokenizer()
    if tokenizer.vocab_size > config.vocab_size:  # a model with more rows than tokens is padded, and works
        raise CheckpointError(
            f"{source.path}: the tokenizer has {tokenizer.vocab_size:,} tokens, and the model's embedding has "
            f"{config.vocab_size:,} rows; they do not belong together, or the embedding was not resized when tokens "
            "were added"
        )
    kept = _quantized_layers(source, placements) if keep_quantized and isinstance(source, QuantizedSource) else {}
    model = meta_model(config)
    skip = {f"{name}.weight" for name in kept}
    skip |= {"head.weight"} if config.tie_embeddings and "token_embedding" in kept else set()
    materialize(model, dtype or torch.float32, device or torch.device("cpu"), skip=skip)
    _fill(model, source, [place for place in placements if place.ours not in skip], progress)
    if isinstance(source, QuantizedSource):
        _fill_quantized(model, source, kept)
    return model.eval(), tokenizer


def _quantized_layers(source: QuantizedSource, placements: list[Placement]) -> dict[str, list[str]]:
    """Name our layers whose weight is quantised, with the published parts of it.

    The parts are stored alike, and a layer of the blocks has the same bits in all of them, as decoders need it. Some
    .gguf files have single layers in another type; there the layer is dequantised in all blocks.
    """
    parts = defaultdict[str, list[str]](list)
    for place in placements:
        parts[place.ours].append(place.published)
    kinds = {ours: {source.quantized.get(name) for name in names} for ours, names in parts.items()}
    bits_of = defaultdict[str, set[int]](set)  # of a layer, by its name in a block; 0: not quantised, or not alike
    for ours, found in kinds.items():
        kind = found.pop() if len(found) == 1 else None
        bits_of[_NUMBER.sub("", ours)].add(kind.bits if kind else 0)
    quantized = [ours for ours in kinds if bits_of[_NUMBER.sub("", ours)] in ({4}, {8})]
    return {ours.removesuffix(".weight"): parts[ours] for ours in quantized}


def _fill_quantized(model: GPT, source: QuantizedSource, layers: Mapping[str, list[str]]) -> None:
    """Replace layers by quantised ones; a tied head shares the tensors of the embedding."""
    for name, parts in layers.items():
        pairs = [source.read_quantized(part) for part in parts]
        for part, (_, scales) in zip(parts, pairs, strict=True):
            cast_finite(scales, torch.float32, f"{source.path}: {part}")
        values, scales = (torch.cat(tensors).to(model.device) for tensors in zip(*pairs, strict=True))
        kind = source.quantized[parts[0]]
        if name != "token_embedding":
            bias = model.get_submodule(name).bias
            assert bias is None or isinstance(bias, nn.Parameter)
            replace_layer(model, name, QuantizedLinear(values, scales, kind, model.dtype, bias))
            continue
        replace_layer(model, name, QuantizedEmbedding(values, scales, kind, model.dtype))
        if model.config.tie_embeddings:
            replace_layer(model, "head", QuantizedLinear(values, scales, kind, model.dtype))


def load_into(model: GPT, source: WeightSource) -> None:
    """Load weights into an existing model, which keeps its device and dtype. If a shape does not fit, nothing changes.

    Raises:
        CheckpointError: as :func:`load_source`. If a weight is not finite, those before it are loaded.
    """
    _, family = describe(source)
    _fill(model, source, match_tensors(source, model.config, family))


def describe(source: WeightSource) -> tuple[ModelConfig, Family]:
    """Read the configuration and family of a source's model.

    If config.json ties the head to the token embedding, and the file has a head with other values, the file is right:
    the model has a head of its own.

    Raises:
        CheckpointError: if this version cannot build the model that its config.json describes.
    """
    try:
        config, family = mapping.from_hf_config(source.config)
    except (ConfigError, CheckpointError) as error:
        raise CheckpointError(f"{source.path}: config.json: {error}") from None
    if config.n_layer > len(source.shapes):  # do not list the tensors of a billion layers
        raise CheckpointError(
            f"{source.path}: config.json: {config.n_layer:,} layers, but there are only {len(source.shapes):,} tensors"
        )
    if config.tie_embeddings and _has_own_head(source, config, family):
        config = replace(config, tie_embeddings=False)
    return config, family


def _has_own_head(source: WeightSource, config: ModelConfig, family: Family) -> bool:
    """Whether a source has a head that differs from its token embedding; both are read in parts."""
    names = mapping.full_names(source.shapes, family)
    published = {place.ours: names.get(place.published) for place in mapping.placements(config, family)}
    head, embedding = published["head.weight"], published["token_embedding.weight"]
    if head is None or embedding is None:
        return False
    shape = source.shapes[head]
    if shape != source.shapes[embedding]:
        return True  # of another shape, which is reported
    step = max(1, PART // max(1, 4 * math.prod(shape[1:])))
    return not all(
        torch.equal(*(source.read(name, start, start + step).float() for name in (head, embedding)))
        for start in range(0, shape[0], step)
    )


def match_tensors(source: WeightSource, config: ModelConfig, family: Family) -> list[Placement]:
    """Match the source's tensors to the model's weights, and return the placements under the source's own names.

    Raises:
        CheckpointError: with a table of tensors that are missing, unexpected, of another shape, or not weights.
    """
    names = mapping.full_names(source.shapes, family)
    placements = mapping.placements(config, family)
    found: dict[str, list[tuple[str, str, str]]] = {kind: [] for kind in _KINDS}  # name, remark, our name
    for place in placements:
        if place.tied:
            continue  # a file may hold it nevertheless; it is the token embedding
        name, ours, shape = names.get(place.published), f"our {place.ours}", list(place.published_shape)
        if name is None:
            found["missing"].append((place.published, f"{shape}", ours))
        elif list(source.shapes[name]) != shape:
            found["shape"].append((name, f"{list(source.shapes[name])}, expected {shape}", ours))
        elif _NOT_WEIGHTS.fullmatch(source.stored[name]):
            found["type"].append((name, f"{shape}, stored as {source.stored[name]}", ours))
    expected = {place.published for place in placements}
    found["unexpected"] += [(n, f"{[*source.shapes[n]]}", "") for full, n in names.items() if full not in expected]
    if mismatches := {kind: rows for kind, rows in found.items() if rows}:
        raise CheckpointError(f"the weights of {source.path} do not fit its config.json: {_table(mismatches)}")
    return [replace(place, published=names[place.published]) for place in placements if not place.tied]


@torch.no_grad()
def _fill(model: GPT, source: WeightSource, placements: list[Placement], progress: Progress | None = None) -> None:
    """Copy every tensor into the model, in parts of at most PART bytes."""
    state_dict = model.state_dict()
    done, total = 0, sum(math.prod(place.published_shape) for place in placements)
    for place in placements:
        target = place.view(state_dict[place.ours])
        row_bytes = 4 * math.prod(place.published_shape[1:])
        step = max(1, PART // max(1, row_bytes))
        for start in range(0, target.size(0), step):
            stop = min(target.size(0), start + step)
            part = source.read(place.published, start, stop)
            target[start:stop].copy_(cast_finite(part, target.dtype, f"{source.path}: {place.published}"))
            done += target[start:stop].numel()
            if progress:
                progress("loading", done, total)


def cast_finite(values: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Cast a weight, or a part of it; the name is for messages.

    The check takes about 0.1 ms for a million values. (``isfinite(values).all()`` takes 20 times as long.)

    Raises:
        CheckpointError: if there are values that are NaN or infinite, or that the dtype cannot hold.
    """
    cast = values.to(dtype)
    if _is_finite(cast):
        return cast
    if not _is_finite(values):
        raise CheckpointError(
            f"{name} has values that are NaN or infinite; use another checkpoint or copy of the model"
        )
    limit, kind = torch.finfo(dtype).max, str(dtype).removeprefix("torch.")
    others = " or ".join(other for other in ("bfloat16", "float32") if other != kind)
    raise CheckpointError(f"{name} has values beyond {limit:g}, which {kind} cannot hold; use {others}")


def _is_finite(values: Tensor) -> bool:
    return all(math.isfinite(float(end)) for end in torch.aminmax(values))  # which are NaN if any value is


def _table(mismatches: Mapping[str, list[tuple[str, str, str]]]) -> str:
    """Format mismatches: the number of each kind, then one line each, then advice if all names have a prefix."""
    lines = [", ".join(f"{len(rows)} {_KINDS[kind]}" for kind, rows in mismatches.items())]
    shown = [(kind, *row) for kind, rows in mismatches.items() for row in rows[:_MAX_LISTED]]
    widths = [max(len(row[column]) for row in shown) for column in range(3)]
    for kind, rows in mismatches.items():
        for name, remark, ours in rows[:_MAX_LISTED]:
            cells = [cell.ljust(width) for cell, width in zip((kind, name, remark), widths, strict=True)]
            lines.append("  " + "  ".join([*cells, ours]).rstrip())
        if len(rows) > _MAX_LISTED:
            lines.append(f"  {kind.ljust(widths[0])}  and {len(rows) - _MAX_LISTED} more")
    missing = {name for name, _, _ in mismatches.get("missing", [])}
    unexpected = {name for name, _, _ in mismatches.get("unexpected", [])}
    for prefix in _PREFIXES:
        if missing & {name.removeprefix(prefix) for name in unexpected if name.startswith(prefix)}:
            lines.append(f"The names have the prefix {prefix!r} (from a wrapper: DDP, torch.compile, PEFT); strip it.")
            break
    return "\n".join(lines)
