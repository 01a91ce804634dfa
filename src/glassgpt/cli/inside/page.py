"""``glassgpt glass``: one HTML page that follows a prompt through a model."""

from pathlib import Path

import typer

from glassgpt.cli.arguments import JSON_OPTION, RUNS_OPTION, check_out
from glassgpt.cli.printing.output import byte_size, pluralize, print_json, say
from glassgpt.cli.prompt import (
    DEVICE_OPTION,
    PROMPT_FILE_OPTION,
    PROMPT_OPTION,
    RUN_ARGUMENT,
    load_model,
    newest_run,
    open_run,
    read_prompt_text,
)
from glassgpt.errors import CheckpointError, ConfigError
from glassgpt.files import write_text

#: A page that no browser opens any more.
_MOST_MB = 2000


def glass(
    run: str = RUN_ARGUMENT,
    prompt: str = PROMPT_OPTION,
    prompt_file: Path = PROMPT_FILE_OPTION,
    out: Path = typer.Option(Path("glass.html"), "--out", "-o", metavar="FILE", help="File to write."),
    max_mb: float = typer.Option(
        0.0, "--max-mb", help="Size of the file, at most; 0: 3, or 15 for a large model, a long prompt or --film."
    ),
    film: bool = typer.Option(False, "--film", help="A slider over the kept checkpoints (train keep_every=N)."),
    device: str = DEVICE_OPTION,
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Write an HTML page that follows a prompt through the model.

    It shows every number, from characters to the next token, and needs no network.
    """
    if not 0 <= max_mb <= _MOST_MB:
        raise ConfigError(f"--max-mb: {max_mb:g} is not a number from 0 to {_MOST_MB:,}")
    check_out(out, "-o", suffix=(".html", ".htm"))
    text = read_prompt_text(prompt, prompt_file)
    run = run or str(newest_run(runs).path)
    checkpoints = _checkpoints(run, runs) if film else {}
    source = open_run(str(checkpoints[max(checkpoints)]) if film else run, runs)
    model, tokenizer = load_model(source, device)
    from glassgpt.glass.page.writing import LARGE_PAGE, glass_page

    limit = round(max_mb * 1e6) if max_mb else LARGE_PAGE if film else None
    page = glass_page(model, tokenizer, text, name=_name(run), limit=limit, checkpoints=checkpoints)
    write_text(out, page.html)
    size = out.stat().st_size
    if json:
        print_json({"path": str(out), "bytes": size, "not_kept": page.not_kept})
        return
    if page.not_kept:
        say(f"note: {pluralize(len(page.not_kept), 'tensor')} did not fit (--json lists them); see --max-mb")
    print(f"{out}  {byte_size(size)}; open it in a browser")


def _checkpoints(run: str, runs: Path) -> dict[int, Path]:
    """Return the model folders of the run by step, at least two.

    Raises:
        GlassError: if it is not a run, or has fewer.
    """
    from glassgpt import api

    found = api.find_run(run, runs)
    folders = found.models_by_step()
    if len(folders) < 2:
        raise CheckpointError(
            f"{found.path} has {pluralize(len(folders), 'checkpoint')}; --film needs two. Train with keep_every=N"
        )
    return folders


def _name(run: str) -> str:
    """Return the name of a model, for the heading: that of the run or file, without folders."""
    parts = [part for part in Path(run).parts if part not in ("best", "last")]
    return parts[-1] if parts else run
