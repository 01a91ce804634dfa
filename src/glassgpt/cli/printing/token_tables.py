"""Print tokens, tokenizers and their comparison as tables; tokens of a text in colours if the terminal shows them."""

from collections.abc import Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from glassgpt.cli.printing.output import pluralize, print_table, print_text, printable
from glassgpt.errors import shell_command
from glassgpt.files import path_exists
from glassgpt.glass.tokenizer_comparison import TextSplit, TokenizerMeasurement
from glassgpt.glass.tokens import PreTokenMerges, TokenInText, escaped, quoted

#: Backgrounds of tokens in a terminal (of the 256 colours), used in turn, and of special tokens.
_COLOURS, _SPECIAL_COLOURS = (153, 223, 157, 225), (161, 126)
_BLACK, _WHITE = 16, 231
#: Backgrounds of tokens that are trained, in turn.
_TRAINED_COLOURS = (157, 114)
#: Bytes of a token in a table, at most.
_MAX_BYTES = 16


def print_tokens(tokens: Sequence[TokenInText], max_rows: int) -> None:
    """Print a text with the boundaries of its tokens, then a table of at most ``max_rows`` tokens (0: all)."""
    if has_colours():
        print_text(coloured(tokens))
    else:
        print_text(separated([token.content for token in tokens], line_breaks=True))
    shown = tokens[: max_rows or None]
    table = []
    for position, token in enumerate(shown):
        shortened = token.content[:_MAX_BYTES].hex(" ") + (" ..." if len(token.content) > _MAX_BYTES else "")
        content = "-" if token.special else shortened
        table.append([f"{position:,}", str(token.id), content, quoted(token.content), token.note])
    print_text()
    print_table(["position", "id", "bytes", "token", ""], table, right=(0, 1))
    if len(shown) < len(tokens):
        print_text(f"... and {len(tokens) - len(shown):,} more (--rows 0 shows all)")


def separator() -> str:
    """Return the mark between tokens without colours: ``│``, or ``|`` if standard output cannot encode that."""
    return printable("│", "|")


def separated(contents: Sequence[bytes], line_breaks: bool = False) -> str:
    """Join tokens with the separator; in a token, that character gets a backslash."""
    mark = separator()
    return mark.join(escaped(content, line_breaks).replace(mark, f"\\{mark}") for content in contents)


def coloured(tokens: Sequence[TokenInText]) -> str:
    """Join tokens, each on another background than its neighbours."""
    painted, counts = [], {True: 0, False: 0}
    for token in tokens:
        colours, foreground = (_SPECIAL_COLOURS, _WHITE) if token.special else (_COLOURS, _BLACK)
        colour = colours[counts[token.special] % len(colours)]
        painted.append(paint(escaped(token.content, line_breaks=True), colour, foreground))
        counts[token.special] += 1
    return "".join(painted)


def with_trained(contents: Sequence[bytes], trained: Sequence[bool]) -> str:
    """Join tokens and mark those that are trained: each by a colour, two in turn, or runs of them by brackets.

    A bracket in the text gets a backslash.
    """
    if has_colours():
        parts = [
            paint(escaped(content, line_breaks=True), _TRAINED_COLOURS[number % 2])
            if is_trained
            else escaped(content, line_breaks=True)
            for number, (content, is_trained) in enumerate(zip(contents, trained, strict=True))
        ]
        return "".join(parts).rstrip("\n")
    marks, shown, places = _brackets(), "", iter(contents)
    for is_trained, run in groupby(trained):
        text = escaped(b"".join(islice(places, len(list(run)))), line_breaks=True)
        for mark in marks:
            text = text.replace(mark, f"\\{mark}")
        shown += f"{marks[0]}{text}{marks[1]}" if is_trained else text
    return shown.rstrip("\n")


def marks_of_trained() -> str:
    """Return the legend of :func:`with_trained`."""
    if has_colours():
        return "".join(
            paint(f" {text} ", shade) for text, shade in zip(("one", "token"), _TRAINED_COLOURS, strict=True)
        )
    return "...".join(_brackets())


def _brackets() -> tuple[str, str]:
    """Return ``⟦`` and ``⟧``, or ``{{`` and ``}}`` if standard output cannot encode those."""
    return (printable("⟦", "{{"), printable("⟧", "}}"))


def has_colours() -> bool:
    """Return whether standard output shows colours: a terminal, unless NO_COLOR or TERM say no; or FORCE_COLOR does."""
    from rich.console import Console

    console = Console()
    return console.color_system is not None and not console.no_color


