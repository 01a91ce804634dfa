"""``glassgpt tokenizer train | show | compare``: from text to tokens, and what they are."""

import difflib
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glassgpt.cli import comparison, learned, tokens
from glassgpt.cli.common import (
    JSON_OPTION,
    RUNS_OPTION,
    ProgressLine,
    counted,
    print_json,
    say,
    something_piped_in,
)
from glassgpt.errors import ConfigError, DataError, TokenizerError
from glassgpt.files import path_exists

if TYPE_CHECKING:
    from glassgpt.tokenizer import Tokenizer
    from glassgpt.tokenizer.specs import Spec

app = typer.Typer(
    name="tokenizer", help="Train a tokenizer, look inside one, compare several.", no_args_is_help=True,
    rich_markup_mode=None,
)  # fmt: skip

TEXT_HELP = "A text file (UTF-8), or a corpus by name (`glassgpt data list`)."
PATTERN_HELP = (
    "Split pattern of .tiktoken files, which do not hold it: gpt2, llama3 or qwen2; by default by their names."
)


# --- train -----------------------------------------------------------------------------------------------------------


@app.command()
def train(
    text: str = typer.Argument(
        ..., metavar="TEXT", help=f"{TEXT_HELP} All of it is learned from: nothing is kept for validation."
    ),
    spec: str = typer.Argument(
        "bpe:4096", metavar="SPEC", help="bpe:N or word:N (N tokens in all), word (all words of the text), or char."
    ),
    out: Path = typer.Option(
        ..., "--out", "-o", metavar="OUT",
        help="Where to: a folder, or a file whose name ends in .json or (bpe only) .tiktoken.",
    ),
    pattern: str = typer.Option(None, "--pattern", help="bpe: split pattern: gpt2 (default), llama3 or qwen2."),
    special: list[str] = typer.Option(
        None, "--special", metavar="NAME", help="bpe: a special token besides <|endoftext|>; can be repeated."
    ),
    min_frequency: int = typer.Option(
        None, "--min-frequency", min=1, help="bpe: how often a pair must occur to be merged; by default 2."
    ),
    processes: int = typer.Option(
        None, "--processes", min=1, help="bpe: processes that count words; by default one per CPU for a long text."
    ),
    force: bool = typer.Option(False, "--force", help="Replace a tokenizer that is there."),
    json: bool = JSON_OPTION,
) -> None:  # fmt: skip
    """Learn a tokenizer from a text.

    A folder gets tokenizer.json and tokenizer_config.json, which `tokenizers` and `transformers` open, too. Train a
    model with it: glassgpt train TEXT tokenizer=OUT.
    """
    from glassgpt.data.sources.source import read_text
    from glassgpt.tokenizer import specs

    asked = specs.parse(spec)
    if not asked.trained:
        raise ConfigError(f"{spec!r} is not learned from a text; what is: bpe:N, word:N, word, char (say, bpe:4096)")
    settings: dict[str, Any] = {"pattern": pattern, "special": special}
    settings |= {"min_frequency": min_frequency, "processes": processes}
    settings = {name: value for name, value in settings.items() if value}
    if settings and asked.kind != "bpe":
        names = " and ".join(f"--{name.replace('_', '-')}" for name in settings)
        raise ConfigError(f"{spec} has no use for {names}, which bpe:N takes; leave it out")
    content = read_text(text).content
    targets = learned.targets(out, asked.kind, force)
    began = time.monotonic()
    made = _trained(asked, content, settings)
    seconds = time.monotonic() - began
    learned.write(made, out, targets)
    result = learned.summary(made, asked, content) | {"seconds": seconds, "files": [str(target) for target in targets]}
    if json:
        print_json(result)
    else:
        learned.print_trained(result, text, out, settings)


def _trained(asked: "Spec", content: str, settings: dict[str, Any]) -> "Tokenizer":
    """The tokenizer asked for, with progress on the terminal."""
    from glassgpt.tokenizer import BPETokenizer, specs
    from glassgpt.tokenizer.base import END_OF_TEXT

    if asked.kind != "bpe" or asked.vocab_size is None:
        return specs.make(asked, content)
    if "special" in settings:
        others = [name for name in settings["special"] if name != END_OF_TEXT]
        settings = settings | {"special": [END_OF_TEXT, *others]}
    progress = ProgressLine(comparison.UNITS)
    try:
        return BPETokenizer.train(content, asked.vocab_size, progress=progress, **settings)
    finally:
        progress.clear()


# --- show ------------------------------------------------------------------------------------------------------------


