"""Markdown in the terminal, with tables that lose no text in a narrow window."""

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Markdown, TableElement
from rich.table import Table


class _Table(TableElement):
    """A table whose long words are broken; rich cuts them off."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in super().__rich_console__(console, options):
            if isinstance(table, Table):
                for column in table.columns:
                    column.overflow = "fold"
            yield table


class Prose(Markdown):
    """Markdown for ``rich.console.Console.print``."""

    elements = Markdown.elements | {"table_open": _Table}
