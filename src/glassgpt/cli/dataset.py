"""``glassgpt data prepare | show``."""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glassgpt.cli.common import JSON_OPTION, ProgressLine, counted, print_json, print_table, split_arguments
from glassgpt.cli.tokens import quoted
from glassgpt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from glassgpt.config import RunConfig
    from glassgpt.data import TextSource, TokenStream
    from glassgpt.data.audit.duplicates import Duplicates
    from glassgpt.data.sources.documents import Document

#: Ids and documents that are counted for `show`; of a larger corpus the first.
COUNTED = 10_000_000
_UNITS = {"encoding": "bytes", "comparing documents": "bytes", "reading": "bytes", "counting words": "characters"}


def prepare(
    arguments: list[str] = typer.Argument(None, metavar="SOURCE | key=value", help="As for train."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder to write; a preparation interrupted there goes on."),
    processes: int = typer.Option(0, "--processes", min=0, max=1024, help="To work at the same time; 0: one per CPU."),
    json: bool = JSON_OPTION,
) -> None:
    """Tokenise a corpus of any size into checked shards, which `glassgpt train FOLDER` then reads."""
    from glassgpt import data

    config = _configured(arguments)
    progress = ProgressLine(_UNITS)
    try:
        source = data.find_source(config.data, progress)
        if source.prepared:
            raise DataError(f"{source.prepared} is prepared already; train on it: glassgpt train {source.prepared}")
        stream = data.prepare(source, config.data, progress, folder=out, processes=processes or None)
    finally:
        progress.clear()
    if json:
        print_json(_numbers(stream) | {"folder": str(out), "shards": len(stream.manifest.shards)})
        return
    _print_numbers(source.name, stream)
    if dropped := stream.manifest.duplicates:
        print(f"left out {dropped['exact']:,} documents that repeat an earlier one, {dropped['near']:,} that nearly do")
    print(f"{counted(len(stream.manifest.shards), 'shard')} in {out}; next: glassgpt train {out}")


def show(
    arguments: list[str] = typer.Argument(None, metavar="SOURCE | key=value", help="As for train."),
    batch: int = typer.Option(0, "--batch", min=0, max=2**40, help="Which batch."),
    rows: int = typer.Option(2, "--rows", min=1, help="Rows of it, documents, or pairs to show."),
    leaks: bool = typer.Option(False, "--leaks", help="What the validation text shares with the training text."),
    against: Path = typer.Option(None, "--against", help="With --leaks: an evaluation file to look for, too."),
    duplicates: bool = typer.Option(False, "--duplicates", help="Documents that repeat an earlier one."),
    json: bool = JSON_OPTION,
) -> None:
    """Show what a corpus holds and one of its batches decoded, inputs beside targets: the shift by one is visible."""
    from glassgpt import data

    if leaks and duplicates:
        raise ConfigError("--leaks and --duplicates are two reports; ask for one at a time")
    if against and not leaks:
        raise ConfigError("--against names a file for --leaks; give both")
    config = _configured(arguments)
    progress = ProgressLine(_UNITS)
    try:
        source = data.find_source(config.data, progress)
        if duplicates:
            _show_duplicates(source, config, rows, progress, json)
            return
        stream = data.prepare(source, config.data, progress)
    finally:
        progress.clear()
    if leaks:
        _show_leaks(stream, against, config, json)
    else:
        _show_batch(source.name, stream, config, batch, rows, json)


def _configured(arguments: Sequence[str] | None) -> "RunConfig":
    from glassgpt.config import ConfigOverrides, build, presets

    preset, _, layers = split_arguments(arguments or [])
    base: ConfigOverrides = (
        presets.get(preset).layer if preset else {"model": {"block_size": 32}, "train": {"batch_size": 4}}
    )
    return build("", [base, *layers])


# --- numbers ---------------------------------------------------------------------------------------------------------


def _numbers(stream: "TokenStream") -> dict[str, Any]:
    info = stream.info
    return {
        "tokens": info.tokens, "documents": info.documents, "bytes": info.bytes, "vocab_size": info.vocab_size,
        "bytes_per_token": {split: info.bytes[split] / max(info.tokens[split], 1) for split in info.tokens},
        "tokenizer": info.tokenizer, "split": stream.manifest.split, "duplicates_dropped": stream.manifest.duplicates,
    }  # fmt: skip


def _print_numbers(name: str, stream: "TokenStream") -> None:
    info, by_position = stream.info, stream.manifest.split == "position"
    table = [
        [split, f"{info.tokens[key]:,}", f"{info.bytes[key]:,}",
         f"{info.bytes[key] / max(info.tokens[key], 1):.2f}", "" if by_position else f"{info.documents[key]:,}"]
        for split, key in (("to train on", "train"), ("to validate with", "val"))
    ]  # fmt: skip
    print(f"{name}: {'one text, split by position' if by_position else 'documents, split by their content'}")
    print_table(
        ["", "tokens", "bytes", "bytes per token", "" if by_position else "documents"], table, right=(1, 2, 3, 4)
    )
    left_out = stream.manifest.total("documents")["val"] - info.documents["val"]
    if left_out:
        print(
            f"{left_out:,} more validation documents are beyond max_val_tokens and used for nothing; a smaller "
            "val_fraction gives them to training"
        )


def _usage(stream: "TokenStream") -> dict[str, Any]:
    """How the vocabulary is used and how long documents are, by the first ten million ids."""
    import numpy as np

    ids = np.asarray(stream.train[:COUNTED])
    counts = np.bincount(ids, minlength=stream.info.vocab_size)
    lengths: list[int] = []
    for shard in stream.train.shards:
        lengths += np.diff(np.append(shard.starts, len(shard))).tolist()
        if len(lengths) >= COUNTED:
            break
    often = np.argsort(-counts, kind="stable")[:10]
    quartiles = [int(q) for q in np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1])] if lengths else []
    return {
        "ids_counted": len(ids),
        "distinct_ids": int((counts > 0).sum()),
        "most_frequent": [
            {"id": int(i), "text": quoted(stream.tokenizer.token_bytes(int(i))), "share": float(counts[i] / len(ids))}
            for i in often
            if counts[i]
        ],
        "document_tokens": quartiles,
    }


