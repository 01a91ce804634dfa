"""``glassgpt tokenizer train | show | compare``."""

import difflib
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glassgpt.cli.arguments import JSON_OPTION, PATTERNS_HELP, RUNS_OPTION, check_out, stdin_is_piped, verb_group
from glassgpt.cli.printing import token_tables
from glassgpt.cli.printing.output import ProgressLine, pluralize, print_json, print_text, say
from glassgpt.errors import ConfigError, TokenizerError
from glassgpt.files import path_exists, writing
from glassgpt.glass import tokenizer_comparison, tokens

if TYPE_CHECKING:
    from glassgpt.tokenizer import Tokenizer
    from glassgpt.tokenizer.specs import Spec

app = verb_group("tokenizer", "Train a tokenizer, look inside one, compare several.")

TEXT_HELP = "A text file (UTF-8), or a corpus by name (`glassgpt data list`)."
PATTERN_HELP = f"Split pattern of a .tiktoken file, which holds none: {PATTERNS_HELP}; needed if its name is not known."
#: `model_max_length` of a tokenizer that belongs to no model yet.
_NO_LIMIT = 2**31 - 1


@app.command()
def train(
    text: str = typer.Argument(
        ..., metavar="TEXT", help=f"{TEXT_HELP} It is used in full: nothing is kept for validation."
    ),
    spec: str = typer.Argument(
        "bpe:4096", metavar="SPEC", help="bpe:N or word:N (N tokens in all), word (all words of the text), or char."
    ),
    out: Path = typer.Option(
        ..., "--out", "-o", metavar="OUT",
        help="Folder to write, or a file whose name ends in .json or (bpe only) .tiktoken.",
    ),
    pattern: str = typer.Option(None, "--pattern", help=f"bpe: split pattern: {PATTERNS_HELP}; by default gpt2."),
    special: list[str] = typer.Option(
        None, "--special", metavar="NAME", help="bpe: a special token besides <|endoftext|>; can be repeated."
    ),
    min_frequency: int = typer.Option(
        None, "--min-frequency", min=1, help="bpe: how often a pair must occur to be merged; by default 2."
    ),
    processes: int = typer.Option(
        None, "--processes", min=1, max=1024, help="bpe: processes; by default one per CPU for a long text."
    ),
    force: bool = typer.Option(False, "--force", help="Replace an existing tokenizer."),
    json: bool = JSON_OPTION,
) -> None:  # fmt: skip
    """Train a tokenizer on a text.

    A folder gets tokenizer.json and tokenizer_config.json, which `tokenizers` and `transformers` open, too. Train a
    model with it: glassgpt train TEXT tokenizer=OUT.
    """
    from glassgpt.data.sources.source import read_text
    from glassgpt.tokenizer import specs

    parsed = specs.parse(spec)
    if not parsed.trained:
        raise ConfigError(f"{spec!r} cannot be trained; write bpe:N, word:N, word or char (for example bpe:4096)")
    options = {"pattern": pattern, "special": special, "min_frequency": min_frequency, "processes": processes}
    settings: dict[str, Any] = {name: value for name, value in options.items() if value}
    if settings and parsed.kind != "bpe":
        names = " and ".join(f"--{name.replace('_', '-')}" for name in settings)
        raise ConfigError(f"{names}: only for bpe:N, and the tokenizer is {spec}; leave it out")
    content = read_text(text).content
    files = _output_files(out, parsed.kind, force)
    start = time.monotonic()
    tokenizer = _train(parsed, content, settings)
    seconds = time.monotonic() - start
    _write(tokenizer, out, files)
    result = tokenizer_comparison.summarize_training(tokenizer, parsed, content)
    result |= {"seconds": seconds, "files": [str(file) for file in files]}
    if json:
        print_json(result)
    else:
        token_tables.print_trained(result, text, out, settings)


def _output_files(out: Path, kind: str, force: bool) -> list[Path]:
    """Return the files to write, after checking, before a long training, that they can be written."""
    if re.fullmatch(r"gpt2|(char|word|bpe)(:.*)?", str(out)):
        raise ConfigError(f"--out {out}: tokenizer={out} has another meaning; choose another name")
    single = out.suffix in (".json", ".tiktoken")
    if out.suffix in (".model", ".gguf", ".txt"):
        raise ConfigError(f"--out {out}: name a folder, or a file that ends in .json or .tiktoken")
    if out.suffix == ".tiktoken" and kind != "bpe":
        raise ConfigError(f"--out {out}: a .tiktoken file holds byte-level BPE, not {kind}; write a .json file")
    check_out(out, folder=not single)
    folder = out.parent if single else out
    if (folder / "config.json").exists() and (not single or out.name == "tokenizer.json"):
        raise ConfigError(f"{folder} holds a model, which needs its own tokenizer; choose another name")
    files = [out] if single else [out / "tokenizer.json", out / "tokenizer_config.json"]
    if out.suffix == ".tiktoken":
        files.append(out.with_name(f"{out.name}.json"))
    existing = next((file for file in files if file.exists()), None)
    if existing and not force:
        raise ConfigError(f"{existing} exists; choose another name, or replace it with --force")
    return files