@app.command()
def show(
    tokenizer: str = typer.Argument(
        ..., metavar="TOKENIZER", help="gpt2, a tokenizer file or folder, or a run, which carries its tokenizer."
    ),
    text: str | None = typer.Argument(
        None, metavar="TEXT", help="What to encode; - reads standard input. Without it, the tokenizer is described."
    ),
    merges: str | None = typer.Option(
        None, "--merges", metavar="WORD", help="Replay how this word is merged, step by step."
    ),
    allow_special: bool = typer.Option(
        False, "--allow-special", help="Special tokens written in the text become those tokens, and not text."
    ),
    pattern: str = typer.Option(None, "--pattern", help=PATTERN_HELP),
    rows: int = typer.Option(200, "--rows", min=0, help="Rows of the table of tokens at most; 0: all."),
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Show the tokens of a text: their boundaries, ids and bytes.

    The text is an argument, or what is piped in (less its last line end). In a terminal every token has a background;
    elsewhere there is a │ between tokens (one in the text is written \\│). Line ends and other control characters are
    written as in \\n, a backslash as \\\\, and bytes that are only a part of a character as <E4 BD>.

    A word inside a text begins with its space, also for --merges: ' lower' and 'lower' are not the same.
    """
    opened = find_tokenizer(tokenizer, runs, pattern)
    if merges is not None:
        if text is not None or allow_special:
            raise ConfigError("--merges WORD replays one word; leave out TEXT and --allow-special")
        _show_merges(opened, tokenizer, merges, json)
        return
    content = _text(text)
    if content is not None:
        _show_text(opened, tokenizer, content, allow_special, rows, json)
        return
    found = tokens.describe(opened)
    if json:
        print_json({"tokenizer": tokenizer, **found})
    else:
        tokens.print_description(tokenizer, found)


def find_tokenizer(name: str, runs: Path, pattern: str | None = None) -> "Tokenizer":
    """The tokenizer of that name: gpt2, a file, a folder, or that of a run.

    Args:
        name: what was written.
        runs: where to look for runs by name.
        pattern: the split pattern of a ``.tiktoken`` file.

    Raises:
        GlassError: if there is none, or it cannot be read.
    """
    from glassgpt.tokenizer import specs

    spec = specs.parse(name)
    if pattern and not name.endswith(".tiktoken"):
        raise ConfigError(f"--pattern is for .tiktoken files; {name} has its own")
    if spec.kind == "file" and not path_exists(spec.path) and not path_exists(runs / name):
        raise TokenizerError(_unknown(name, runs))
    return specs.open_tokenizer(name, pattern, runs)


def _unknown(name: str, runs: Path) -> str:
    known = sorted(path.parent.name for path in runs.glob("*/run.toml"))
    near = difflib.get_close_matches(name, [*known, "gpt2"], n=1)
    hint = f"; did you mean {near[0]}?" if near else f". Runs in {runs}/: {', '.join(known) or 'none yet'}"
    return f"there is no tokenizer {name[:80]!r}: it is neither gpt2, nor a file or folder, nor a run{hint}"


def _text(argument: str | None) -> bytes | None:
    """The text to show, in UTF-8 unless it is no text; None if there is none."""
    if argument == "-" or (argument is None and something_piped_in()):
        content = sys.stdin.buffer.read().removesuffix(b"\n")
        if not content and argument is None:
            return None  # a pipe that nothing comes out of, as of other programs that start this one
    elif argument is None:
        return None
    else:
        content = argument.encode("utf-8", errors="surrogateescape")
        if argument and path_exists(argument):
            say(f"note: {argument!r} is taken as the text itself; to show the file: < {shlex.quote(argument)}")
    if not content:
        raise ConfigError("the text is empty; there is nothing to show")
    return content


def _show_text(opened: "Tokenizer", name: str, content: bytes, allow_special: bool, rows: int, json: bool) -> None:
    ids, text = _encode(opened, content, allow_special)
    shown = tokens.examine(opened, ids, {} if text is None or allow_special else _lost(opened, text, ids))
    given_back = b"".join(token.content for token in shown) == content or opened.decode(ids) == text
    characters = None if text is None else len(text)
    per_token = len(content) / len(ids) if ids else None
    if json:
        totals = {"characters": characters, "bytes": len(content), "bytes_per_token": per_token}
        print_json({"tokenizer": name, "tokens": tokens.tokens_json(shown), **totals, "gives_text_back": given_back})
        return
    tokens.print_tokens(shown, rows)
    sizes = [counted(len(ids), "token"), *([] if characters is None else [counted(characters, "character")])]
    print(
        f"\n{', '.join(sizes)}, {counted(len(content), 'byte')}" + (f": {per_token:.2f} bytes per token" if ids else "")
    )
    if not given_back:
        print("note: these tokens do not give the text back; decoded, they are another text")
    written = [special for special in opened.special_ids() if text and special in text]
    if written and not allow_special:
        print(f"note: {', '.join(written)} was taken as text; --allow-special makes it a special token")


def _encode(opened: "Tokenizer", content: bytes, allow_special: bool) -> tuple[list[int], str | None]:
    """The ids, and the text; None if the content is no text, which byte-level BPE can encode nevertheless.

    Raises:
        GlassError: for what the tokenizer cannot encode.
    """
    from glassgpt.tokenizer import BPETokenizer

    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        if isinstance(opened, BPETokenizer) and not allow_special:
            return opened.encode_bytes(content), None
        raise DataError(
            f"the text is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start}; bytes that are no text "
            "can be encoded by byte-level BPE alone, without --allow-special"
        ) from None
    return opened.encode(text, allow_special), text


def _lost(opened: "Tokenizer", text: str, ids: list[int]) -> dict[int, str]:
    """The words that became ``<|unk|>``, by the position of the token."""
    from glassgpt.tokenizer import WordTokenizer
    from glassgpt.tokenizer.pretokenize import Splitter
    from glassgpt.tokenizer.word import PATTERN

    if not isinstance(opened, WordTokenizer):
        return {}
    pieces = enumerate(zip(Splitter([PATTERN]).split(text), ids, strict=True))
    return {position: piece for position, (piece, i) in pieces if i == opened.unk_token_id}


def _show_merges(opened: "Tokenizer", name: str, word: str, json: bool) -> None:
    from glassgpt.tokenizer import BPETokenizer

    if not isinstance(opened, BPETokenizer):
        raise ConfigError(
            f"{name} has no merges to replay: it is of kind {opened.kind}, and only byte-level BPE merges"
        )
    if not word or any("\ud800" <= character <= "\udfff" for character in word):
        raise ConfigError(f"--merges: the word is {'not UTF-8 text' if word else 'empty'}; there is nothing to merge")
    pieces = tokens.replay(opened, word)
    ids = opened.encode(word)
    if json:
        print_json({"tokenizer": name, "word": word, "pieces": tokens.replay_json(pieces), "ids": ids})
        return
    tokens.print_replay(pieces)
    if ids != [i for piece in pieces for i in piece.ids]:
        whole = ", ".join(f"{tokens.quoted(opened.token_bytes(i))} {i}" for i in ids)
        print(f"\nnote: encoding gives {whole}, because this tokenizer takes some tokens whole, without merging")


# --- compare ---------------------------------------------------------------------------------------------------------


@app.command()
def compare(
    text: str = typer.Argument(..., metavar="TEXT", help=TEXT_HELP),
    tokenizers: list[str] = typer.Argument(
        ..., metavar="TOKENIZER", help="char, word, word:N, bpe:N, gpt2, a tokenizer file or folder, or a run."
    ),
    limit: int = typer.Option(
        10_000_000, "--bytes", min=1, help="Bytes of the text to take at most, from its beginning."
    ),
    pattern: str = typer.Option(None, "--pattern", help=PATTERN_HELP),
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Compare tokenizers on one text: how short it gets, and how fast.

    char, word, word:N and bpe:N are trained on the first 90 % of the text. All are measured on the last 10 %, which
    those have not seen (a file or a run may have). More bytes per token are fewer tokens for the same text.
    """
    from glassgpt.data.sources.source import read_text
    from glassgpt.tokenizer import specs

    asked = [specs.parse(name) for name in tokenizers]
    if pattern and not any(name.endswith(".tiktoken") for name in tokenizers):
        raise ConfigError("--pattern is for .tiktoken files, and there is none among these tokenizers")
    opened: dict[str, Tokenizer] = {}
    for spec in asked:
        if spec.trained:
            specs.make(spec, "a")  # refuses a size that is too small, before anything takes long
        else:
            opened[spec.text] = find_tokenizer(spec.text, runs, pattern if spec.text.endswith(".tiktoken") else None)
    source = read_text(text)
    parts = comparison.divide(source.content, limit)
    result = []
    progress = ProgressLine(comparison.UNITS)
    for spec in asked:
        progress.line(f"training {spec.text}" if spec.trained else f"measuring {spec.text}")
        found = opened.get(spec.text) or specs.make(spec, parts.train, progress=progress)
        progress.line(f"measuring {spec.text}")
        before = parts.train[-len(parts.measured) :]
        result.append(comparison.measure(spec.text, found, parts.measured, before))
    progress.clear()
    if json:
        print_json({"text": source.name, **parts.sizes(), "tokenizers": comparison.as_json(result)})
        return
    print(parts.describe(source.name, [spec.text for spec in asked if spec.trained]) + "\n")
    comparison.print_comparison(result)
