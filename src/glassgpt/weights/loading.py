"""From a source of published weights to a model: built without memory, checked as a whole, then filled bit by bit.

Nothing is read before every name and shape is known to fit, and nothing is held twice: beside the model there is never
more than one part of one tensor (of a file in torch's old format, one shard).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace

import torch

from glassgpt.config import ModelConfig
from glassgpt.errors import CheckpointError, ConfigError
from glassgpt.files import Progress
from glassgpt.model import GPT, materialize, meta_model
from glassgpt.tokenizer import Tokenizer
from glassgpt.weights import mapping
from glassgpt.weights.families import Family
from glassgpt.weights.mapping import Placement
from glassgpt.weights.sources import Source

#: Bytes of a tensor that are read at a time.
PART = 2**24
#: Stored types that hold no weights by themselves: integers belong to formats with scales beside them.
_NOT_WEIGHTS = re.compile(r"BOOL|[UI](8|16|32|64)|F[468]_\w+|F4|C64|torch\..*")
#: The kinds of problems, and how they are counted.
_KINDS = {
    "missing": "missing",
    "unexpected": "unexpected",
    "shape": "of another shape",
    "type": "that are no plain numbers",
}
#: Of each kind of problem, so many are listed.
_LISTED = 8


def load_source(
    source: Source,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> tuple[GPT, Tokenizer]:
    """Build the model and tokenizer of a source.

    Args:
        source: where the weights come from.
        dtype: to hold the weights in; float32 by default.
        device: to hold them on; the CPU by default.
        progress: told of it as it goes on.

    Returns:
        The model, in eval mode, and its tokenizer.

    Raises:
        CheckpointError: if something is missing, damaged, unexpected or of another shape; all of it is listed.
        TokenizerError: if the tokenizer is missing or damaged.
    """
    config, family = describe(source)
    places = check(source, config, family)
    tokenizer = source.tokenizer()
    model = meta_model(config)
    materialize(model, dtype or torch.float32, device or torch.device("cpu"))
    _fill(model, source, places, progress)
    return model.eval(), tokenizer


def load_into(model: GPT, source: Source) -> None:
    """Fill an existing model, which keeps its device and type; it is untouched if anything does not fit.

    Raises:
        CheckpointError: as :func:`load_source`.
    """
    _, family = describe(source)
    _fill(model, source, check(source, model.config, family))


def describe(source: Source) -> tuple[ModelConfig, Family]:
    """The configuration of a source's model, and its family.

    Raises:
        CheckpointError: if its config.json describes nothing that this version can build.
    """
    try:
        return mapping.from_hf_config(source.config)
    except (ConfigError, CheckpointError) as error:
        raise CheckpointError(f"{source.where}: config.json: {error}") from None


def check(source: Source, config: ModelConfig, family: Family) -> list[Placement]:
    """Where each tensor of the source goes, by the source's own names, if they are exactly those of the model.

    Raises:
        CheckpointError: with a table of what is missing, unexpected, of another shape, or no number.
    """
    names = mapping.names_in(source.shapes, family)
    places = mapping.placements(config, family)
    problems = _Problems()
    expected = set()
    for place in places:
        expected.add(place.published)
        if place.tied:
            continue  # where a file has it all the same, it is the token embedding again
        name = names.get(place.published)
        if name is None:
            problems.add("missing", place.published, place.published_shape, place.ours)
        elif tuple(source.shapes[name]) != place.published_shape:
            problems.add("shape", name, source.shapes[name], place.ours, f"expected {_brackets(place.published_shape)}")
        elif _NOT_WEIGHTS.fullmatch(source.stored[name]):
            problems.add("type", name, source.shapes[name], place.ours, f"stored as {source.stored[name]}")
    for full, name in names.items():
        if full not in expected:
            problems.add("unexpected", name, source.shapes[name])
    if problems:
        raise CheckpointError(f"the weights of {source.where} do not fit its config.json: {problems}")
    return [replace(place, published=names[place.published]) for place in places if not place.tied]


@torch.no_grad()
def _fill(model: GPT, source: Source, places: list[Placement], progress: Progress | None = None) -> None:
    """Copy every tensor into its place, part by part."""
    state = model.state_dict()
    done, total = 0, sum(math.prod(place.published_shape) for place in places)
    for place in places:
        target = place.of(state[place.ours])
        rows = target.size(0)
        row_bytes = 4 * math.prod(place.published_shape[1:])
        step = max(1, PART // max(1, row_bytes))
        for start in range(0, rows, step):
            stop = min(rows, start + step)
            target[start:stop].copy_(source.read(place.published, start, stop))
            done += target[start:stop].numel()
            if progress:
                progress("loading", done, total)


class _Problems:
    """A table of what does not fit, by kind."""

    def __init__(self) -> None:
        self.found: dict[str, list[tuple[str, str, str]]] = {kind: [] for kind in _KINDS}

    @property
    def rows(self) -> dict[str, list[tuple[str, str, str]]]:
        """Name, shape and our name of each, by kind."""
        return {kind: rows for kind, rows in self.found.items() if rows}

    def __bool__(self) -> bool:
        return bool(self.rows)

    def add(self, kind: str, name: str, shape: tuple[int, ...], ours: str = "", remark: str = "") -> None:
        """Add a line."""
        remark = f"{_brackets(shape)}{', ' + remark if remark else ''}"
        self.found[kind].append((name, remark, f"our {ours}" if ours else ""))

    def __str__(self) -> str:
        summary = ", ".join(f"{len(rows)} {_KINDS[kind]}" for kind, rows in self.rows.items())
        shown = [(kind, *row) for kind, rows in self.rows.items() for row in rows[:_LISTED]]
        widths = [max(len(row[column]) for row in shown) for column in range(3)]
        lines = []
        for kind, rows in self.rows.items():
            for row in rows[:_LISTED]:
                cells = [cell.ljust(width) for cell, width in zip((kind, *row[:2]), widths, strict=True)]
                lines.append("  " + "  ".join([*cells, row[2]]).rstrip())
            if len(rows) > _LISTED:
                lines.append(f"  {kind.ljust(widths[0])}  and {len(rows) - _LISTED} more")
        return "\n".join([summary, *lines, *_advice(self.rows)])


def _advice(rows: Mapping[str, list[tuple[str, str, str]]]) -> list[str]:
    """What to do about names that are the right ones behind a prefix."""
    missing = {row[0] for row in rows.get("missing", [])}
    for prefix in ("_orig_mod.", "module.", "model.", "base_model.model.", "transformer.", "language_model."):
        found = {row[0] for row in rows.get("unexpected", [])}
        if found and missing & {name.removeprefix(prefix) for name in found if name.startswith(prefix)}:
            return [f"The names begin with {prefix!r}, which whoever saved them should have left out."]
    return []


def _brackets(shape: tuple[int, ...]) -> str:
    return str(list(shape))
