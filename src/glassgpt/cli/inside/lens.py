"""``glassgpt lens``."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glassgpt.cli.arguments import JSON_OPTION, RUNS_OPTION
from glassgpt.cli.printing.bars import bar
from glassgpt.cli.printing.output import print_json, print_table, print_text
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
    from glassgpt.glass.inside.lens import Lens

#: Characters of a token in the table, at most.
_MAX_TOKEN = 14


def lens(
    run: str = RUN_ARGUMENT,
    prompt: str = PROMPT_OPTION,
    prompt_file: Path = PROMPT_FILE_OPTION,
    position: int | None = typer.Option(None, "--position", help="One position alone, from 0; -1 is the last."),
    out: Path = PICTURE_OPTION,
    device: str = DEVICE_OPTION,
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Show what each layer would already predict (logit lens).

    The model's final norm and head are applied to the residual stream after the embeddings and after each block. A
    table has the last positions that fit; --json and -o have more (-o: the last 24).
    """
    check_picture(out)
    text = read_prompt_text(prompt, prompt_file)
    model, tokenizer = load_model(open_run(run, runs), device)
    from glassgpt.glass.inside.attribution import find_position
    from glassgpt.glass.inside.lens import lens as look

    found = look(model, tokenizer, text)
    place = None if position is None else find_position(len(found.prompt.ids), position)
    if out:
        from glassgpt.glass.inside.pictures.layers import draw_lens

        draw_lens(found, out)
    if json:
        print_json(
            {
                "prompt": vars(found.prompt),
                "layers": _layers(found),
                "predicted_ids": found.tokens.tolist(),
                "predicted_tokens": found.texts,
                "probability": found.probability.tolist(),
                "rank": found.rank.tolist(),
            }
        )
    elif place is None:
        _print_positions(found)
    else:
        _print_position(found, place)


def _layers(found: "Lens") -> list[str]:
    from glassgpt.glass.inside.lens import row_name

    return [row_name(row) for row in range(len(found.texts))]


def _quoted(text: str) -> str:
    return f"'{text}'" if len(text) <= _MAX_TOKEN else f"'{text[: _MAX_TOKEN - 1]}…'"


def _print_position(found: "Lens", place: int) -> None:
    """Print one position, with bars for the probabilities."""
    _print_explanation(f"after {_quoted(found.prompt.tokens[place])} (position {place})")
    rows = []
    for row, layer in enumerate(_layers(found)):
        p = float(found.probability[row, place])
        rank = f"{found.rank[row, place]:,}"
        rows.append([layer, _quoted(found.texts[row][place]), f"{p:.1%}", rank, bar(p, 1.0, 30)])
    print_table(["layer", "token", "probability", "rank", ""], rows, right=(2, 3))


def _print_positions(found: "Lens") -> None:
    """Print the last positions, as many as fit in the width of the terminal."""
    from rich.cells import cell_len

    layers, T = _layers(found), len(found.prompt.ids)
    table: list[list[str]] = [[name] for name in ["layer", *layers]]  # columns are added at the front
    columns = shutil.get_terminal_size((100, 24)).columns - max(map(len, layers))
    shown = 0
    for place in reversed(range(T)):
        cells = [[f"{place} {_quoted(found.prompt.tokens[place])}", "prob.", "rank"]]
        for row in range(len(layers)):
            p, rank = found.probability[row, place], found.rank[row, place]
            cells.append([_quoted(found.texts[row][place]), f"{p:.0%}", f"{rank:,}"])
        columns -= sum(2 + max(map(cell_len, column)) for column in zip(*cells, strict=True))
        if columns < 0 and shown:
            break
        shown += 1
        for line, added in zip(table, cells, strict=True):
            line[1:1] = added
    _print_explanation("at each position" if shown == T else f"at the last {shown} of {T} positions")
    right = [i for i in range(1, 3 * shown + 1) if i % 3 != 1]
    print_table(table[0], table[1:], right=right)


def _print_explanation(where: str) -> None:
    print_text(f"the predicted next token {where}, by layer")
    print_text("rank: the place of the token that the last block predicts, 1 = most likely\n")
