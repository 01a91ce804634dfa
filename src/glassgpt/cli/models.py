"""``glassgpt pull`` and ``glassgpt export``: read published models, and write models for other programs."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glassgpt.cli.arguments import JSON_OPTION, RUNS_OPTION, SOURCE_HELP, check_out
from glassgpt.cli.printing.output import ProgressLine, byte_size, print_json, print_table, say
from glassgpt.errors import ConfigError

if TYPE_CHECKING:
    from glassgpt.weights.sources import WeightSource

#: What is appended to a model's name, by the format to write.
_SUFFIXES = {"hf": "", "gguf": ".gguf", "tiktoken": ".tiktoken"}


def pull(
    name: str = typer.Argument(..., metavar="SOURCE", help=SOURCE_HELP),
    out: Path = typer.Option(None, "--out", "-o", help="Folder to write; by default named after the model."),
    dtype: str = typer.Option("auto", "--dtype", help="float32, bfloat16 or float16; auto: as stored."),
    revision: str = typer.Option(None, "--revision", help="Branch, tag or commit of a model on the hub."),
    token: str = typer.Option(None, "--token", help="Hub token; by default HF_TOKEN, or that of `hf auth login`."),
    explain: bool = typer.Option(False, "--explain", help="Show how each weight is mapped; write nothing."),
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Download a published model into a model folder.

    With --explain, show how its weights are mapped, and write nothing.
    """
    from glassgpt import api
    from glassgpt.weights import transfer

    weights_dtype = None if dtype == "auto" else api.weights_dtype(dtype)
    check_out(out, folder=True)
    source = _open(name, runs, revision, token)
    if explain:
        _explain(source, json)
        return
    target = out or Path(default_name(name, source))
    check_out(target, folder=True)
    with ProgressLine() as progress:
        weights_dtype = transfer.to_folder(source, target, dtype=weights_dtype, progress=progress)
    _report(target, source, str(weights_dtype).removeprefix("torch."), [], json)


def export(
    name: str = typer.Argument(..., metavar="RUN", help=SOURCE_HELP),
    to: str = typer.Option(..., "--to", help="gguf (llama.cpp), hf (a model folder), or tiktoken (the tokenizer)."),
    out: Path = typer.Option(None, "--out", "-o", help="File or folder to write; by default named after the model."),
    dtype: str = typer.Option(
        "auto", "--dtype", help="gguf: f32, f16 (default), bf16, q8_0, q4_0. hf: float32, bfloat16, float16."
    ),
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Write a model for other programs: GGUF, folder, tiktoken."""
    if to not in _SUFFIXES:
        raise ConfigError(f"--to {to!r} is not one of {', '.join(_SUFFIXES)}")
    from glassgpt import api
    from glassgpt.weights import transfer

    weights_dtype = api.weights_dtype(dtype) if to == "hf" and dtype != "auto" else None
    if to == "tiktoken" and dtype != "auto":
        raise ConfigError("--dtype is for weights; a .tiktoken file holds the tokenizer alone")
    check_out(out, folder=to == "hf")
    source = _open(name, runs)
    target, notes = out or Path(default_name(name, source) + _SUFFIXES[to]), list[str]()
    check_out(target, folder=to == "hf")
    with ProgressLine() as progress:
        if to == "hf":
            dtype = str(transfer.to_folder(source, target, dtype=weights_dtype, progress=progress))
        elif to == "gguf":
            dtype = "f16" if dtype == "auto" else dtype
            notes = transfer.to_gguf(source, target, dtype=dtype, progress=progress)
        else:
            tokenizer = transfer.to_tiktoken(source, target)
            dtype, notes = "", [f"split pattern: {tokenizer.model.patterns[0]}"]
            notes += [f"special token: {name} {i}" for name, i in tokenizer.special_ids().items()]
    _report(target, source, dtype.removeprefix("torch."), notes, json)


def _open(name: str, runs: Path, revision: str | None = None, token: str | None = None) -> "WeightSource":
    from glassgpt import api

    source = api.open_source(name, revision=revision, token=token, runs=runs)
    for note in source.notes:
        say(f"note: {note}")
    return source


def default_name(name: str, source: "WeightSource") -> str:
    """Return the name of a model without its folders: ``gpt2``, or ``my-best`` for ``runs/my/best``."""
    if source.path.suffix == ".gguf":
        return source.path.stem if Path(name).suffix == ".gguf" else name
    parts = [part for part in re.split(r"[/\\]", name.partition("@")[0]) if part not in ("", ".", "..")]
    last = parts[-1] if parts else "model"
    return f"{parts[-2]}-{last}" if last in ("best", "last") and len(parts) > 1 else last


def _report(target: Path, source: "WeightSource", dtype: str, notes: list[str], json: bool) -> None:
    files = [target] if target.is_file() else sorted(path for path in target.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    if json:
        print_json({"path": str(target), "from": str(source.path), "dtype": dtype, "bytes": size, "notes": notes})
        return
    for note in notes:
        say(f"note: {note}")
    print(f"{target}  {byte_size(size)}" + (f", {dtype}" if dtype else ""))


def _explain(source: "WeightSource", json: bool) -> None:
    """Print which published tensor becomes which of ours. In the table, blocks 1 and up are one line."""
    from glassgpt.weights import loading, mapping

    config, family = loading.describe(source)
    placements = mapping.placements(config, family)
    names = mapping.full_names(source.shapes, family)
    rows = [
        {
            "published": (published := names.get(placement.published, placement.published)),
            "shape": list(source.shapes.get(published, placement.published_shape)),
            "stored": source.stored.get(published, "-"),
            "ours": placement.ours,
            "our shape": list(placement.our_shape),
            "operation": placement.operation,
        }
        for placement in placements
    ]
    if json:
        print_json({"family": family.model_type, "tensors": rows})
    else:
        shown = [list(map(str, row.values())) for row in rows if not re.match(r"blocks\.[1-9]", str(row["ours"]))]
        print_table(list(rows[0]), shown)
        if config.n_layer > 1:
            print(f"blocks.1 to blocks.{config.n_layer - 1}: as blocks.0  (--json lists them all)")
        count = sum(len(shape) > 0 for shape in source.shapes.values())
        ours = len({placement.ours for placement in placements})
        print(f"\n{family.model_type}: {count} published tensors, {ours} of ours")
    loading.match_tensors(source, config, family)
