"""``glassgpt why``."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glassgpt.cli.arguments import JSON_OPTION, RUNS_OPTION
from glassgpt.cli.printing.bars import two_sided_bar
from glassgpt.cli.printing.output import pluralize, print_json, print_table, print_text, say
from glassgpt.cli.prompt import (
    DEVICE_OPTION,
    PICTURE_OPTION,
    PROMPT_FILE_OPTION,
    PROMPT_OPTION,
    RUN_ARGUMENT,
    check_picture,
    load_model,
    open_run,
    read_prompt_text,
)

if TYPE_CHECKING:
    from glassgpt.glass.inside.attribution import Attribution

#: Parts in the table, without --all.
_ROWS = 20
_KINDS = {"embedding": "embeddings", "head": "all heads", "mlp": "all MLPs", "bias": "all biases"}


def why(
    run: str = RUN_ARGUMENT,
    prompt: str = PROMPT_OPTION,
    prompt_file: Path = PROMPT_FILE_OPTION,
    token: str | None = typer.Option(
        None, "--token", help="T: one token, or id:7. By default what the model predicts."
    ),
    instead: str | None = typer.Option(None, "--instead", help="U: explain the logit of T less that of U."),
    position: int = typer.Option(-1, "--position", help="Of the token that T comes after, from 0; -1 is the last."),
    show_all: bool = typer.Option(False, "--all", help="Show every part, not only the largest."),
    out: Path = PICTURE_OPTION,
    device: str = DEVICE_OPTION,
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Show what each head, MLP, embedding and bias adds to a logit. The parts sum to the logit.

    This is direct attribution: what each part writes into the residual stream, as the head reads it, with the final
    norm's scale held as it is. What a part does through later parts counts for those; `glassgpt ablate` measures it.
    """
    check_picture(out)
    text = read_prompt_text(prompt, prompt_file)
    model, tokenizer = load_model(open_run(run, runs), device)
    from glassgpt.glass.inside.attribution import why as attribute

    found = attribute(model, tokenizer, text, token, instead, position)
    for given in (token or "", instead or ""):
        if given[:1].isalnum() and not given.startswith("id:"):
            spaced = tokenizer.encode(f" {given}")
            if len(spaced) == 1 and spaced != tokenizer.encode(given):
                say(f"note: with a space before it, it would be another token: {f' {given}'!r}")
    if out:
        from glassgpt.glass.inside.pictures.layers import draw_attribution

        draw_attribution(found, out)
    if json:
        print_json(_to_json(found))
    else:
        _print(found, None if show_all else _ROWS)
    if not found.explained:
        say(
            f"error: the parts sum to {found.value - found.remainder:.6g}, but the model computes {found.value:.6g}; "
            f"the remainder is {found.relative_remainder:.1e} of the largest part, more than rounding explains"
        )
        raise typer.Exit(1)


def _to_json(found: "Attribution") -> dict[str, object]:
    arrays = {key: value.tolist() for key, value in vars(found).items() if hasattr(value, "tolist")}
    sums = {"totals": found.totals(), "remainder": found.remainder, "relative_remainder": found.relative_remainder}
    parts = [asdict(part) for part in found.parts()]
    return {**vars(found), "prompt": vars(found.prompt), **arrays, **sums, "parts": parts}


def _print(found: "Attribution", rows: int | None) -> None:
    names = " less that of ".join(f"'{text}'" for text in found.texts)
    after = found.prompt.tokens[found.position]
    print_text(f"the logit of {names} after '{after}' (position {found.position}): {found.value:+.4f}")
    print_text(f"probability of '{found.texts[0]}': {found.probability:.2%}, rank {found.rank:,}\n")
    parts = found.parts()
    largest = abs(parts[0].value)
    table = [[part.name, f"{part.value:+.4f}", two_sided_bar(part.value, largest, 20)] for part in parts[:rows]]
    print_table(["part", "adds", ""], table, right=(1,))
    if rows is not None and len(parts) > rows:
        rest = sum(part.value for part in parts[rows:])
        print_text(f"... and {pluralize(len(parts) - rows, 'smaller part')}, {rest:+.4f} together (--all shows them)")
    print_text()
    totals = [[_KINDS[kind], f"{value:+.4f}"] for kind, value in found.totals().items()]
    totals.append(["remainder", f"{found.remainder:+.1e}"])
    print_table([], totals, right=(1,))
