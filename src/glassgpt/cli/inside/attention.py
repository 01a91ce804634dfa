"""``glassgpt attention``."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glassgpt.cli.arguments import JSON_OPTION, RUNS_OPTION
from glassgpt.cli.inside.trace import describe_tokens
from glassgpt.cli.printing.output import pluralize, print_json, print_table, print_text
from glassgpt.cli.prompt import (
    DEVICE_OPTION,
    PICTURE_OPTION,
    PROMPT_FILE_OPTION,
    PROMPT_OPTION,
    RUN_ARGUMENT,
    check_picture,
    load_model,
    newest_run,
    open_run,
    read_prompt_text,
)
from glassgpt.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from glassgpt.glass.inside.heads import AttentionMaps

    _Maps = Sequence[tuple[str, AttentionMaps]]  # with the name of the model: one, or two to compare

#: Heads in the table, and positions in that of a head, at most.
_ROWS, _POSITIONS = 10, 40
#: Heads named for each number, and keys for each position.
_BEST, _KEYS = 5, 3


def attention(
    run: str = RUN_ARGUMENT,
    prompt: str = PROMPT_OPTION,
    prompt_file: Path = PROMPT_FILE_OPTION,
    layer: int = typer.Option(None, "--layer", help="Only this layer's heads; layers and heads count from 0."),
    head: int = typer.Option(None, "--head", help="Only this head of --layer."),
    find: str = typer.Option("", "--find", help="Sort by entropy, first, previous, duplicate or induction."),
    rows: int = typer.Option(None, "--rows", min=0, help="Rows of a table at most; 0: all."),
    repeat: bool = typer.Option(False, "--repeat", help="In place of a prompt: up to 64 random tokens, twice."),
    seed: int = typer.Option(0, "--seed", help="Seed of these random tokens."),
    against: str = typer.Option("", "--against", metavar="RUN2", help="Compare with this model on the same prompt."),
    step: int = typer.Option(None, "--step", help="Compare with the checkpoint of this step, of the run or of RUN2."),
    out: Path = PICTURE_OPTION,
    device: str = DEVICE_OPTION,
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Show what each head attends to, and find heads by kind.

    A head is named by layer and number, 5.3. entropy (in nats; --find shows the lowest first): how spread its attention
    is. first, previous: the attention on the first token, and on the one before. duplicate: on earlier tokens equal to
    the current one. induction: on the tokens that followed those. With --find induction or duplicate and without a
    prompt, as with --repeat, the model reads random tokens, twice; numbers are means over four such sequences.
    """
    check_picture(out)
    text = read_prompt_text(prompt, prompt_file)
    from glassgpt.glass.inside.heads import attention_maps, require_comparable, require_head
    from glassgpt.glass.inside.pictures.attention import TILE
    from glassgpt.glass.inside.prompt import Prompt, read_prompt
    from glassgpt.glass.inside.repeated import measure_repeated, repeated_sequences

    _check(text, layer, head, find, repeat)
    repeat = repeat or (not text and find in ("duplicate", "induction"))
    layers = [layer] if layer is not None else None if out is not None else []  # whose weights are shown
    at_most = TILE if head is None else None

    def read(source: str) -> "AttentionMaps":
        model, tokenizer = load_model(open_run(source, runs), device)
        require_head(model.config, layer, head)
        if not repeat:
            return attention_maps(model, read_prompt(model, tokenizer, text), layers, at_most)
        shown = Prompt.of(tokenizer, repeated_sequences(model, tokenizer, seed)[0])
        maps = attention_maps(model, shown, layers, at_most)
        return replace(maps, statistics=measure_repeated(model, tokenizer, seed).statistics)

    maps = [(name, read(source)) for name, source in _sources(run, against, step, runs)]
    if len(maps) > 1:
        require_comparable(maps[0][1], maps[1][1])
    first = maps[0][1]
    if find and (problem := _undefined(first, [find])):
        raise ConfigError(f"--find {find}: {problem}")
    chosen = _choose(first, layer, head, find)
    if out is not None:
        _draw(maps, layer, head, out)
    if json:
        print_json(_to_json(maps, chosen, head))
    else:
        if repeat:
            print_text("random tokens, then the same again; each number is the mean over four such sequences")
        _print(maps, chosen, head, find, rows)


def _check(text: str, layer: int | None, head: int | None, find: str, repeat: bool) -> None:
    """Check options that depend on each other.

    Raises:
        ConfigError: if they do not fit together.
    """
    from glassgpt.glass.inside.heads import STATISTICS

    if find and find not in STATISTICS:
        raise ConfigError(f"--find {find!r} is not one of {', '.join(STATISTICS)}")
    if head is not None and layer is None:
        raise ConfigError("--head is the number of a head in a layer; give --layer too")
    if text and repeat:
        raise ConfigError("give a prompt or --repeat, not both")


def _sources(run: str, against: str, step: int | None, runs: Path) -> list[tuple[str, str]]:
    """Return the name of the model, and of the one to compare with, if there is one; and where each is."""
    from glassgpt import api

    first, name = (run or "the newest run", run), against or run
    if step is None:
        return [first, (against, against)] if against else [first]
    found = api.find_run(name, runs) if name else newest_run(runs)
    return [first, (f"{found.name} at step {step}", str(found.at_step(step)))]


def _undefined(maps: "AttentionMaps", names: Sequence[str]) -> str:
    """Say why some of these numbers are not defined on the prompt; empty if all are."""
    if not any(math.isnan(maps.statistics[name].flat[0]) for name in names):
        return ""
    if len(maps.prompt.ids) == 1:
        return "the prompt is one token, which can only attend to itself; give a longer one"
    again = "twice" if math.isnan(maps.statistics["duplicate"].flat[0]) else "again after another one"
    return f"no token of the prompt occurs {again}; repeat a part of it, or give --repeat in place of a prompt"


