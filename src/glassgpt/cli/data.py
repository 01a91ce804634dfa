"""``glassgpt data list | fetch | show``."""

import typer

from glassgpt.cli.common import JSON_OPTION, print_json, print_table, split_arguments
from glassgpt.cli.tokens import quoted
from glassgpt.errors import ConfigError

app = typer.Typer(name="data", help="Corpora, and what a batch really is.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_corpora(json: bool = JSON_OPTION) -> None:
    """List the corpora known by name, and where each would come from."""
    from glassgpt import assets

    rows = [
        {
            "name": name,
            "here": assets.available(name) or "not here; `data fetch` looks for it",
            "licence": assets.ASSETS[name].licence,
            "description": assets.ASSETS[name].description,
        }
        for name in assets.names("corpus")
    ]
    if json:
        print_json(rows)
    else:
        print_table(list(rows[0]), [list(row.values()) for row in rows])


@app.command()
def fetch(name: str = typer.Argument(..., help="A name from `glassgpt data list`."), json: bool = JSON_OPTION) -> None:
    """Bring a corpus to this machine, check it, and print where it is."""
    from glassgpt import assets

    if name not in assets.names("corpus"):
        raise ConfigError(f"there is no corpus {name!r}; there are {', '.join(assets.names('corpus'))}")
    path = assets.path(name)
    if json:
        print_json({"name": name, "path": str(path), "bytes": path.stat().st_size})
    else:
        print(path)


@app.command()
def show(
    arguments: list[str] = typer.Argument(None, metavar="TEXT | key=value", help="As for train."),
    batch: int = typer.Option(0, "--batch", min=0, max=2**40, help="Which batch."),
    rows: int = typer.Option(2, "--rows", min=1, help="Rows of it to show."),
    json: bool = JSON_OPTION,
) -> None:
    """Show one training batch decoded, inputs beside targets, so that the shift by one is visible."""
    from glassgpt import data, presets
    from glassgpt.config import Layer, build

    preset, _, layers = split_arguments(arguments or [])
    base: Layer = presets.get(preset).layer if preset else {"model": {"block_size": 32}, "train": {"batch_size": 4}}
    config = build("", [base, *layers])
    text = data.read(config.data.source)
    stream = data.prepare(text, config.data)
    batches = data.Batches(stream.train, config.model.block_size, config.train.batch_size, config.train.seed)
    inputs, targets = batches.get(batch)
    starts = batches.starts(batch)
    decode, token_bytes = stream.tokenizer.decode, stream.tokenizer.token_bytes
    if json:
        shown = [
            {"start": int(s), "inputs": x.tolist(), "targets": y.tolist()}
            for s, x, y in zip(starts, inputs, targets, strict=True)
        ]
        print_json({"batch": batch, "tokens": stream.info.tokens, "vocab_size": stream.info.vocab_size, "rows": shown})
        return
    tokens = stream.info.tokens
    print(f"{text.name}: {tokens['train']:,} tokens to train on, then {tokens['val']:,} to validate with")
    print(f"vocabulary of {stream.info.vocab_size}; {batches.windows:,} windows of {batches.block_size} in an epoch")
    print(f"batch {batch}: inputs and targets are both [{inputs.shape[0]}, {inputs.shape[1]}]")
    for i in range(min(rows, len(starts))):
        print(f"\nrow {i}, from token {starts[i]:,}")
        print(f"  inputs   {decode(inputs[i].tolist())!r}")
        print(f"  targets  {decode(targets[i].tolist())!r}")
    print("\nrow 0, token by token: what the model reads at each position, and what it should say next")
    table = [
        [str(t), f"{int(x)}", quoted(token_bytes(int(x))), "->", f"{int(y)}", quoted(token_bytes(int(y)))]
        for t, (x, y) in enumerate(zip(inputs[0][:8], targets[0][:8], strict=True))
    ]
    print_table(["position", "input", "", "", "target", ""], table, right=(0, 1, 4))
