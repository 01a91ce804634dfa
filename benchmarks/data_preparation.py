"""Preparing a text for training beside nanoGPT's prepare.py: whole processes, in turn, on the same text.

    python benchmarks/data_preparation.py NANOGPT_CHECKOUT
    python benchmarks/data_preparation.py NANOGPT_CHECKOUT --text FILE --copies 20 --rounds 3 --json FILE

The text is FILE (the plays of Shakespeare by default), so many times. nanoGPT's two scripts for a text are run as they
are, in a copy of their folder with the text as input.txt: data/shakespeare_char (characters) and data/shakespeare
(GPT-2's tokens, by tiktoken, whose vocabulary is given to it from glassgpt's own, so nothing is downloaded). Beside
them `glassgpt data prepare`, with one process and with one per CPU. All split at 90 %, and the training ids have to be
the same.

Seconds are wall time of the whole process. Memory is the sum of the peaks (VmHWM on Linux) of the process and of those
that it starts, and the largest of them.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from glassgpt import assets, data
from glassgpt.bench.memory import Descendants
from glassgpt.data.corpus.manifest import open_stream

#: nanoGPT's folder, and glassgpt's name, of each tokenizer.
TOKENIZERS = {"char": "shakespeare_char", "gpt2": "shakespeare"}
TIKTOKEN_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"


def measured(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a command to its end, looking at the memory of its processes twenty times a second."""
    watched = Descendants(os.getpid())
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as process:
        while process.poll() is None:
            watched.look()
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        assert process.stdout
        said = process.stdout.read().decode()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{said}")
    peaks = list(watched._peaks.values())
    return {"seconds": seconds, "memory": sum(peaks), "largest": max(peaks)}


def nanogpt(checkout: Path, text: Path, tokenizer: str, folder: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Its script, and the training ids that it wrote."""
    shutil.copytree(checkout / "data" / TOKENIZERS[tokenizer], folder)
    (folder / "input.txt").unlink(missing_ok=True)
    os.link(text, folder / "input.txt")
    cache = folder / "vocabulary"
    cache.mkdir()
    for name, path in assets.paths("gpt2-bpe").items():
        shutil.copy(path, cache / hashlib.sha1(f"{TIKTOKEN_URL}{name}".encode()).hexdigest())
    environment = os.environ | {"TIKTOKEN_CACHE_DIR": str(cache)}
    found = measured([sys.executable, str(folder / "prepare.py")], environment)
    return found, np.fromfile(folder / "train.bin", dtype=np.uint16)


def glassgpt(text: Path, tokenizer: str, folder: Path, processes: int) -> tuple[dict[str, Any], np.ndarray]:
    """`data prepare`, and the training ids that it wrote."""
    command = [sys.executable, "-m", "glassgpt", "data", "prepare", str(text), f"tokenizer={tokenizer}"]
    command += ["max_val_tokens=1000000000", "-o", str(folder), "--processes", str(processes)]
    found = measured(command, dict(os.environ))
    return found, np.asarray(open_stream(folder).train)


def main() -> None:
    """Measure in turn, print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="of nanoGPT")
    parser.add_argument("--text", default="shakespeare", help="a file, or a corpus by name")
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch) / "text.txt"
        text.write_text(data.read_text(options.text).content * options.copies, encoding="utf-8", newline="")
        size = text.stat().st_size
        for number in range(options.rounds):
            for tokenizer in TOKENIZERS:
                ids = {}
                for name in ("nanoGPT", "glassgpt, 1 process", "glassgpt"):
                    folder = Path(scratch) / f"{number}-{tokenizer}-{len(ids)}"
                    if name == "nanoGPT":
                        found, ids[name] = nanogpt(options.checkout, text, tokenizer, folder)
                    else:
                        processes = 1 if "1" in name else os.cpu_count() or 1
                        found, ids[name] = glassgpt(text, tokenizer, folder, processes)
                    results.append({"round": number, "tokenizer": tokenizer, "program": name, "bytes": size, **found})
                    shutil.rmtree(folder)
                    print(json.dumps(results[-1]), file=sys.stderr)
                # tokens on either side of the cut at 90 % may differ: one program rounds, the other cuts off
                ends = min(map(len, ids.values())) - 8
                same = all(np.array_equal(one[:ends], ids["nanoGPT"][:ends]) for one in ids.values())
                assert same and max(map(len, ids.values())) - ends < 24, "the same training ids"
    print(f"{size / 1e6:.1f} MB, medians of {options.rounds} rounds")
    print(f"{'tokenizer':10} {'program':22} {'seconds':>8} {'MB/s':>7} {'memory MB':>10} {'largest':>8} {'ratio':>6}")
    for tokenizer in TOKENIZERS:
        base = 0.0
        for name in ("nanoGPT", "glassgpt, 1 process", "glassgpt"):
            rows = [row for row in results if (row["tokenizer"], row["program"]) == (tokenizer, name)]
            seconds, memory, largest = (
                statistics.median(row[key] for row in rows) for key in ("seconds", "memory", "largest")
            )
            base = base or seconds
            print(
                f"{tokenizer:10} {name:22} {seconds:8.2f} {size / 1e6 / seconds:7.1f} {memory / 1e6:10.0f} "
                f"{largest / 1e6:8.0f} {base / seconds:5.2f}x"
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
