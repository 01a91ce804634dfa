"""``glassgpt trace``."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glassgpt.cli.arguments import JSON_OPTION, RUNS_OPTION
from glassgpt.cli.printing.output import pluralize, print_json, print_text
from glassgpt.cli.printing.token_tables import separator
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
    from glassgpt.glass.inside.trace import TensorFacts, Trace

#: Tokens of a prompt that are shown, at most.
_SHOWN_TOKENS = 40
_AXES = (
    "B batch, T tokens, C n_embd, H heads, KV key/value heads, D head_dim, I intermediate_size, V vocab_size, "
    "P = (H + 2 KV) D, A = H D"
)


def trace(
    run: str = RUN_ARGUMENT,
    prompt: str = PROMPT_OPTION,
    prompt_file: Path = PROMPT_FILE_OPTION,
    layer: int = typer.Option(0, "--layer", help="The layer whose tensors are shown; layers count from 0."),
    out: Path = PICTURE_OPTION,
    device: str = DEVICE_OPTION,
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Show every tensor of a forward pass, with its formula.

    The exit code is 1 if a number is not finite.

    Of all layers but one, which have the same sizes, only the output is shown; --json has every tensor.
    """
    check_picture(out)
    text = read_prompt_text(prompt, prompt_file)
    model, tokenizer = load_model(open_run(run, runs), device)
    from glassgpt.glass.inside.heads import require_head
    from glassgpt.glass.inside.trace import trace

    require_head(model.config, layer)
    found = trace(model, tokenizer, text)
    if out is not None:
        from glassgpt.glass.inside.pictures.trace import draw_trace

        draw_trace(found, out)
    if json:
        print_json(asdict(found))
    else:
        _print(found, layer)
    if found.first_not_finite is not None:
        raise typer.Exit(1)


def describe_tokens(tokens: Sequence[str]) -> str:
    """Return the number of tokens, and the first ones with a mark between them."""
    mark = separator()
    shown = mark.join(tokens[:_SHOWN_TOKENS]) + (" ..." if len(tokens) > _SHOWN_TOKENS else "")
    return f"{pluralize(len(tokens), 'token')}: {mark}{shown}{mark}"


def _print(trace: "Trace", opened: int) -> None:
    """Print the tensors outside the blocks and of one layer, each with its formula, and the outputs of the others."""
    print_text(describe_tokens(trace.prompt.tokens))
    layers = 1 + max(facts.layer for facts in trace.tensors if facts.layer is not None)
    others = "; the others have the same sizes, and only their output is shown (--layer N opens one)"
    print_text(f"{pluralize(layers, 'layer')}{others if layers > 1 else ''}; on {trace.tensors[0].device}")
    print_text(_AXES + "\n")
    shown = [facts for facts in trace.tensors if facts.layer in (None, opened) or facts.name == "residual after mlp"]
    names = [_name(facts, opened) for facts in shown]
    width = max(map(len, names))
    print_text(" " * width + "".join(f"{heading:>10}" for heading in ("mean", "std", "smallest", "largest")))
    for name, facts in zip(names, shown, strict=True):
        if facts.layer == opened and facts.name == "norm 1":
            print_text(f"layer {opened}")
        numbers = [_number(number) for number in (facts.mean, facts.std, facts.smallest, facts.largest)]
        print_text(f"{name:<{width}}" + "".join(f"{number:>10}" for number in numbers))
        if facts.layer in (None, opened):
            print_text(f"    = {facts.formula}  ({_notes(facts)})")
    if found := trace.first_not_finite:
        count = f"{found.not_finite:,} of its {math.prod(found.sizes):,} numbers"
        place = found.name if found.layer is None else f"{found.name} of layer {found.layer}"
        print_text(f"\nNot finite, first in {place}: {count} are NaN or infinite. It is {found.formula}.")
    else:
        print_text("\nEvery number is finite, except the masked scores.")


def _name(facts: "TensorFacts", opened: int) -> str:
    """Return the name with axes and sizes, ``q [B 1, H 9, T 14, D 64]``; and the layer, if it is not the open one."""
    axes = ", ".join(f"{axis} {size}" for axis, size in zip(facts.axes, facts.sizes, strict=True))
    layer = "" if facts.layer in (None, opened) else f"layer {facts.layer}: "
    return f"{layer}{facts.name} [{axes}]"


def _notes(facts: "TensorFacts") -> str:
    """Return the type and the storage, and how many numbers are not finite."""
    masked = [f"{facts.masked:,} are -inf"] if facts.masked else []
    not_finite = [f"{facts.not_finite:,} NOT FINITE"] if facts.not_finite else []
    return ", ".join([facts.dtype, facts.storage, *masked, *not_finite])


def _number(number: float) -> str:
    return "-" if math.isnan(number) else f"{number:.3g}"
