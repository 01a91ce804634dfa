"""``glassgpt film``."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glassgpt.cli.arguments import JSON_OPTION, RUNS_OPTION
from glassgpt.cli.printing.output import ProgressLine, print_json, print_table, print_text, say
from glassgpt.cli.prompt import (
    DEVICE_OPTION,
    PICTURE_OPTION,
    PROMPT_FILE_OPTION,
    PROMPT_OPTION,
    check_picture,
    newest_run,
    read_prompt_text,
)
from glassgpt.errors import ConfigError

if TYPE_CHECKING:
    from glassgpt.config import ModelConfig
    from glassgpt.glass.inside.film import Film, Frame

#: Columns of the lens that are printed, at most.
_MOST_LAYERS = 9


def film(
    run: str = typer.Argument("", metavar="RUN", help="A run, by name or folder. By default the newest."),
    prompt: str = PROMPT_OPTION,
    prompt_file: Path = PROMPT_FILE_OPTION,
    steps: str = typer.Option("", "--steps", metavar="N,N,...", help="Only the checkpoints of these training steps."),
    every: int = typer.Option(0, "--every", min=0, help="Only steps that this number divides, and the last one."),
    head: list[str] = typer.Option([], "--head", metavar="L.H", help="Show this head, too: 1.0; can be repeated."),
    max_new_tokens: int = typer.Option(40, "--max-new-tokens", "-n", min=1, help="Tokens that each writes."),
    temperature: float = typer.Option(0.8, "--temperature", help="Below 1 less random, above 1 more; 0 is greedy."),
    seed: int = typer.Option(0, "--seed", help="Seed of the texts, and of the random tokens that heads are tried on."),
    out: Path = PICTURE_OPTION,
    device: str = DEVICE_OPTION,
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Show one prompt to every kept checkpoint of a run.

    Prints the text, loss, logit lens and heads at each step, and when induction appears.

    `train keep_every=N` keeps the checkpoints. Heads are measured on random tokens that are repeated once.
    """
    check_picture(out)
    text, wanted = read_prompt_text(prompt, prompt_file), _read_steps(steps)
    if wanted and every:
        raise ConfigError("give --steps or --every, not both")
    from glassgpt import api
    from glassgpt.glass.inside.film import film
    from glassgpt.sampling import SamplingConfig

    sampling = SamplingConfig(temperature)
    found = api.find_run(run, runs) if run else newest_run(runs)
    heads = [_read_head(name, found.config().model) for name in head]
    with ProgressLine() as progress:
        result = film(
            found, text, steps=wanted, every=every, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed,
            device=device, progress=progress,
        )  # fmt: skip
    if len(result.frames) == 1:
        say("note: this is one checkpoint only; `glassgpt train ... keep_every=N` keeps more")
    if out is not None:
        from glassgpt.glass.inside.pictures.film import draw_film

        draw_film(result, heads or [result.frames[-1].best_head("induction")], out)
    if json:
        print_json(_to_json(result, heads))
    else:
        _print(result, heads)


def _read_steps(text: str) -> list[int]:
    if not re.fullmatch(r"(\d{1,15}(,\d{1,15})*)?", text, re.ASCII):
        raise ConfigError(f"--steps {text!r} is not a list of steps; write --steps 0,100,500")
    return [int(step) for step in text.split(",") if step]


def _read_head(text: str, config: "ModelConfig") -> tuple[int, int]:
    if not (match := re.fullmatch(r"(\d{1,9})\.(\d{1,9})", text, re.ASCII)):
        raise ConfigError(f"--head {text!r} is not a head; write layer and head, counted from 0, as --head 1.0")
    layer, head = int(match[1]), int(match[2])
    if layer >= config.n_layer or head >= config.n_head:
        raise ConfigError(
            f"--head {text}: the model's heads are 0.0 to {config.n_layer - 1}.{config.n_head - 1} (layer.head)"
        )
    return layer, head