# --- documents and batches -------------------------------------------------------------------------------------------


def _show_batch(name: str, stream: "TokenStream", config: "RunConfig", batch: int, rows: int, json: bool) -> None:
    from glassgpt import data

    order = config.data.order
    batches = data.Batches(stream.train, config.model.block_size, config.train.batch_size, config.train.seed, order)
    inputs, targets = batches.get(batch)
    starts = batches.starts(batch)
    usage = _usage(stream)
    if json:
        shown = [
            {"start": int(s), "inputs": x.tolist(), "targets": y.tolist()}
            for s, x, y in zip(starts, inputs, targets, strict=True)
        ]
        print_json(_numbers(stream) | usage | {"batch": batch, "windows": batches.windows, "rows": shown})
        return
    _print_numbers(name, stream)
    seen = f"{usage['distinct_ids']:,} of {stream.info.vocab_size:,} tokens occur"
    among = f" among the first {usage['ids_counted']:,}" if usage["ids_counted"] < len(stream.train) else ""
    print(f"vocabulary: {seen}{among}; most often: {'  '.join(entry['text'] for entry in usage['most_frequent'])}")
    if stream.manifest.split == "documents":
        least, q1, median, q3, most = usage["document_tokens"]
        print(f"documents: {least:,} to {most:,} tokens, half of them {q1:,} to {q3:,}, the middle one {median:,}")
        for number, (place, text) in enumerate(_first_documents(stream, rows)):
            print(f"\ndocument {number}, from token {place:,}\n  {text!r}")
        print()
    decode = stream.tokenizer.decode
    kind = "shard by shard" if batches.sequential else "anywhere"
    print(f"{batches.windows:,} windows of {batches.block_size} in an epoch, taken {kind}")
    print(f"batch {batch}: inputs and targets are both [{inputs.shape[0]}, {inputs.shape[1]}]")
    for i in range(min(rows, len(starts))):
        print(f"\nrow {i}, from token {starts[i]:,}")
        print(f"  inputs   {decode(inputs[i].tolist())!r}")
        print(f"  targets  {decode(targets[i].tolist())!r}")
    _print_shift(stream, batches, batch, config.data.mask_documents)


def _print_shift(stream: "TokenStream", batches: Any, batch: int, masked: bool) -> None:
    """The first positions of the first row, one below another."""
    inputs, targets = batches.get(batch)
    ids, positions = batches.documents(batch)
    token_bytes = stream.tokenizer.token_bytes
    print("\nrow 0, token by token: what the model reads at each position, and what it should say next")
    table = [
        [str(positions[0][t] if masked else t), f"{int(x)}", quoted(token_bytes(int(x))), "->", f"{int(y)}",
         quoted(token_bytes(int(y))), *([str(ids[0][t])] if masked else [])]
        for t, (x, y) in enumerate(zip(inputs[0][:8], targets[0][:8], strict=True))
    ]  # fmt: skip
    header = ["position", "input", "", "", "target", "", *(["document"] if masked else [])]
    print_table(header, table, right=(0, 1, 4, 6) if masked else (0, 1, 4))