def _train(spec: "Spec", content: str, settings: dict[str, Any]) -> "Tokenizer":
    from glassgpt.tokenizer import BPETokenizer, specs
    from glassgpt.tokenizer.base import END_OF_TEXT

    if spec.kind != "bpe" or spec.vocab_size is None:
        return specs.make(spec, content)
    if "special" in settings:
        others = [name for name in settings["special"] if name != END_OF_TEXT]
        settings = settings | {"special": [END_OF_TEXT, *others]}
    with ProgressLine() as progress:
        return BPETokenizer.train(content, spec.vocab_size, progress=progress, **settings)


def _write(tokenizer: "Tokenizer", out: Path, files: Sequence[Path]) -> None:
    """Write the files, each completely or not at all."""
    from glassgpt.tokenizer import BPETokenizer, save
    from glassgpt.tokenizer.tiktoken_file import tiktoken_files

    folder = files[0].parent
    folder.mkdir(exist_ok=True)
    with writing(out), tempfile.TemporaryDirectory(prefix=".glassgpt-", dir=folder) as name:
        temporary = Path(name)
        if out.suffix == ".tiktoken":
            assert isinstance(tokenizer, BPETokenizer)
            for path, content in tiktoken_files(tokenizer, temporary / out.name).items():
                path.write_bytes(content)
        else:
            save(tokenizer, temporary, block_size=_NO_LIMIT)
        for file in files:
            written = temporary / file.name
            os.replace(written if written.exists() else temporary / "tokenizer.json", file)