def _choose(maps: "AttentionMaps", layer: int | None, head: int | None, find: str) -> list[tuple[int, int]]:
    """Return the heads to show, as (layer, head): in the order of the model, or of a number."""
    L, H = maps.statistics["entropy"].shape
    chosen = [(i, j) for i in range(L) for j in range(H) if layer in (None, i) and head in (None, j)]
    if find:
        sign = 1 if find == "entropy" else -1
        chosen.sort(key=lambda place: sign * float(maps.statistics[find][place]))
    return chosen


def _to_json(maps: "_Maps", chosen: Sequence[tuple[int, int]], head: int | None) -> dict[str, Any]:
    """Return the heads with their numbers in each model; of a single head, its weights, too."""
    models = []
    for name, one in maps:
        heads = [
            {"head": f"{i}.{j}", "layer": i, "number": j} | {k: float(v[i, j]) for k, v in one.statistics.items()}
            for i, j in chosen
        ]
        weights = {"weights": one.weights[0, head].tolist()} if head is not None else {}
        models.append({"name": name, "heads": heads} | weights)
    return {"prompt": vars(maps[0][1].prompt), "models": models}


def _print(maps: "_Maps", chosen: Sequence[tuple[int, int]], head: int | None, find: str, rows: int | None) -> None:
    """Print the numbers of the heads; of many and without --find, the best of each kind; of one, what it attends to."""
    first = maps[0][1]
    tokens, (L, H) = first.prompt.tokens, first.statistics["entropy"].shape
    print_text(describe_tokens(tokens))
    even = sum(math.log(t + 1) for t in range(len(tokens))) / len(tokens)
    heads = f"{pluralize(L * H, 'head')} in {pluralize(L, 'layer')}"
    print_text(f"{heads}; on these tokens, attention spread evenly has an entropy of {even:.2f} nats")
    if len(maps) > 1:
        print_text(f"each number in {' -> '.join(name for name, _ in maps)}, and the difference")
    if problem := _undefined(first, list(first.statistics)):
        print_text(f"-: {problem}")
    print_text()
    limit = _ROWS if rows is None else rows or len(chosen)
    if len(chosen) > limit and not find and rows is None:
        _print_best(first, chosen)
        print_text("\n--find NAME sorts all heads by one of these; --rows 0 shows all; --layer L --head H opens one")
        return
    header = ["head", *first.statistics]
    print_table(header, [_row(maps, place) for place in chosen[:limit]], right=range(len(header)))
    if len(chosen) > limit:
        print_text(f"... and {len(chosen) - limit:,} more (--rows 0 shows all)")
    for name, one in maps if head is not None else ():
        print_text(f"\nThe most attention of each token in {name}:\n")
        _print_keys(one.weights[0, head], tokens, rows)


def _print_best(maps: "AttentionMaps", chosen: Sequence[tuple[int, int]]) -> None:
    """Print the heads with the largest values of each number, or the lowest entropy."""
    table = []
    for name, values in maps.statistics.items():
        places = sorted(chosen, key=lambda place: -values[place] if name != "entropy" else values[place])
        best = [f"{i}.{j} {_number(values[i, j])}" for i, j in places[:_BEST] if not math.isnan(values[i, j])]
        table.append([f"{'lowest' if name == 'entropy' else 'most'} {name}", *best, *["-"] * (_BEST - len(best))])
    print_table([], table)


def _row(maps: "_Maps", place: tuple[int, int]) -> list[str]:
    """Return a head's name and numbers; in two models, both and their difference."""
    cells = [f"{place[0]}.{place[1]}"]
    for values in zip(*(one.statistics.values() for _, one in maps), strict=True):
        numbers = [float(value[place]) for value in values]
        change = f" {numbers[-1] - numbers[0]:+.3f}" if len(numbers) > 1 and not math.isnan(numbers[0]) else ""
        cells.append(" -> ".join(map(_number, numbers)) + change)
    return cells


def _print_keys(weights: "np.ndarray", tokens: Sequence[str], rows: int | None) -> None:
    """Print, for each position, the positions with the most attention."""
    limit = _POSITIONS if rows is None else rows or len(tokens)
    table = []
    for t, row in enumerate(weights[:limit]):
        best = sorted(range(t + 1), key=lambda s: -row[s])[:_KEYS]
        keys = [f"{s} '{tokens[s]}' {row[s]:.2f}" for s in best if row[s] >= 0.005]
        table.append([str(t), f"'{tokens[t]}'", *keys, *[""] * (_KEYS - len(keys))])
    print_table(["position", "token", "attends to", "", ""], table, right=(0,))
    if len(tokens) > limit:
        print_text(f"... and {len(tokens) - limit:,} more (--rows 0 shows all)")


def _number(number: float) -> str:
    return "-" if math.isnan(number) else f"{number:.3f}"


def _draw(maps: "_Maps", layer: int | None, head: int | None, out: Path) -> None:
    from glassgpt.glass.inside.pictures.attention import draw_head, draw_wall

    named = [(name.rsplit("/", 1)[-1], one) for name, one in maps]
    if layer is not None and head is not None:
        tokens = maps[0][1].prompt.tokens
        draw_head([(f"head {layer}.{head} of {name}", one.weights[0, head]) for name, one in named], tokens, out)
    else:
        draw_wall([(f"heads of {name}", one.weights) for name, one in named], layer or 0, out)
