"""``glassgpt pull`` and ``glassgpt export``: models in, and out."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glassgpt.cli.common import JSON_OPTION, RUNS_OPTION, SOURCE_HELP, ProgressLine, print_json, print_table, say
from glassgpt.errors import ConfigError

if TYPE_CHECKING:
    from glassgpt.weights.mapping import Placement
    from glassgpt.weights.sources import WeightSource

_UNITS = {"loading": "parameters", "writing": "tensors"}
_TO = {"hf": "", "gguf": ".gguf", "tiktoken": ".tiktoken"}


def pull(
    source: str = typer.Argument(..., metavar="SOURCE", help=SOURCE_HELP),
    out: Path = typer.Option(None, "--out", "-o", help="Folder to write; by default named after the model."),
    dtype: str = typer.Option("auto", "--dtype", help="float32, bfloat16 or float16; auto: what the weights are in."),
    revision: str = typer.Option(None, "--revision", help="Branch, tag or commit of a model on the hub."),
    token: str = typer.Option(None, "--token", help="For the hub; by default HF_TOKEN, or that of `hf auth login`."),
    explain: bool = typer.Option(False, "--explain", help="Show where each weight goes, side by side; write nothing."),
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Fetch a published model into a folder in the Hugging Face layout, or show how its weights are ours."""
    from glassgpt import api
    from glassgpt.weights import transfer

    held = None if dtype == "auto" else api.weights_dtype(dtype)
    found = api.open_source(source, revision=revision, token=token, runs=runs)
    for note in found.notes:
        say(f"note: {note}")
    if explain:
        _explain(found, json)
        return
    target = out or Path(_name_of(source, found))
    progress = ProgressLine(_UNITS)
    try:
        held = transfer.to_folder(found, target, dtype=held, progress=progress)
    finally:
        progress.clear()
    _report(target, found, str(held).removeprefix("torch."), [], json)


def export(
    source: str = typer.Argument(..., metavar="RUN", help=SOURCE_HELP),
    to: str = typer.Option(..., "--to", help="gguf (llama.cpp), hf (a model folder), or tiktoken (the tokenizer)."),
    out: Path = typer.Option(None, "--out", "-o", help="File or folder to write; by default named after the model."),
    dtype: str = typer.Option(
        "auto", "--dtype", help="gguf: f32, f16 (default), bf16, q8_0. hf: float32, bfloat16, float16."
    ),
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Write a model for other programs: a .gguf file, a model folder, or a tokenizer's .tiktoken file."""
    if to not in _TO:
        raise ConfigError(f"--to {to!r} is none of {', '.join(_TO)}")
    from glassgpt import api
    from glassgpt.weights import transfer

    held = api.weights_dtype(dtype) if to == "hf" and dtype != "auto" else None
    if to == "tiktoken" and dtype != "auto":
        raise ConfigError("--dtype is for weights; a .tiktoken file holds the tokenizer alone")
    found = api.open_source(source, runs=runs)
    target = out or Path(_name_of(source, found) + _TO[to])
    progress, notes = ProgressLine(_UNITS), list[str]()
    try:
        if to == "hf":
            dtype = str(transfer.to_folder(found, target, dtype=held, progress=progress)).removeprefix("torch.")
        elif to == "gguf":
            dtype = "f16" if dtype == "auto" else dtype
            notes = transfer.to_gguf(found, target, dtype=dtype, progress=progress)
        else:
            tokenizer = transfer.to_tiktoken(found, target)
            dtype, notes = "", [f"split pattern: {tokenizer.model.patterns[0]}"]
            notes += [f"special token: {name} {i}" for name, i in tokenizer.special_ids().items()]
    finally:
        progress.clear()
    _report(target, found, dtype, notes, json)


def _name_of(source: str, found: "WeightSource") -> str:
    """What to call a model's folder or file, in the folder that the user is in."""
    if found.path.suffix == ".gguf":
        return found.path.stem if Path(source).suffix == ".gguf" else source
    parts = [part for part in re.split(r"[/\\]", source.partition("@")[0]) if part not in ("", ".", "..")]
    name = parts[-1] if parts else "model"
    return f"{parts[-2]}-{name}" if name in ("best", "last") and len(parts) > 1 else name


def _report(target: Path, found: "WeightSource", dtype: str, notes: list[str], json: bool) -> None:
    files = [target] if target.is_file() else sorted(path for path in target.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    if json:
        print_json({"path": str(target), "from": str(found.path), "dtype": dtype, "bytes": size, "notes": notes})
        return
    for note in notes:
        say(f"note: {note}")
    print(f"{target}  {size / 1e6:,.1f} MB" + (f", {dtype}" if dtype else ""))


def _explain(found: "WeightSource", json: bool) -> None:
    """The side-by-side table; blocks that are like the one before are one line together."""
    from glassgpt.weights import loading, mapping

    config, family = loading.describe(found)
    places = mapping.placements(config, family)
    names = mapping.full_names(found.shapes, family)
    rows = [_row(place, found, names) for place in places]
    if json:
        print_json({"family": family.model_type, "tensors": rows})
    else:
        shown = [list(map(str, row.values())) for row in rows if not re.search(r"^blocks\.[1-9]", row["ours"])]
        print_table(list(rows[0]), shown)
        if config.n_layer > 1:
            print(f"blocks.1 to blocks.{config.n_layer - 1}: as blocks.0  (--json lists them all)")
        total = sum(len(found.shapes[name]) > 0 for name in found.shapes)
        print(f"\n{family.model_type}: {total} published tensors, {len({place.ours for place in places})} of ours")
    loading.match_tensors(found, config, family)


def _row(place: "Placement", found: "WeightSource", names: dict[str, str]) -> dict[str, Any]:
    name = names.get(place.published, place.published)
    return {
        "published": name,
        "shape": list(found.shapes.get(name, place.published_shape)),
        "stored": found.stored.get(name, "-"),
        "ours": place.ours,
        "our shape": list(place.our_shape),
        "operation": place.operation,
    }
