"""``glassgpt reach``."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glassgpt.cli.arguments import JSON_OPTION, RUNS_OPTION
from glassgpt.cli.printing.output import pluralize, print_json, print_text
from glassgpt.cli.prompt import (
    DEVICE_OPTION,
    PICTURE_OPTION,
    PROMPT_FILE_OPTION,
    RUN_ARGUMENT,
    check_picture,
    load_model,
    open_run,
    read_prompt_text,
)

if TYPE_CHECKING:
    from glassgpt.glass.inside.reach import Reach

#: Wrong pairs that are listed.
_LISTED = 10


def reach(
    run: str = RUN_ARGUMENT,
    prompt: str = typer.Option("", "--prompt", "-p", help="The text that the model reads; by default random tokens."),
    prompt_file: Path = PROMPT_FILE_OPTION,
    length: int = typer.Option(0, "--length", help="How many random tokens; 0: 32, or the context if it is less."),
    out: Path = PICTURE_OPTION,
    device: str = DEVICE_OPTION,
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Check which positions each output depends on, by gradients.

    It has to be itself and all before it: a full lower triangle; with sliding windows, a band. Anything else is listed,
    and the exit code is 1.
    """
    check_picture(out)
    text = read_prompt_text(prompt, prompt_file) if prompt or prompt_file else ""
    model, tokenizer = load_model(open_run(run, runs), device)
    from glassgpt.glass.inside.reach import reach as find

    found = find(model, tokenizer, text, length)
    if out:
        from glassgpt.glass.inside.pictures.layers import draw_reach

        draw_reach(found, out)
    if json:
        arrays = {"depends": found.depends.tolist(), "expected": found.expected.tolist()}
        findings = [vars(finding) for finding in found.findings()]
        head = {"prompt": vars(found.prompt), "band": found.band, "correct": found.correct}
        print_json(head | arrays | {"findings": findings})
    else:
        _print(found)
    if not found.correct:
        raise typer.Exit(1)


def _print(found: "Reach") -> None:
    T = len(found.prompt.ids)
    shape = f"band of {pluralize(found.band, 'position')}" if 0 < found.band < T else "full lower triangle"
    print_text(f"{shape}: {'yes' if found.correct else 'NO'} ({pluralize(T, 'position')})")
    tokens = found.prompt.tokens
    for pair in islice(found.findings(), _LISTED):
        where = f"position {pair.position} '{tokens[pair.position]}'"
        print_text(f"  the output at {where} {pair.problem}: position {pair.other} '{tokens[pair.other]}'")
    count = int((found.depends != found.expected).sum())
    if count > _LISTED:
        print_text(f"  ... and {count - _LISTED:,} more")
