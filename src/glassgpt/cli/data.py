"""``glassgpt data list | fetch | prepare | show``."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glassgpt.cli.arguments import JSON_OPTION, check_out, split_arguments, verb_group
from glassgpt.cli.printing.output import ProgressLine, byte_size, pluralize, print_json, print_table, print_text, say
from glassgpt.config import ConfigOverrides, RunConfig, build, presets
from glassgpt.errors import ConfigError, DataError, shell_command
from glassgpt.glass.corpus import corpus_sizes, corpus_statistics, find_duplicates, find_leaks, first_documents
from glassgpt.glass.tokens import quoted

if TYPE_CHECKING:
    from glassgpt.data import Batches, TextSource, TokenStream
    from glassgpt.data.audit.duplicates import Duplicates, Pair
    from glassgpt.data.audit.leaks import Overlap
    from glassgpt.data.sources.documents import Document

app = verb_group("data", "List, fetch, prepare and examine texts to train on.")

#: The kinds of duplicates, for people.
_KINDS = {
    "train": "within training",
    "validation": "within validation",
    "across": "a training document like a validation one",
}


@app.command("list")
def list_corpora(json: bool = JSON_OPTION) -> None:
    """List the corpora known by name: where each is, its size, its documents and its licence."""
    from glassgpt import assets

    corpora = [assets.ASSETS[name] for name in assets.names("corpus")]
    places = {corpus.name: assets.available(corpus.name) for corpus in corpora}
    if json:
        keys = ("name", "download_size", "documents", "licence", "description", "held_out")
        rows = [{key: getattr(corpus, key) for key in keys} for corpus in corpora]
        print_json([{**row, "here": places[row["name"]]} for row in rows])
        return
    table = []
    for corpus in corpora:
        size = byte_size(corpus.download_size) if corpus.download_size else ""
        place = places[corpus.name] or "not here"
        table.append([corpus.name, place, size, corpus.documents, corpus.licence, corpus.description])
    print_table(["name", "where", "size", "documents", "licence", "description"], table, right=(2,))
    print_text(
        "\n`glassgpt data fetch NAME` fetches a corpus that is not here. Held-out texts have names of their own."
    )


@app.command()
def fetch(
    name: str = typer.Argument(..., help="A name from `glassgpt data list`."),
    files: int = typer.Option(
        0, "--files", min=0, max=10_000, help="How many of several files; 0: those that are here, else one."
    ),
    json: bool = JSON_OPTION,
) -> None:
    """Download a corpus if it is not here, check it, and print its path."""
    from glassgpt import assets

    if name not in assets.names("corpus"):
        raise ConfigError(f"there is no corpus {name!r}; there are {', '.join(assets.names('corpus'))}")
    with ProgressLine() as progress:
        try:
            corpus = assets.corpus(name, files or None, progress)
        except KeyboardInterrupt:
            say(f"stopped; to start again: {shell_command('data', 'fetch', name)}")
            raise typer.Exit(130) from None
    if json:
        size = sum(path.stat().st_size for path in corpus.files)
        documents = {"separator": corpus.separator, "text_field": corpus.text_field}
        print_json({"name": name, "files": [str(path) for path in corpus.files], "bytes": size, **documents})
        return
    print("\n".join(map(str, corpus.files)))
    for held_out in assets.ASSETS[name].held_out:
        say(f"note: its publishers hold out {held_out}: {shell_command('data', 'fetch', held_out)}")


@app.command()
def prepare(
    arguments: list[str] = typer.Argument(None, metavar="SOURCE | key=value", help="As for train."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder to write; an interrupted preparation is resumed."),
    processes: int = typer.Option(0, "--processes", min=0, max=1024, help="Parallel processes; 0: one per CPU."),
    json: bool = JSON_OPTION,
) -> None:
    """Tokenise a corpus of any size into checked shards, for `glassgpt train FOLDER`."""
    from glassgpt import data

    config = _config(arguments)
    check_out(out, folder=True)
    with ProgressLine() as progress:
        source = data.find_source(config.data, progress)
        if source.prepared:
            command = shell_command("train", source.prepared)
            raise DataError(f"{source.prepared} is prepared already; train on it: {command}")
        stream = data.prepare(source, config.data, progress, folder=out, processes=processes or None)
    shards = len(stream.manifest.shards)
    if json:
        print_json(corpus_sizes(stream) | _files(source) | {"folder": str(out), "shards": shards})
        return
    _print_sizes(source, stream)
    if dropped := stream.manifest.duplicates:
        print_text(f"dropped {dropped['exact']:,} exact and {dropped['near']:,} near duplicates")
    print_text(f"{pluralize(shards, 'shard')} in {out}; next: {shell_command('train', out)}")


@app.command()
def show(
    arguments: list[str] = typer.Argument(None, metavar="SOURCE | key=value", help="As for train."),
    batch: int = typer.Option(0, "--batch", min=0, max=2**40, help="Number of the batch to show."),
    rows: int = typer.Option(2, "--rows", min=1, help="Rows of the batch, documents, or pairs to show."),
    leaks: bool = typer.Option(False, "--leaks", help="Show validation text that is in the training text, too."),
    against: Path = typer.Option(None, "--against", help="With --leaks: search for this evaluation file, too."),
    duplicates: bool = typer.Option(False, "--duplicates", help="Show documents that repeat an earlier one."),
    json: bool = JSON_OPTION,
) -> None:
    """Show a corpus in numbers, and one of its batches as text: the targets are the inputs shifted by one token."""
    from glassgpt import data

    if leaks and duplicates:
        raise ConfigError("--leaks and --duplicates are two reports; ask for one at a time")
    if against and not leaks:
        raise ConfigError("--against names a file for --leaks; give both")
    config = _config(arguments)
    with ProgressLine() as progress:
        source = data.find_source(config.data, progress)
        if duplicates:
            found, pairs = find_duplicates(source, config.data, rows, progress)
        else:
            stream = data.prepare(source, config.data, progress)
    if duplicates:
        _print_duplicates(found, pairs, json)
    elif leaks:
        evaluations = {str(against): data.find_source(replace(config.data, source=str(against)))} if against else {}
        _print_leaks(find_leaks(stream, evaluations), json)
    else:
        model, train = config.model, config.train
        batches = data.Batches(stream.train, model.block_size, train.batch_size, train.seed, config.data.order)
        if json:
            _print_batch_json(source, stream, batches, batch)
        else:
            _print_corpus(source, stream, rows)
            _print_batch(stream, batches, batch, rows, config.data.mask_documents)


def _config(arguments: Sequence[str] | None) -> RunConfig:
    """Build the configuration; without a preset, batches are small enough to read."""
    preset, _, overrides = split_arguments(arguments or [])
    readable: ConfigOverrides = {"model": {"block_size": 32}, "train": {"batch_size": 4}}
    return build("", [presets.get(preset).layer if preset else readable, *overrides])


def _files(source: "TextSource") -> dict[str, dict[str, int]]:
    """Count the files that were read and those that were passed over, by their endings."""
    return {"files": dict(source.kinds()), "passed_over": dict(source.passed_over)}


def _print_sizes(source: "TextSource", stream: "TokenStream") -> None:
    from glassgpt.data.sources.documents import listed_counts

    sizes = corpus_sizes(stream)
    by_document = sizes["split"] == "documents"
    print_text(
        f"{source.name}: {'documents, split by their content' if by_document else 'one text, split by position'}"
    )
    columns = ["tokens", "bytes", "bytes_per_token", *(["documents"] if by_document else [])]
    table = []
    for label, split in (("training", "train"), ("validation", "val")):
        numbers = [sizes[column][split] for column in columns]
        table.append([label, *(f"{n:.2f}" if isinstance(n, float) else f"{n:,}" for n in numbers)])
    print_table(["", *(column.replace("_", " ") for column in columns)], table, right=(1, 2, 3, 4))
    if len(source.files) > 1 or source.passed_over:
        passed_over = f"; passed over: {listed_counts(source.passed_over)}" if source.passed_over else ""
        print_text(f"files: {listed_counts(source.kinds())}{passed_over}")
    if sizes["left_out"]:
        print_text(f"left out, because they have no text: {listed_counts(sizes['left_out'])}")
    if unused := stream.manifest.total("documents")["val"] - sizes["documents"]["val"]:
        print_text(
            f"{unused:,} more validation documents are beyond max_val_tokens and not used; a smaller val_fraction "
            "moves them to training"
        )


def _print_corpus(source: "TextSource", stream: "TokenStream", documents: int) -> None:
    _print_sizes(source, stream)
    found = corpus_statistics(stream)
    part = f" in the first {found['ids_counted']:,}" if found["ids_counted"] < len(stream.train) else ""
    frequent = "  ".join(token["text"] for token in found["most_frequent"])
    print_text(
        f"vocabulary: {found['distinct_ids']:,} of {stream.info.vocab_size:,} tokens occur{part}; often: {frequent}"
    )
    if stream.manifest.split == "documents":
        least, q1, median, q3, most = found["document_tokens"]
        print_text(f"documents: {least:,} to {most:,} tokens, quartiles {q1:,}, {median:,} and {q3:,}")
        for number, (position, text) in enumerate(first_documents(stream, documents)):
            print_text(f"\ndocument {number}, from token {position:,}\n  {text!r}")
        print_text()


def _print_batch_json(source: "TextSource", stream: "TokenStream", batches: "Batches", batch: int) -> None:
    inputs, targets = batches.get(batch)
    rows = [
        {"start": int(start), "inputs": x.tolist(), "targets": y.tolist()}
        for start, x, y in zip(batches.starts(batch), inputs, targets, strict=True)
    ]
    numbers = corpus_sizes(stream) | _files(source) | corpus_statistics(stream)
    print_json(numbers | {"batch": batch, "windows": batches.windows, "rows": rows})


def _print_batch(stream: "TokenStream", batches: "Batches", batch: int, rows: int, mask_documents: bool) -> None:
    """Print the first rows of a batch as text, then the first positions of row 0 token by token."""
    inputs, targets = batches.get(batch)
    order = "shard by shard" if batches.sequential else "in random order"
    print_text(f"{batches.windows:,} windows of {batches.block_size} tokens in an epoch, {order}")
    print_text(f"batch {batch}: inputs and targets are both [{inputs.shape[0]}, {inputs.shape[1]}]")
    for number, start in enumerate(batches.starts(batch)[:rows]):
        print_text(f"\nrow {number}, from token {start:,}")
        for name, ids in (("inputs ", inputs), ("targets", targets)):
            print_text(f"  {name}  {stream.tokenizer.decode(ids[number].tolist())!r}")
    document_ids, position_ids = batches.documents(batch)
    table = []
    for t in range(min(8, len(inputs[0]))):
        x, y = int(inputs[0][t]), int(targets[0][t])
        row = [str(position_ids[0][t] if mask_documents else t)]
        row += [str(x), quoted(stream.tokenizer.token_bytes(x)), "->", str(y), quoted(stream.tokenizer.token_bytes(y))]
        table.append([*row, *([str(document_ids[0][t])] if mask_documents else [])])
    print_text("\nrow 0, token by token: the input at each position, and the target to predict")
    header = ["position", "input", "", "", "target", "", *(["document"] if mask_documents else [])]
    print_table(header, table, right=(0, 1, 4, 6))


def _print_leaks(overlaps: "dict[str, Overlap]", json: bool) -> None:
    from glassgpt.data.audit.leaks import describe

    if json:
        print_json({name: asdict(overlap) for name, overlap in overlaps.items()})
        return
    for name, overlap in overlaps.items():
        print_text(f"{name} against the training text:")
        for line in describe(overlap, "validation" if name == "validation" else "evaluation"):
            print_text(f"  {line}")


def _print_duplicates(found: "Duplicates", pairs: "list[tuple[Pair, Document, Document]]", json: bool) -> None:
    documents, repeated = sum(map(len, found.dropped)), found.exact + found.near
    if json:
        rows = [
            {
                "first": str(first), "second": str(second), "similarity": pair.similarity,
                "exact": pair.exact, "kind": pair.kind, "text": second.text,
            }
            for pair, first, second in pairs
        ]  # fmt: skip
        counts = {"documents": documents, "kinds": found.kinds, "exact": found.exact, "near": found.near}
        print_json(counts | {"pairs": rows})
        return
    print_text(f"{pluralize(documents, 'document')}, {repeated:,} of them like an earlier one:")
    print_table(["", "documents"], [[_KINDS[kind], f"{count:,}"] for kind, count in found.kinds.items()], right=(1,))
    print_text(f"data.duplicates=drop drops {found.exact:,} exact and {found.near:,} near duplicates")
    for pair, *both in pairs:
        similarity = "the same text" if pair.exact else f"{pair.similarity:.0%} similar"
        print_text(f"\n{_KINDS[pair.kind]}, {similarity}:")
        for document in both:
            print_text(f"  {document}\n    {document.text[:160]!r}{'...' if len(document.text) > 160 else ''}")
