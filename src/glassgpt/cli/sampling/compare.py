"""``glassgpt sample --compare``: print the comparison of several settings."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.cli.printing.output import print_json, print_table, print_text, printable
from glassgpt.glass.tokens import escaped

if TYPE_CHECKING:
    from glassgpt.glass.choices.comparison import Comparison
    from glassgpt.inference.decode import Request
    from glassgpt.model import GPT
    from glassgpt.sampling import SamplingConfig
    from glassgpt.tokenizer import Tokenizer

#: Tokens of each continuation, and values of --top-k and --top-p, if they are not given.
NEW_TOKENS, TOP_K, TOP_P = 40, 40, 0.9
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_COLUMNS = 120  # of a table that is not printed on a terminal


def compared_settings(sampling: "SamplingConfig", given: set[str]) -> "dict[str, SamplingConfig]":
    """Return the settings to compare, with the values of the options that are given."""
    from glassgpt.glass.choices.comparison import usual_settings

    return usual_settings(
        top_k=sampling.top_k if "top_k" in given else TOP_K,
        top_p=sampling.top_p if "top_p" in given else TOP_P,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
    )


def print_comparison(
    model: "GPT", tokenizer: "Tokenizer", request: "Request", settings: "dict[str, SamplingConfig]", *,
    prompt: str, candidates: int, num_samples: int, out: Path | None, json: bool,
) -> None:  # fmt: skip
    """Compare settings on the logits after the prompt, and print or draw the result."""
    from glassgpt.glass.choices.comparison import compare_settings, draw_comparison

    found = compare_settings(
        model, tokenizer, request.prompt, settings, candidates=candidates, num_samples=num_samples,
        max_new_tokens=request.max_new_tokens, seed=request.seed, stop=request.stop,
        min_new_tokens=request.min_new_tokens, end_token_ids=request.end_token_ids,
    )  # fmt: skip
    after = f"after {prompt[-40:]!r}"
    if out:
        draw_comparison(found, out, f"probability of the next token {after}")
    if json:
        print_json({"prompt": prompt, **_as_json(found)})
        return
    print_text(f"the next token {after}: probability in %\n")
    _print_bars(found)
    print_text()
    lines = []
    for name, texts in zip(found.settings, found.continuations, strict=True):
        lines += [["" if n else name, escaped(text.encode("utf-8"))] for n, text in enumerate(texts)]
    print_table(["setting", "continuation"], lines)


def _print_bars(found: "Comparison") -> None:
    labels = [f"'{token}'" for token in found.tokens]
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else _COLUMNS
    width = (columns - max(map(len, [*labels, "tokens kept"]))) // len(found.settings) - 8
    width = max(3, min(width, 12))
    table = []
    for token, shares in zip(labels, found.probabilities.tolist(), strict=True):
        table.append([token, *(f"{100 * share:5.1f} {_bar(share, width)}" if share else "    -" for share in shares)])
    rest = [max(0.0, 1 - total) for total in found.probabilities.sum(axis=0).tolist()]
    table.append(["others", *(f"{100 * share:5.1f} {_bar(share, width)}" for share in rest)])
    table.append(["tokens kept", *(f"{kept:5,}" for kept in found.kept)])
    print_table(["", *(f"{name:>5}" for name in found.settings)], table)


def _bar(share: float, width: int) -> str:
    """Draw a share of 1 as a bar of at most ``width`` characters."""
    if not printable(_EIGHTHS, ""):
        return "#" * round(share * width)
    full, part = divmod(round(share * width * 8), 8)
    return _EIGHTHS[8] * full + _EIGHTHS[part].strip()


def _as_json(found: "Comparison") -> dict[str, Any]:
    names = list(found.settings)
    rows = zip(found.ids, found.tokens, found.probabilities.tolist(), strict=True)
    return {
        "settings": {name: vars(sampling) for name, sampling in found.settings.items()},
        "kept": dict(zip(names, found.kept, strict=True)),
        "candidates": [
            {"token": i, "text": text, "probabilities": dict(zip(names, shares, strict=True))}
            for i, text, shares in rows
        ],
        "continuations": dict(zip(names, found.continuations, strict=True)),
    }
