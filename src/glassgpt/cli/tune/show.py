"""``glassgpt tune show``: rows of conversations, with every token marked that is trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glassgpt.cli.arguments import JSON_OPTION, RUNS_OPTION, SOURCE_HELP
from glassgpt.cli.printing.output import pluralize, print_json, print_table, print_text, say
from glassgpt.cli.printing.token_tables import marks_of_trained, with_trained
from glassgpt.glass.tokens import escaped, token_json

if TYPE_CHECKING:
    from glassgpt.data.conversations.batches import ChatBatches
    from glassgpt.data.conversations.dataset import ChatData
    from glassgpt.data.conversations.encoding import Row

#: Problems of each kind that are printed.
_EXAMPLES = 3


def show(
    data: str = typer.Argument(..., metavar="DATA", help="A .jsonl file of conversations, or `tutor`."),
    model: str = typer.Argument(..., metavar="MODEL", help=f"{SOURCE_HELP} Its tokenizer and template are used."),
    rows: int = typer.Option(5, "--rows", min=0, help="Rows to show; 0: all."),
    max_length: int = typer.Option(
        0, "--max-length", min=0, help="Tokens in a row at most; 0: as for the longest conversation, up to 1,024."
    ),
    batch_size: int = typer.Option(8, "--batch-size", min=1, max=2**20, help="Rows in a batch, to compute padding."),
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Show conversations as tuning reads them: the format, bad rows, and which tokens are trained.

    The assistant's tokens are trained, and the token that ends each of its turns. In a terminal they are coloured, in
    two shades in turn; elsewhere they are in brackets. `tune lora` and `tune sft` read the same rows, and keep some for
    validation. No weights are loaded.
    """
    from glassgpt import api
    from glassgpt.data.conversations.batches import ChatBatches
    from glassgpt.data.conversations.dataset import load_chats
    from glassgpt.weights.chat_tokens import with_chat_template
    from glassgpt.weights.loading import describe

    source = with_chat_template(api.open_source(model, runs=runs))
    context = describe(source)[0].block_size
    chats = load_chats(data, source.tokenizer(), context=context, max_length=max_length, val_fraction=0.0, seed=0)
    batches = {packing: ChatBatches(chats.train, chats.max_length, batch_size, 0, packing) for packing in (False, True)}
    if json:
        print_json(_as_json(chats, model, batches, rows))
        return
    for note in source.notes:
        say(f"note: {note}")
    print_text(f"{chats.path}: {chats.format}; {pluralize(len(chats.train), 'conversation')} to train on")
    _print_problems(chats)
    _print_rows(chats, rows)
    _print_totals(chats, batches)


def _print_problems(chats: "ChatData") -> None:
    kinds: dict[str, list[str]] = {}
    for problem in chats.problems:
        kinds.setdefault(problem.kind, []).append(f"line {problem.line}: {problem.reason}")
    if not kinds:
        return
    print_text(f"{pluralize(len(chats.problems), 'problem')}; a row is left out unless the reason says what is kept:")
    table = []
    for kind, reasons in sorted(kinds.items(), key=lambda item: -len(item[1])):
        table += [[kind, f"{len(reasons):,}", reasons[0]], *(["", "", reason] for reason in reasons[1:_EXAMPLES])]
        if len(reasons) > _EXAMPLES:
            table.append(["", "", f"and {len(reasons) - _EXAMPLES:,} more"])
    print_table(["problem", "rows", "line and reason"], [[a, b, _one_line(c)] for a, b, c in table], right=(1,))


def _one_line(text: str) -> str:
    """Write a text that may hold any character of the file on one line."""
    return escaped(text.encode("utf-8", "replace"))


def _print_rows(chats: "ChatData", count: int) -> None:
    shown = chats.train[: count or None]
    if shown:
        print_text(f"\ntrained: {marks_of_trained()}")
    for row in shown:
        print_text(f"\nline {row.line}: {_counts(row)}")
        print_text(with_trained([chats.tokenizer.token_bytes(i) for i in row.ids.tolist()], row.trained.tolist()))
    if len(shown) < len(chats.train):
        print_text(f"\n... and {len(chats.train) - len(shown):,} more (--rows 0 shows all)")


def _counts(row: "Row") -> str:
    trained = int(row.trained.sum())
    return f"{pluralize(len(row.ids), 'token')}, {trained:,} trained ({trained / len(row.ids):.0%})"


def _print_totals(chats: "ChatData", batches: "dict[bool, ChatBatches]") -> None:
    totals = _totals(chats.train)
    print_text(
        f"\nin all {pluralize(totals['tokens'], 'token')}, {totals['trained']:,} trained "
        f"({totals['trained'] / totals['tokens']:.1%}); the longest row has {pluralize(totals['longest'], 'token')}, "
        f"on line {totals['longest_line']}"
    )
    size = batches[False].batch_size
    table = [
        [name, f"{batch.num_rows:,}", f"{_padding(batch):.1%}", f"{_share_trained(batch):.1%}"]
        for name, batch in (
            (f"one conversation in a row, {size} rows in a batch", batches[False]),
            (f"packed into rows of up to {chats.max_length:,} tokens", batches[True]),
        )
    ]
    print_table(["", "rows", "padding", "trained"], table, right=(1, 2, 3))


def _totals(rows: "Sequence[Row]") -> dict[str, int]:
    longest = max(rows, key=lambda row: len(row.ids))
    return {
        "tokens": sum(len(row.ids) for row in rows),
        "trained": sum(int(row.trained.sum()) for row in rows),
        "longest": len(longest.ids),
        "longest_line": longest.line,
    }


def _padding(batches: "ChatBatches") -> float:
    return batches.num_padding / (batches.num_tokens + batches.num_padding)


def _share_trained(batches: "ChatBatches") -> float:
    """The share of the positions that the model computes, with padding."""
    return batches.num_trained / (batches.num_tokens + batches.num_padding)


def _as_json(chats: "ChatData", model: str, batches: "dict[bool, ChatBatches]", count: int) -> dict[str, Any]:
    rows = []
    for row in chats.train[: count or None]:
        tokens = [
            {**token_json(i, chats.tokenizer.token_bytes(i)), "trained": trained}
            for i, trained in zip(row.ids.tolist(), row.trained.tolist(), strict=True)
        ]
        rows.append({"line": row.line, "trained": int(row.trained.sum()), "tokens": tokens})
    return {
        **{"data": str(chats.path), "sha256": chats.sha256, "format": chats.format, "model": model},
        "conversations": len(chats.train),
        "problems": [{"line": p.line, "kind": p.kind, "reason": p.reason} for p in chats.problems],
        "max_length": chats.max_length,
        "batch_size": batches[False].batch_size,
        "total": _totals(chats.train),
        "batches": {
            name: {"rows": batch.num_rows, "padding": _padding(batch), "trained": _share_trained(batch)}
            for name, batch in (("unpacked", batches[False]), ("packed", batches[True]))
        },
        "rows": rows,
    }