def paint(text: str, background: int, foreground: int = _BLACK) -> str:
    """Colour a text for a terminal of 256 colours, each line by itself: a colour would fill the rest of the line."""
    from rich.color import ColorSystem
    from rich.style import Style

    style = Style(color=f"color({foreground})", bgcolor=f"color({background})")
    return "\n".join(style.render(line, color_system=ColorSystem.EIGHT_BIT) for line in text.split("\n"))


def print_merge_steps(pre_tokens: Sequence[PreTokenMerges]) -> None:
    """Print, for each pre-token, its tokens before every merge and the pair that is merged next."""
    for number, pre_token in enumerate(pre_tokens, start=1):
        place = f"piece {number} of {len(pre_tokens)}: " if len(pre_tokens) > 1 else ""
        size = f"{pluralize(len(pre_token.content), 'byte')}, {pluralize(len(pre_token.steps) - 1, 'merge')}"
        print_text(f"{place}{quoted(pre_token.content)}, {size}\n")
        rows = []
        for count, step in enumerate(pre_token.steps):
            row = [str(count), separated(step.tokens), "none: no pair has a rank", "", ""]
            if step.pair:
                left, right = step.pair
                merges = len(step.tokens) - len(pre_token.steps[count + 1].tokens)
                row[1:3] = [_with_pair(step.tokens, step.pair, merges), f"{quoted(left)} + {quoted(right)}"]
                row[3:] = [f"{step.rank:,}", f"{quoted(left + right)} {step.merged_id}"]
            rows.append(row)
        print_table(["step", "tokens", "merged next", "rank", "into"], rows, right=(0, 3))
        final = pre_token.steps[-1].tokens
        named = ", ".join(f"{quoted(token)} {i}" for token, i in zip(final, pre_token.ids, strict=True))
        print_text(f"\n{pluralize(len(final), 'token')}: {named}" + ("\n" if number < len(pre_tokens) else ""))


def _with_pair(tokens: list[bytes], pair: tuple[bytes, bytes], times: int) -> str:
    """Join tokens with the separator, and colour the first ``times`` places of a pair if there are colours."""
    parts, position, left = [], 0, times if has_colours() else 0
    while position < len(tokens):
        is_pair = left > 0 and tuple(tokens[position : position + 2]) == pair
        size, left = (2, left - 1) if is_pair else (1, left)
        text = separated(tokens[position : position + size])
        parts.append(paint(text, _COLOURS[0]) if is_pair else text)
        position += size
    return separator().join(parts)


def print_tokenizer(name: str, description: Mapping[str, Any]) -> None:
    """Print the result of :func:`glassgpt.glass.tokens.describe_tokenizer`."""
    roles = {token: role.removesuffix("_token") for role, token in description["roles"].items()}
    special = [
        f"{escaped(token.encode())} {i}" + (f" ({roles[token]})" if token in roles else "")
        for token, i in description["special_tokens"].items()
    ]
    size = pluralize(description["vocab_size"] - description["unused_ids"], "token")
    if "merges" in description:
        size += f": 256 bytes, {pluralize(description['merges'], 'merge')}"
    if description["unused_ids"]:
        size += f"; {pluralize(description['unused_ids'], 'id')} below {description['vocab_size']:,} without a token"
    lines = [("kind", description["about"]), ("vocabulary", size), ("special tokens", ", ".join(special) or "none")]
    for token, i in description.get("added_tokens", {}).items():
        lines.append(("added token", f"{escaped(token.encode())} {i}"))
    for pattern in description.get("patterns", []):
        regex = pattern["regex"] if pattern["regex"].isprintable() else repr(pattern["regex"])
        lines.append(("split pattern", f"{pattern['name'] or 'its own'}: {regex}"))
    if description.get("normal_form"):
        lines.append(("normal form", f"text is normalised to {description['normal_form']} first"))
    if description.get("whole_pieces"):
        lines.append(("whole pieces", "a piece that is a token is not merged from bytes"))
    if "merges" not in description:
        lines.append(("first tokens", ", ".join(map(_named, description["first_tokens"]))))
    if description["kind"] != "char":
        longest = description["longest_tokens"]
        lines += [("" if i else "longest tokens", _named(token)) for i, token in enumerate(longest)]
    print_text(f"{name}\n")
    print_table([], lines)
    if description.get("some_merges"):
        print_text()
        _print_merges(description["some_merges"])


