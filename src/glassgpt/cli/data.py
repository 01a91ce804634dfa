"""``glassgpt data list | fetch``; see :mod:`glassgpt.cli.dataset` for ``prepare`` and ``show``."""

import time

import typer

from glassgpt.cli import dataset
from glassgpt.cli.common import JSON_OPTION, print_json, print_table, say, show_line
from glassgpt.errors import ConfigError

app = typer.Typer(
    name="data", help="Corpora, shards, and what a batch really is.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("list")
def list_corpora(json: bool = JSON_OPTION) -> None:
    """List the corpora known by name: where each is or would come from, its size, and what a document of it is."""
    from glassgpt import assets
    from glassgpt.assets.asset import format_bytes

    corpora = [assets.ASSETS[name] for name in assets.names("corpus")]
    where = {corpus.name: assets.available(corpus.name) for corpus in corpora}
    if json:
        keys = ("name", "download_size", "documents", "licence", "description", "held_out")
        described = [{key: getattr(corpus, key) for key in keys} for corpus in corpora]
        print_json([{**row, "here": where[row["name"]]} for row in described])
        return
    table = []
    for corpus in corpora:
        size = format_bytes(corpus.download_size) if corpus.download_size else ""
        place = where[corpus.name] or "not here"
        table.append([corpus.name, place, size, corpus.documents, corpus.licence, corpus.description])
    print_table(["name", "where", "size", "documents", "licence", "description"], table, right=(2,))
    print("\nWhat is not here, `glassgpt data fetch NAME` brings. Held-out texts have names of their own.")


@app.command()
def fetch(
    name: str = typer.Argument(..., help="A name from `glassgpt data list`."),
    files: int = typer.Option(
        0, "--files", min=0, max=10_000, help="How many of several files; 0: those that are here, or else one."
    ),
    json: bool = JSON_OPTION,
) -> None:
    """Bring a corpus to this machine, check it, and print where it is. A download that was stopped goes on."""
    from glassgpt import assets

    if name not in assets.names("corpus"):
        raise ConfigError(f"there is no corpus {name!r}; there are {', '.join(assets.names('corpus'))}")
    progress = _BytesLine()
    try:
        corpus = assets.corpus(name, files or None, progress)
    except KeyboardInterrupt:
        progress.clear()
        kept = f"what came of it is kept, and `glassgpt data fetch {name}` goes on from there"
        say(f"stopped; {kept}" if progress.seen else "stopped")
        raise typer.Exit(130) from None
    finally:
        progress.clear()
    if json:
        size = sum(path.stat().st_size for path in corpus.files)
        documents = {"separator": corpus.separator, "text_field": corpus.text_field}
        print_json({"name": name, "files": [str(path) for path in corpus.files], "bytes": size, **documents})
    else:
        print("\n".join(map(str, corpus.files)))
        for other in assets.ASSETS[name].held_out:
            say(f"note: its publishers hold out {other}: glassgpt data fetch {other}")


class _BytesLine:
    """Tells on one line of a terminal how far a download or a check is, with its rate and the time left."""

    def __init__(self) -> None:
        self.seen = False
        self._doing, self._from, self._began, self._shown = "", 0, 0.0, 0.0

    def __call__(self, doing: str, done: int, total: int) -> None:
        """Show it, ten times a second at most. What was there already counts for the share, not for the rate."""
        from glassgpt.assets.asset import format_bytes

        now = time.monotonic()
        if doing != self._doing:
            self._doing, self._from, self._began, self._shown = doing, done, now, now - 1.0
        self.seen = True
        if now - self._shown < 0.1:
            return
        self._shown = now
        line = f"{doing}: {format_bytes(done)}" + (f" of {format_bytes(total)}, {done / total:.0%}" if total else "")
        if (rate := (done - self._from) / max(now - self._began, 1e-3)) and now - self._began >= 0.5:
            line += f", {format_bytes(rate)}/s" + (f", {(total - done) / rate:,.0f} s left" if total else "")
        show_line(line)

    def clear(self) -> None:
        """Leave the line empty."""
        show_line("")


app.command()(dataset.prepare)
app.command()(dataset.show)