def _first_documents(stream: "TokenStream", count: int) -> Iterator[tuple[int, str]]:
    """Where the first training documents begin, and the beginning of each."""
    import numpy as np

    shard = stream.train.shards[0]
    for begin, end in itertools.pairwise(np.append(shard.starts, len(shard))[: count + 1]):
        text = stream.tokenizer.decode(stream.train[int(begin) : min(int(end), int(begin) + 64)].tolist())
        yield int(begin), text[:120] + ("..." if len(text) > 120 or end - begin > 64 else "")


# --- leaks and duplicates --------------------------------------------------------------------------------------------


def _show_leaks(stream: "TokenStream", against: Path | None, config: "RunConfig", json: bool) -> None:
    """What validation text, or an evaluation file, shares with the training text, by 13-grams."""
    from dataclasses import replace

    from glassgpt import data
    from glassgpt.data.audit.leaks import Grams, describe, overlap
    from glassgpt.data.corpus.reading_back import texts_of

    names = ("document {}" if stream.manifest.split == "documents" else "the text").format
    sides = [("validation", Grams.of(texts_of(stream, "val"), (f"validation {names(n)}" for n in _numbers_from(0))))]
    if against:
        other = data.find_source(replace(config.data, source=str(against)))
        if other.prepared:
            raise DataError(
                f"--against takes text, and {against} is a prepared corpus; give the text that it was made from"
            )
        documents = list(other.documents())
        sides.append((str(against), Grams.of([d.text for d in documents], [str(d) for d in documents])))
    found = {
        name: overlap(grams, texts_of(stream, "train"), (f"training {names(n)}" for n in _numbers_from(0)))
        for name, grams in sides
    }
    if json:
        print_json({name: shared.to_json() for name, shared in found.items()})
        return
    for name, shared in found.items():
        print(f"{name} against the training text:")
        for line in describe(shared, "validation" if name == "validation" else "evaluation"):
            print(f"  {line}")


def _numbers_from(first: int) -> Iterator[int]:
    while True:
        yield first
        first += 1


def _show_duplicates(source: "TextSource", config: "RunConfig", rows: int, progress: ProgressLine, json: bool) -> None:
    """Documents that repeat an earlier one, as text."""
    from glassgpt.data.corpus.tasks import document_tasks, find_source_duplicates
    from glassgpt.tokenizer.pretokenize import usable_cpus

    if source.prepared or source.single:
        what = "a prepared corpus holds ids" if source.prepared else "a single text has no documents"
        raise DataError(f"--duplicates compares documents, and {what}; give a folder, a .jsonl file, or a separator")
    tasks = list(document_tasks(source))
    with tempfile.TemporaryDirectory(prefix="glassgpt-", ignore_cleanup_errors=True) as scratch:
        found = find_source_duplicates(
            source,
            config.data,
            tasks,
            Path(scratch),
            processes=usable_cpus() if len(tasks) > 1 else 1,
            progress=progress,
        )
        progress.clear()
        texts = _documents_at(
            source, tasks, {place for pair in found.pairs[:rows] for place in (pair.first, pair.second)}
        )
    if json:
        print_json(_found_json(found, rows, texts))
        return
    total = sum(found.kinds.values())
    print(f"{counted(sum(found.documents), 'document')}, {total:,} of them like an earlier one:")
    names = {
        "train": "within training",
        "validation": "within validation",
        "across": "a training document like a validation one",
    }
    print_table(["", "documents"], [[names[kind], f"{number:,}"] for kind, number in found.kinds.items()], right=(1,))
    print(f"data.duplicates=drop leaves out {found.exact:,} that are the same and {found.near:,} that are nearly so")
    for pair in found.pairs[:rows]:
        how = "the same text" if pair.exact else f"{pair.similarity:.0%} alike"
        print(f"\n{names[pair.kind]}, {how}:")
        for place in (pair.first, pair.second):
            text = texts[place].text
            print(f"  {texts[place]}\n    {text[:160]!r}{'...' if len(text) > 160 else ''}")


def _documents_at(
    source: "TextSource", tasks: Sequence[dict[str, Any]], places: set[tuple[int, int]]
) -> dict[tuple[int, int], "Document"]:
    """The documents at some places, each (task, row)."""
    found = {}
    for task in {task for task, _ in places}:
        for row, document in enumerate(source.documents(tasks[task]["segments"])):
            if (task, row) in places:
                found[task, row] = document
    return found


def _found_json(found: "Duplicates", rows: int, texts: dict[tuple[int, int], "Document"]) -> dict[str, Any]:
    pairs = [
        {
            "first": str(texts[pair.first]), "second": str(texts[pair.second]), "similarity": pair.similarity,
            "exact": pair.exact, "kind": pair.kind, "dropped": pair.dropped, "text": texts[pair.second].text,
        }
        for pair in found.pairs[:rows]
    ]  # fmt: skip
    return {
        "documents": sum(found.documents),
        "kinds": found.kinds,
        "exact": found.exact,
        "near": found.near,
        "pairs": pairs,
    }
