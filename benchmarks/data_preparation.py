"""Prepare a text for training in glassgpt and by nanoGPT's prepare.py: whole processes, in turn, on the same text.

    python benchmarks/data_preparation.py --nanogpt CHECKOUT
    python benchmarks/data_preparation.py --nanogpt CHECKOUT --text FILE --copies 20 --rounds 3 --json FILE
    python benchmarks/data_preparation.py --smoke

The text is FILE (by default the plays of Shakespeare), repeated --copies times. nanoGPT's two scripts for a text run
unchanged, in a copy of their folder with the text as input.txt: data/shakespeare_char (characters) and data/shakespeare
(GPT-2's tokens, by tiktoken, which gets the vocabulary from glassgpt, so nothing is downloaded). `glassgpt data
prepare` runs with one process and with one per CPU. All split at 90 %, and the training ids have to be equal.

Seconds are wall time of the whole process. Memory is the sum of the peaks (VmHWM on Linux) of the process and its child
processes; the largest of them is given, too.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glassgpt import assets, data
from glassgpt.bench.memory import run_and_measure
from glassgpt.data.corpus.manifest import open_stream

#: glassgpt's name of each tokenizer, and nanoGPT's folder.
TOKENIZERS = {"char": "shakespeare_char", "gpt2": "shakespeare"}
TIKTOKEN_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"


def measure(command: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run a command, and return its wall time and memory."""
    result = run_and_measure(command, environment)
    if result.exit_code:
        sys.exit(f"{' '.join(command)} failed:\n{result.output}{result.error}")
    return {"seconds": result.seconds, "memory": sum(result.peaks), "largest": max(result.peaks, default=0)}


def nanogpt(checkout: Path, text: Path, tokenizer: str, folder: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Run nanoGPT's prepare.py; return the figures and the training ids."""
    shutil.copytree(checkout / "data" / TOKENIZERS[tokenizer], folder)
    (folder / "input.txt").unlink(missing_ok=True)
    os.link(text, folder / "input.txt")
    cache = folder / "vocabulary"
    cache.mkdir()
    for name, path in assets.paths("gpt2-bpe").items():
        shutil.copy(path, cache / hashlib.sha1(f"{TIKTOKEN_URL}{name}".encode()).hexdigest())
    figures = measure([sys.executable, str(folder / "prepare.py")], os.environ | {"TIKTOKEN_CACHE_DIR": str(cache)})
    return figures, np.fromfile(folder / "train.bin", dtype=np.uint16)


def glassgpt(text: Path, tokenizer: str, folder: Path, processes: int) -> tuple[dict[str, Any], np.ndarray]:
    """Run `glassgpt data prepare`; return the figures and the training ids."""
    command = [sys.executable, "-m", "glassgpt", "data", "prepare", str(text), f"tokenizer={tokenizer}"]
    command += ["max_val_tokens=1000000000", "-o", str(folder), "--processes", str(processes)]
    return measure(command), np.asarray(open_stream(folder).train)


def compare(options: argparse.Namespace, text: Path, scratch: Path) -> list[dict[str, Any]]:
    """Run all programs in turn, and check that their training ids are equal."""
    programs = ["nanoGPT"] if options.nanogpt else []
    programs += ["glassgpt, 1 process", "glassgpt"]
    rows, size = [], text.stat().st_size
    for number in range(options.rounds):
        for tokenizer in TOKENIZERS:
            ids = []
            for program in programs:
                folder = scratch / f"{number}-{tokenizer}-{len(ids)}"
                if program == "nanoGPT":
                    figures, train = nanogpt(options.nanogpt, text, tokenizer, folder)
                else:
                    figures, train = glassgpt(text, tokenizer, folder, 1 if "1" in program else os.cpu_count() or 1)
                ids.append(train)
                rows.append({"round": number, "tokenizer": tokenizer, "program": program, "bytes": size, **figures})
                print(json.dumps(rows[-1]), file=sys.stderr)
                shutil.rmtree(folder)
            # A few tokens at the 90 % cut may differ: one program rounds, the other truncates.
            common = min(map(len, ids)) - 8
            assert all(np.array_equal(train[:common], ids[0][:common]) for train in ids), "equal training ids"
            assert max(map(len, ids)) - common < 24, "the same split"
    return rows


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the medians, and the speed relative to the first program."""
    size = rows[0]["bytes"]
    print(f"{size / 1e6:.3g} MB, medians of {rows[-1]['round'] + 1} rounds")
    print(f"{'tokenizer':10} {'program':22} {'seconds':>8} {'MB/s':>7} {'memory MB':>10} {'largest':>8} {'ratio':>6}")
    for tokenizer in TOKENIZERS:
        base = 0.0
        for program in dict.fromkeys(row["program"] for row in rows):
            mine = [row for row in rows if (row["tokenizer"], row["program"]) == (tokenizer, program)]
            keys = ("seconds", "memory", "largest")
            seconds, memory, largest = (statistics.median(row[key] for row in mine) for key in keys)
            base = base or seconds
            print(
                f"{tokenizer:10} {program:22} {seconds:8.2f} {size / 1e6 / seconds:7.1f} {memory / 1e6:10.0f} "
                f"{largest / 1e6:8.0f} {base / seconds:5.2f}x"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, metavar="CHECKOUT", help="a checkout of nanoGPT; by default left out")
    parser.add_argument("--smoke", action="store_true", help="check in seconds that this works: once, on a tiny text")
    parser.add_argument("--text", default="shakespeare", help="a file, or a corpus by name")
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.smoke:
        options.text, options.copies, options.rounds = __file__, 1, 1
    if not options.nanogpt:
        print("left out: nanoGPT: give --nanogpt CHECKOUT")
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch) / "text.txt"
        text.write_text(data.read_text(options.text).content * options.copies, encoding="utf-8", newline="")
        rows = compare(options, text, Path(scratch))
        show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