@app.command()
def show(
    name: str = typer.Argument(
        ..., metavar="TOKENIZER", help="gpt2, a tokenizer file or folder, or a run, which carries its tokenizer."
    ),
    text: str | None = typer.Argument(
        None, metavar="TEXT", help="Text to encode; - reads standard input. Without it, the tokenizer is described."
    ),
    merges: str | None = typer.Option(
        None, "--merges", metavar="WORD", help="Replay how this word is merged, step by step."
    ),
    allow_special: bool = typer.Option(
        False, "--allow-special", help="Encode special tokens in the text as those tokens, not as text."
    ),
    pattern: str = typer.Option(None, "--pattern", help=PATTERN_HELP),
    rows: int = typer.Option(200, "--rows", min=0, help="Rows of the table of tokens at most; 0: all."),
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Show the tokens of a text: their boundaries, ids and bytes.

    The text is an argument, or standard input (without its last line end). In a terminal every token has a background;
    elsewhere there is a │ between tokens (one in the text is written \\│). Line ends and other control characters are
    written as in \\n, a backslash as \\\\, and bytes that are only a part of a character as <E4 BD>.

    A word inside a text begins with its space, also for --merges: ' lower' and 'lower' are not the same.
    """
    tokenizer = _open(name, runs, pattern)
    if merges is not None:
        if text is not None or allow_special:
            raise ConfigError("--merges WORD replays one word; leave out TEXT and --allow-special")
        _show_merges(tokenizer, name, merges, json)
    elif (content := _read_text(text)) is not None:
        _show_text(tokenizer, name, content, allow_special, rows, json)
    elif json:
        print_json({"tokenizer": name, **tokens.describe_tokenizer(tokenizer)})
    else:
        token_tables.print_tokenizer(name, tokens.describe_tokenizer(tokenizer))


def _open(name: str, runs: Path, pattern: str | None) -> "Tokenizer":
    """Open a tokenizer: gpt2, a file or folder, or that of a run. ``pattern`` is for a ``.tiktoken`` file."""
    from glassgpt.tokenizer import specs

    spec = specs.parse(name)
    if spec.kind == "file" and not path_exists(spec.path) and not path_exists(runs / name):
        run_names = sorted(path.parent.name for path in runs.glob("*/run.toml"))
        near = difflib.get_close_matches(name, [*run_names, "gpt2"], n=1)
        hint = f"did you mean {near[0]}?" if near else f"runs in {runs}/: {', '.join(run_names) or 'none yet'}"
        raise TokenizerError(f"there is no tokenizer {name[:80]!r}: not gpt2, a file, a folder or a run; {hint}")
    return specs.open_tokenizer(name, pattern, runs)


def _read_text(argument: str | None) -> bytes | None:
    """Return the text to show, from the argument or standard input; None if there is none."""
    if argument == "-" or (argument is None and stdin_is_piped()):
        content = sys.stdin.buffer.read().removesuffix(b"\n")
        if not content and argument is None:
            return None  # other programs may start this one with an empty pipe
    elif argument is None:
        return None
    else:
        content = argument.encode("utf-8", errors="surrogateescape")
        if argument and path_exists(argument):
            say(f"note: {argument!r} is taken as the text itself; to show the file: < {shlex.quote(argument)}")
    if not content:
        raise ConfigError("the text is empty; there is nothing to show")
    return content


def _show_text(tokenizer: "Tokenizer", name: str, content: bytes, allow_special: bool, rows: int, json: bool) -> None:
    ids, text = tokens.encode_bytes(tokenizer, content, allow_special)
    unknown = {} if text is None or allow_special else tokens.unknown_words(tokenizer, text, ids)
    found = tokens.examine_tokens(tokenizer, ids, unknown)
    gives_text_back = b"".join(token.content for token in found) == content or tokenizer.decode(ids) == text
    characters = None if text is None else len(text)
    per_token = len(content) / len(ids) if ids else None
    if json:
        totals = {"characters": characters, "bytes": len(content), "bytes_per_token": per_token}
        values = [token.to_json(position) for position, token in enumerate(found)]
        print_json({"tokenizer": name, "tokens": values, **totals, "gives_text_back": gives_text_back})
        return
    token_tables.print_tokens(found, rows)
    sizes = [pluralize(len(ids), "token"), *([] if characters is None else [pluralize(characters, "character")])]
    ratio = f": {per_token:.2f} bytes per token" if ids else ""
    print_text(f"\n{', '.join(sizes)}, {pluralize(len(content), 'byte')}{ratio}")
    if not gives_text_back:
        print_text("note: these tokens do not give the text back; decoded, they are another text")
    names = [special for special in tokenizer.special_ids() if text and special in text]
    if names and not allow_special:
        print_text(f"note: {', '.join(names)} was taken as text; --allow-special makes it a special token")


def _show_merges(tokenizer: "Tokenizer", name: str, word: str, json: bool) -> None:
    from glassgpt.tokenizer import BPETokenizer

    if not isinstance(tokenizer, BPETokenizer):
        raise ConfigError(f"{name} has no merges to replay: it is {tokenizer.kind}, and only byte-level BPE merges")
    if not word or any("\ud800" <= character <= "\udfff" for character in word):
        raise ConfigError(f"--merges: the word is {'not UTF-8 text' if word else 'empty'}; there is nothing to merge")
    pre_tokens = tokens.merge_steps(tokenizer, word)
    ids = tokenizer.encode(word)
    if json:
        pieces = [pre_token.to_json() for pre_token in pre_tokens]
        print_json({"tokenizer": name, "word": word, "pieces": pieces, "ids": ids})
        return
    token_tables.print_merge_steps(pre_tokens)
    if ids != [i for pre_token in pre_tokens for i in pre_token.ids]:
        encoded = ", ".join(f"{tokens.quoted(tokenizer.token_bytes(i))} {i}" for i in ids)
        print_text(f"\nnote: encoding gives {encoded}, because this tokenizer does not merge some tokens from bytes")


@app.command()
def compare(
    text: str = typer.Argument(..., metavar="TEXT", help=TEXT_HELP),
    tokenizers: list[str] = typer.Argument(
        ..., metavar="TOKENIZER", help="char, word, word:N, bpe:N, gpt2, a tokenizer file or folder, or a run."
    ),
    limit: int = typer.Option(10_000_000, "--bytes", min=1, help="Use at most the first bytes of the text."),
    pattern: str = typer.Option(None, "--pattern", help=PATTERN_HELP),
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Compare tokenizers on one text: bytes per token and speed.

    char, word, word:N and bpe:N are trained on the first 90 % of the text. All are measured on the last 10 %, which
    the trained ones have not seen (a file or a run may have). More bytes per token are fewer tokens for the same text.
    """
    from glassgpt.data.sources.source import read_text
    from glassgpt.tokenizer import specs

    parsed = [specs.parse(name) for name in tokenizers]
    if pattern and not any(name.endswith(".tiktoken") for name in tokenizers):
        raise ConfigError("--pattern is for .tiktoken files, and there is none among these tokenizers")
    existing: dict[str, Tokenizer] = {}
    for spec in parsed:
        if spec.trained:
            specs.make(spec, "a")  # raises for a size that is too small, before anything takes long
        else:
            existing[spec.text] = _open(spec.text, runs, pattern if spec.text.endswith(".tiktoken") else None)
    source = read_text(text)
    split = tokenizer_comparison.split_text(source.content, limit)
    rows = []
    with ProgressLine() as progress:
        for spec in parsed:
            if spec.trained:
                progress(f"training {spec.text}")
            tokenizer = existing.get(spec.text) or specs.make(spec, split.train, progress=progress)
            progress(f"measuring {spec.text}")
            warm_up = split.train[-len(split.test) :]
            rows.append(tokenizer_comparison.measure_tokenizer(spec.text, tokenizer, split.test, warm_up))
    if json:
        sizes = {"train_characters": len(split.train), "measured_characters": len(split.test)}
        sizes |= {"bytes_taken": split.bytes_taken, "bytes_of_text": split.bytes_of_text}
        print_json({"text": source.name, **sizes, "tokenizers": [asdict(row) for row in rows]})
    else:
        trained = [spec.text for spec in parsed if spec.trained]
        token_tables.print_comparison(source.name, split, trained, rows)
