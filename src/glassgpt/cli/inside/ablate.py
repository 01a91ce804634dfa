"""``glassgpt ablate``."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from glassgpt.cli.arguments import JSON_OPTION, RUNS_OPTION, SOURCE_HELP
from glassgpt.cli.printing.bars import two_sided_bar
from glassgpt.cli.printing.output import ProgressLine, print_json, print_table, print_text
from glassgpt.cli.prompt import DEVICE_OPTION, PICTURE_OPTION, check_picture, load_model, open_run

if TYPE_CHECKING:
    from glassgpt.glass.inside.ablation import Ablation

#: Components in the table, without --all.
_ROWS = 20


def ablate(
    run: str = typer.Argument(..., metavar="RUN", help=SOURCE_HELP),
    file: str = typer.Argument(..., metavar="TEXTFILE", help="A text to measure the loss on."),
    by: Literal["zero", "mean"] = typer.Option(
        "zero", "--by", help="Put zero or the mean in place of what the component adds."
    ),
    tokens: int = typer.Option(2048, "--tokens", min=1, help="Tokens to predict, at most."),
    layer: int | None = typer.Option(None, "--layer", help="Only this layer, from 0."),
    show_all: bool = typer.Option(False, "--all", help="Show every component, not only the first."),
    out: Path = PICTURE_OPTION,
    device: str = DEVICE_OPTION,
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Measure the loss without each head and each MLP.

    With --by mean, a component adds its mean over all positions of the text, instead of nothing. Seconds for a small
    model; SmolLM2 has 300 components, and takes a few minutes for 256 tokens.
    """
    check_picture(out)
    from glassgpt.data.sources.source import read_text

    text = read_text(file).content
    model, tokenizer = load_model(open_run(run, runs), device)
    from glassgpt.glass.inside.ablation import ablate as measure

    with ProgressLine() as progress:
        found = measure(model, tokenizer, text, by, tokens, layer, progress)
    if out:
        from glassgpt.glass.inside.pictures.layers import draw_ablation

        draw_ablation(found, out)
    if json:
        components = [{"name": name, "loss": loss, "change": loss - found.loss} for name, loss in found.components()]
        arrays = {"heads": found.heads.tolist(), "mlps": found.mlps.tolist()}
        print_json(vars(found) | arrays | {"components": components})
    else:
        _print(found, None if show_all else _ROWS)


def _print(found: "Ablation", rows: int | None) -> None:
    print_text(
        f"loss of the whole model: {found.loss:.4f} nats per token, "
        f"on {found.tokens:,} tokens in windows of {found.window:,}; {found.by} ablation\n"
    )
    components = found.components()
    largest = max(abs(loss - found.loss) for _, loss in components)
    table = []
    for name, loss in components[:rows]:
        change = loss - found.loss
        table.append([name, f"{loss:.4f}", f"{change:+.4f}", two_sided_bar(change, largest, 15)])
    print_table(["without", "loss", "change", ""], table, right=(1, 2))
    if rows is not None and len(components) > rows:
        print_text(f"... and {len(components) - rows:,} more (--all shows them)")