def _print(film: "Film", heads: list[tuple[int, int]]) -> None:
    """Print tables over steps: texts, lens, the best heads, chosen heads; then when induction appears."""
    from glassgpt.glass.inside.film import describe_induction, spread
    from glassgpt.glass.inside.heads import STATISTICS, head_name
    from glassgpt.glass.inside.lens import row_name
    from glassgpt.glass.tokens import escaped

    losses = ["-" if math.isnan(frame.loss) else f"{frame.loss:.3f}" for frame in film.frames]  # - for one token
    rows = [
        [f"{frame.step:,}", loss, escaped(frame.text.encode())] for frame, loss in zip(film.frames, losses, strict=True)
    ]
    print_table(["step", "loss", "text after the prompt"], rows, right=(0, 1))
    print_text("\nLogit lens: the next token after each block, its probability; [in brackets]: it stays so to the end")
    layers = spread(len(film.frames[0].lens_texts), _MOST_LAYERS)
    rows = [[f"{frame.step:,}", *(_lens_cell(frame, layer) for layer in layers)] for frame in film.frames]
    print_table(["step", *map(row_name, layers)], rows, right=(0,))
    print_text(
        "\nThe best head of each kind (the lowest entropy) on repeated random tokens, and the loss of these tokens"
    )
    rows = [
        [f"{frame.step:,}"]
        + [f"{frame.best(name):.3f} ({head_name(frame.best_head(name))})" for name in STATISTICS]
        + [f"{frame.repeated.first_loss:.3f}", f"{frame.repeated.second_loss:.3f}"]
        for frame in film.frames
    ]
    header = ["step", *STATISTICS, "loss at first", "repeated"]
    print_table(header, rows, right=range(len(header)))
    for head in heads:
        print_text(f"\nHead {head_name(head)} on repeated random tokens, and from the last token of the prompt")
        rows = [_head_row(film, frame, head) for frame in film.frames]
        print_table(["step", *STATISTICS, "attends most to"], rows, right=range(6))
    print_text(f"\n{describe_induction(film)}")


def _lens_cell(frame: "Frame", layer: int) -> str:
    cell = f"'{frame.lens_texts[layer]}' {frame.lens_probability[layer]:.2f}"
    return f"[{cell}]" if layer >= frame.decided_in else cell


def _head_row(film: "Film", frame: "Frame", head: tuple[int, int]) -> list[str]:
    weights = frame.attention[head]
    key = int(weights.argmax())
    numbers = [f"{values[head]:.3f}" for values in frame.repeated.statistics.values()]
    return [f"{frame.step:,}", *numbers, f"'{film.prompt.tokens[key]}' (position {key}) {weights[key]:.2f}"]


def _to_json(film: "Film", heads: list[tuple[int, int]]) -> dict[str, Any]:
    from glassgpt.glass.inside.heads import head_name

    induction: dict[str, Any] = {"step": None, "after": None, "head": None}
    if (index := film.induction) is not None:
        frame = film.frames[index]
        after = film.steps[index - 1] if index else None
        induction = {"step": frame.step, "after": after, "head": head_name(frame.best_head("induction"))}
    return {
        "run": film.run.name,
        "prompt": vars(film.prompt),
        "induction": induction | {"threshold": film.threshold, "chance": film.chance},
        "checkpoints": [_frame_to_json(frame, heads) for frame in film.frames],
    }


def _frame_to_json(frame: "Frame", heads: list[tuple[int, int]]) -> dict[str, Any]:
    from glassgpt.glass.inside.heads import head_name

    statistics = frame.repeated.statistics
    rows = zip(frame.lens_tokens.tolist(), frame.lens_texts, frame.lens_probability.tolist(), strict=True)
    return {
        "step": frame.step,
        "loss": frame.loss,
        "text": frame.text,
        "lens": [{"token": token, "text": text, "probability": p} for token, text, p in rows],
        "decided_in": frame.decided_in,
        "best_heads": {
            name: {"head": head_name(frame.best_head(name)), "value": frame.best(name)} for name in statistics
        },
        "repeated": {"first_loss": frame.repeated.first_loss, "second_loss": frame.repeated.second_loss},
        "heads": {
            head_name(head): {name: float(values[head]) for name, values in statistics.items()}
            | {"attention": frame.attention[head].tolist()}
            for head in heads
        },
    }
