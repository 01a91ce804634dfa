"""What ``glassgpt tokenizer train`` writes, and what it says of it."""

import os
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.cli import comparison
from glassgpt.cli.common import counted
from glassgpt.errors import ConfigError

if TYPE_CHECKING:
    from glassgpt.tokenizer import Tokenizer
    from glassgpt.tokenizer.specs import Spec

#: `model_max_length` of a tokenizer that belongs to no model yet.
_NO_LIMIT = 2**31 - 1
#: Characters of a text, at most, on which a new tokenizer is measured.
_MEASURED = 1 << 21


def targets(out: Path, kind: str, force: bool) -> list[Path]:
    """The files to write. Whether they can be written is found out now, not after a long training.

    Raises:
        ConfigError: if not.
    """
    if re.fullmatch(r"gpt2|(char|word|bpe)(:.*)?", str(out)):
        raise ConfigError(f"--out {out}: tokenizer={out} has another meaning; choose another name")
    single = out.suffix in (".json", ".tiktoken")
    if out.suffix in (".model", ".gguf", ".txt"):
        raise ConfigError(
            f"--out {out}: a tokenizer is written to a folder, or to a file that ends in .json or .tiktoken"
        )
    if out.suffix == ".tiktoken" and kind != "bpe":
        raise ConfigError(f"--out {out}: a .tiktoken file holds byte-level BPE, and {kind} is none; write a .json")
    try:
        if single == out.is_dir() and out.exists():
            raise ConfigError(f"--out {out} is {'a folder' if single else 'a file'}; choose another name")
        home = out.parent if single else out
        if (home / "config.json").exists() and (not single or out.name == "tokenizer.json"):
            raise ConfigError(f"{home} holds a model, which would not fit another tokenizer; choose another name")
        files = [out] if single else [out / "tokenizer.json", out / "tokenizer_config.json"]
        existing = next((file for file in files if file.exists()), None)
        if existing and not force:
            raise ConfigError(f"{existing} is there already; choose another name, or --force replaces it")
        folder = out if out.is_dir() else out.parent
        if not folder.exists():
            raise ConfigError(f"--out {out}: there is no folder {folder}; make it first")
        with tempfile.TemporaryFile(dir=folder):
            return files
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error.strerror}") from None


def write(tokenizer: "Tokenizer", out: Path, targets: Sequence[Path]) -> None:
    """Write the files, each whole or not at all."""
    from glassgpt.tokenizer import BPETokenizer, save
    from glassgpt.tokenizer.tiktoken_file import tiktoken_bytes

    folder = targets[0].parent
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".glassgpt-", dir=folder) as temporary:
        save(tokenizer, Path(temporary), block_size=_NO_LIMIT)
        sources = [Path(temporary) / ("tokenizer.json" if target == out else target.name) for target in targets]
        if out.suffix == ".tiktoken":
            assert isinstance(tokenizer, BPETokenizer)
            sources[0].write_bytes(tiktoken_bytes(tokenizer))
        for source, target in zip(sources, targets, strict=True):
            os.replace(source, target)


def summary(tokenizer: "Tokenizer", asked: "Spec", content: str) -> dict[str, Any]:
    """What was learned, as JSON values."""
    from glassgpt.tokenizer import BPETokenizer

    measured = _beginning(content)
    row = comparison.measure(asked.text, tokenizer, measured)
    if row.error is not None:  # half a word at the cut, which a closed vocabulary does not have
        measured = content
        row = comparison.measure(asked.text, tokenizer, measured)
    cut = "" if measured is content else f"the first {counted(len(measured), 'character')} of "
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "asked_for": asked.vocab_size,
        "merges": len(tokenizer.model.merges) if isinstance(tokenizer, BPETokenizer) else None,
        "special_tokens": tokenizer.special_ids(),
        "bytes_per_token": row.bytes_per_token,
        "unknown": row.unknown,
        "measured_on": f"{cut}the text",
    }


def _beginning(content: str) -> str:
    """As much of a text as a new tokenizer is measured on, cut between words."""
    if len(content) <= _MEASURED:
        return content
    cut = max(content.rfind(space, 0, _MEASURED) for space in " \n")
    return content[: cut if cut > 0 else _MEASURED]


def print_trained(result: Mapping[str, Any], text: str, out: Path, settings: Mapping[str, Any]) -> None:
    """Print the summary.

    Args:
        result: the summary, with ``seconds`` and ``files``.
        text: that was learned from, as it was written.
        out: as it was written.
        settings: of byte-level BPE that were given.
    """
    special = [f"{name} {i}" for name, i in result["special_tokens"].items()]
    made = f"{result['kind']}, {counted(result['vocab_size'], 'token')}"
    if result["merges"] is not None:
        made += f": 256 bytes, {counted(result['merges'], 'merge')}"
    print(made + (f", {', '.join(special)}" if special else ""))
    asked = result["asked_for"]
    if asked is not None and result["vocab_size"] < asked:
        times = counted(settings.get("min_frequency", 2), "time")
        end = "it has no more words" if result["merges"] is None else f"no pair of neighbours occurs {times} any more"
        print(f"fewer than the {asked:,} asked for: the text is used up, {end}")
    size = f"{result['bytes_per_token']:.2f} bytes per token on {result['measured_on']}"
    lost = f", but {result['unknown']:.1%} of its words are unknown and lost" if result["unknown"] else ""
    print(f"{size}{lost}")
    print(f"learned in {result['seconds']:.1f} s; written to {' and '.join(result['files'])}")
    if out.suffix == ".tiktoken":
        print("a .tiktoken file holds neither special tokens nor split pattern: whoever reads it has to know them")
    hint = f" --pattern {settings['pattern']}" if out.suffix == ".tiktoken" and "pattern" in settings else ""
    name = shlex.quote(str(out))
    print(f"\nnext: glassgpt tokenizer show {name} 'Any text'{hint}")
    if not hint:  # a recipe has no place for a split pattern
        print(f"      glassgpt train {shlex.quote(text)} tokenizer={name}")