def _print_merges(merges: Sequence[Mapping[str, Any]]) -> None:
    rows, previous = [], -1
    for merge in merges:
        if merge["rank"] != previous + 1:
            rows.append(["...", "", "", ""])
        left, right, into = (_content(token) for token in (*merge["pair"], merge["into"]))
        rows.append([f"{merge['rank']:,}", f"{left} + {right}", into, str(merge["into"]["id"])])
        previous = merge["rank"]
    print_table(["rank", "merge", "into", "id"], rows, right=(0, 3))


def _content(token: Mapping[str, Any]) -> str:
    return quoted(bytes.fromhex(token["bytes"]))


def _named(token: Mapping[str, Any]) -> str:
    return f"{_content(token)} {token['id']}"


def print_trained(result: Mapping[str, Any], text: str, out: Path, settings: Mapping[str, Any]) -> None:
    """Print the summary of a trained tokenizer, and the next commands.

    ``result`` is from :func:`glassgpt.glass.tokenizer_comparison.summarize_training`, with ``seconds`` and ``files``.
    """
    special = [f"{name} {i}" for name, i in result["special_tokens"].items()]
    size = f"{result['kind']}, {pluralize(result['vocab_size'], 'token')}"
    if result["merges"] is not None:
        size += f": 256 bytes, {pluralize(result['merges'], 'merge')}"
    print_text(", ".join([size, *special]))
    if result["asked_for"] is not None and result["vocab_size"] < result["asked_for"]:
        times = pluralize(settings.get("min_frequency", 2), "time")
        reason = "the text has no more words" if result["merges"] is None else f"no remaining pair occurs {times}"
        print_text(f"fewer than the {result['asked_for']:,} requested: {reason}")
    lost = f", but {result['unknown']:.1%} of its words are unknown and lost" if result["unknown"] else ""
    print_text(f"{result['bytes_per_token']:.2f} bytes per token on {result['measured_on']}{lost}")
    print_text(f"trained in {result['seconds']:.1f} s; written to {' and '.join(result['files'])}")
    if out.suffix == ".tiktoken":
        print_text(f"split pattern and special tokens are in {out.name}.json: keep it beside the file")
    print_text(f"\nnext: {shell_command('tokenizer', 'show', out, 'Any text')}")
    print_text(f"      {shell_command('train', Path(text) if path_exists(text) else text, f'tokenizer={out}')}")


def print_comparison(name: str, split: TextSplit, trained: Sequence[str], rows: Sequence[TokenizerMeasurement]) -> None:
    """Print the measurements on the end of a text; ``trained`` are the tokenizers trained on its beginning."""
    taken = f"; the first {split.bytes_taken:,} are taken (--bytes takes more)"
    size = pluralize(split.bytes_of_text, "byte")
    print_text(f"{name}, {size}{taken if split.bytes_taken < split.bytes_of_text else ''}")
    if trained:
        print_text(f"trained on the first 90 % ({pluralize(len(split.train), 'character')}): {', '.join(trained)}")
    print_text(f"measured on the last 10 % ({pluralize(len(split.test), 'character')}): all\n")
    has_unknown = any(row.unknown is not None for row in rows)
    header = ["tokenizer", "vocabulary", "used", "tokens", "bytes/token", "tokens/word", "encode MB/s"]
    header += ["unknown"] if has_unknown else []
    table, notes = [], []
    for row in rows:
        speed = None if row.bytes_per_second is None else row.bytes_per_second / 1e6
        mark = "*" if row.gives_text_back is False else " "
        cells = [row.tokenizer, f"{row.vocab_size:,}", _format(row.vocabulary_used, ".1%"), _format(row.tokens, ",")]
        cells += [_format(row.bytes_per_token, ".2f") + mark, _format(row.tokens_per_word, ".2f")]
        cells += [_format(speed, ".2f"), *([_format(row.unknown, ".1%")] if has_unknown else [])]
        table.append(cells)
        if row.error is not None:
            notes.append(f"- {row.tokenizer} cannot encode the last 10 %: {row.error}")
        elif row.gives_text_back is False and row.unknown:
            notes.append(f"* {row.tokenizer}: not comparable; the text of its unknown words is lost")
        elif row.gives_text_back is False:
            notes.append(f"* {row.tokenizer}: not quite comparable; decoding does not give the text back exactly")
    print_table(header, table, right=range(1, len(header)))
    if notes:
        print_text("\n" + "\n".join(notes))


def _format(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
