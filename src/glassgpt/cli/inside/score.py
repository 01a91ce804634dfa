"""``glassgpt score``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glassgpt.cli.arguments import JSON_OPTION, RUNS_OPTION, stdin_is_piped
from glassgpt.cli.printing.output import ProgressLine, pluralize, print_json, print_text
from glassgpt.cli.prompt import (
    DEVICE_OPTION,
    PICTURE_OPTION,
    PROMPT_OPTION,
    RUN_ARGUMENT,
    check_picture,
    load_model,
    open_run,
    read_prompt_text,
)
from glassgpt.errors import ConfigError

if TYPE_CHECKING:
    from glassgpt.glass.inside.score import Score


def score(
    run: str = RUN_ARGUMENT,
    file: str = typer.Argument("", metavar="FILE", help="The text, UTF-8; - or nothing reads standard input."),
    prompt: str = PROMPT_OPTION,
    stride: int = typer.Option(None, "--stride", help="Tokens between windows; by default half a context."),
    tokens: int = typer.Option(1000, "--tokens", min=0, help="Tokens of the text to show; 0: all."),
    worst: int = typer.Option(10, "--worst", min=0, help="Most surprising tokens to list."),
    out: Path = PICTURE_OPTION,
    device: str = DEVICE_OPTION,
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Show how surprised the model is by each token of a text.

    Prints the loss, bits per byte, perplexity, and the worst tokens.
    """
    check_picture(out)
    text = _read(file, prompt)
    source = open_run(run, runs)
    model, tokenizer = load_model(source, device)
    from glassgpt.glass.inside.score import score as score_text

    with ProgressLine() as progress:
        scored = score_text(model, tokenizer, text, stride=stride, progress=progress)
    if out:
        from glassgpt.glass.inside.pictures.score import draw_score

        draw_score(scored, out, f"{source.path}")
    if json:
        print_json({"model": str(source.path), **_as_json(scored)})
        return
    from glassgpt.cli.printing.surprise import print_surprise, print_worst

    print_surprise(scored, tokenizer, tokens)
    _print_summary(scored, model.config.block_size)
    if worst:
        print_text()
        print_worst(scored, tokenizer, worst)


def _read(file: str, prompt: str) -> str:
    """Return the text of the file, as training reads it, or of --prompt or standard input."""
    if not (file or prompt or stdin_is_piped()):
        raise ConfigError("there is no text to score; give FILE, or --prompt TEXT, or pipe a text into the command")
    if file in ("", "-"):
        if file and prompt:
            raise ConfigError("give FILE or --prompt, not both")
        return read_prompt_text(prompt or file, None)
    if prompt:
        raise ConfigError("give FILE or --prompt, not both")
    from glassgpt.data.sources.source import read_text

    return read_text(file).content


def _print_summary(scored: "Score", context: int) -> None:
    """Print what was counted, and the mean values."""
    counted = len(scored.ids) - 1
    print_text(f"\n{pluralize(counted, 'token')} predicted; the first one is not, nothing comes before it")
    if scored.windows > 1:
        least = context - scored.stride + 1
        print_text(
            f"{scored.windows:,} windows of {context:,} tokens, one every {scored.stride:,}: after the first window, "
            f"each token has at least {pluralize(least, 'token')} before it"
        )
    byte = f"{scored.bits_per_byte:.4f} bits per byte ({pluralize(scored.bytes, 'byte')})"
    if scored.bits_per_byte is None:
        byte = "no bits per byte: the tokenizer loses a part of this text"
    print_text(f"loss {scored.loss:.4f} nats per token, perplexity {scored.perplexity:,.2f}, {byte}")


def _as_json(scored: "Score") -> dict[str, Any]:
    names = ("loss", "perplexity", "bits_per_byte", "bytes", "stride", "windows")
    columns = zip(
        scored.ids, scored.tokens, scored.nats.tolist(), scored.ranks.tolist(), scored.expected.tolist(),
        scored.expected_probability.tolist(), strict=True,
    )  # fmt: skip
    keys = ("id", "text", "nats", "rank", "expected", "expected_probability")
    tokens = [dict(zip(keys, column, strict=True)) for column in columns]
    tokens[0] |= dict.fromkeys(keys[2:])  # the first is not predicted
    return {name: getattr(scored, name) for name in names} | {"predicted": len(tokens) - 1, "tokens": tokens}
