"""Training byte-level BPE beside `tokenizers` and minbpe: whole processes, in turn, on the same text.

    python benchmarks/tokenizer_training.py
    python benchmarks/tokenizer_training.py --text FILE --merges 8192 --rounds 3 --json FILE
    python benchmarks/tokenizer_training.py --minbpe CHECKOUT

Without --text, the text is made of the .py, .md, .rst and .txt files of the installed Python packages, in the order of
their paths, up to --megabytes (of 10^6 bytes). Every measurement is a process that reads the text from a file, trains,
and writes its merges; a round begins one place later than the last, and what counts are the medians.

glassgpt      BPETokenizer.train
tokenizers    its BpeTrainer, by train_from_iterator. It gets the text in parts of 8,192 characters, cut where no piece
              crosses (with glassgpt's code for that, in the time and the memory): so it uses all CPUs and sees the same
              pieces, and its merges have to be the same. For GPT-2's pattern it uses its built-in splitter. A file
              or lines (which change the pieces), the whole text at once, or the pattern as a Regex were all slower.
minbpe        its RegexTokenizer, which counts all pairs of the whole text again for every merge; so it gets the first
              --minbpe-megabytes of the text and makes --minbpe-merges, and glassgpt does the same work beside it. One
              round. Of equally frequent pairs it takes the one that it met first, glassgpt the one of the smaller ids.

Seconds are wall time of the whole process, and of the training in it. Peak memory is that of the process plus those of
all processes that it starts, each at its own peak (VmHWM on Linux); so it is no less than all took at one time.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from glassgpt.bench.memory import peak_resident
from glassgpt.bench.tokenizer import run
from glassgpt.tokenizer.pretokenize import PATTERNS

ENDINGS = (".py", ".md", ".rst", ".txt")


# --- the programs: each returns the merges, as published files write them, and the seconds of the training ------------


def train_glassgpt(text: str, options: argparse.Namespace) -> tuple[list[str], float]:
    from glassgpt.tokenizer import BPETokenizer

    start = time.perf_counter()
    tokenizer = BPETokenizer.train(
        text, 256 + options.merges, pattern=options.pattern, special=(), processes=options.processes or None
    )
    seconds = time.perf_counter() - start
    return [" ".join(merge) for merge in tokenizer.to_json()["model"]["merges"]], seconds


def train_tokenizers(text: str, options: argparse.Namespace) -> tuple[list[str], float]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from glassgpt.bench.tokenizer_ways import TRAINING_PART, byte_level
    from glassgpt.tokenizer.pretokenize import PreTokenizer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level(options.pattern)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + options.merges, min_frequency=2, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    start = time.perf_counter()
    tokenizer.train_from_iterator(PreTokenizer([PATTERNS[options.pattern]]).chunks(text, TRAINING_PART), trainer)
    seconds = time.perf_counter() - start
    return [" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]], seconds


def train_minbpe(text: str, options: argparse.Namespace) -> tuple[list[str], float]:
    sys.path.insert(0, str(options.minbpe))
    from minbpe import RegexTokenizer

    from glassgpt.tokenizer.bpe.bytelevel import bytes_to_unicode

    tokenizer = RegexTokenizer(PATTERNS[options.pattern])
    start = time.perf_counter()
    tokenizer.train(text, 256 + options.merges)
    seconds = time.perf_counter() - start
    token = tokenizer.vocab
    merges = [f"{bytes_to_unicode(token[left])} {bytes_to_unicode(token[right])}" for left, right in tokenizer.merges]
    return merges, seconds


TRAINERS = {"glassgpt": train_glassgpt, "tokenizers": train_tokenizers, "minbpe": train_minbpe}


def work(options: argparse.Namespace) -> None:
    """One measurement, in a process of its own."""
    text = options.text.read_bytes().decode("utf-8")
    merges, seconds = TRAINERS[options.worker](text, options)
    peak = peak_resident()
    options.result.write_text(json.dumps(merges), encoding="utf-8")
    print(json.dumps({"training_seconds": seconds, "own_memory": peak}))


# --- the text --------------------------------------------------------------------------------------------------------


def make_text(megabytes: float) -> str:
    """Source code and documentation of the installed packages, in the order of their paths."""
    root, size = Path(sysconfig.get_path("purelib")), int(megabytes * 1e6)
    files = [path for path in root.rglob("*") if path.suffix in ENDINGS and path.is_file()]
    parts, found = [], 0
    for path in sorted(files, key=lambda path: path.relative_to(root).as_posix()):
        content = path.read_bytes()
        try:
            parts.append(content.decode("utf-8"))
        except UnicodeDecodeError:
            continue
        found += len(content)
        if found >= size:
            return first("".join(parts), size)
    sys.exit(
        f"the installed packages have {found / 1e6:.1f} MB of text; give --text FILE, or --megabytes {found / 1e6:.0f}"
    )


def first(text: str, size: int) -> str:
    """The beginning of a text, of so many bytes or a little less."""
    return text.encode("utf-8")[:size].decode("utf-8", errors="ignore")


# --- all of them -----------------------------------------------------------------------------------------------------


def measure(program: str, text: Path, merges: int, options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Run one program as a process. Returns the figures, and the merges."""
    result = text.with_name("merges.json")
    command = [sys.executable, __file__, "--worker", program, "--text", str(text), "--merges", str(merges)]
    command += ["--pattern", options.pattern, "--processes", str(options.processes), "--result", str(result)]
    command += ["--minbpe", str(options.minbpe)] if options.minbpe else []
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "true"}
    if options.processes:
        environment["RAYON_NUM_THREADS"] = str(options.processes)
    start = time.perf_counter()
    ended = run(command, environment)
    seconds = time.perf_counter() - start
    if ended.code:
        sys.exit(f"{program} failed: {ended.said}")
    figures = json.loads(ended.printed.splitlines()[-1])
    own = figures["own_memory"]
    memory = None if own is None or ended.others is None else own + ended.others
    found = {"seconds": seconds, **figures, "memory": memory}
    return found, json.loads(result.read_text(encoding="utf-8"))


def compare(programs: list[str], text: str, merges: int, rounds: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run the programs in turn. Returns medians, every figure, and how the merges of the second differ."""
    every: dict[str, list[dict[str, Any]]] = {program: [] for program in programs}
    learned: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="glassgpt-bench-") as folder:
        path = Path(folder) / "text.txt"
        path.write_bytes(text.encode("utf-8"))
        for number in range(rounds):
            at = number % len(programs)
            for program in programs[at:] + programs[:at]:
                figures, learned[program] = measure(program, path, merges, options)
                every[program].append(figures)
                print(f"round {number + 1} {program:<11} {figures['seconds']:>9.2f} s", file=sys.stderr, flush=True)
    median = {
        program: {
            key: None if figures[0][key] is None else statistics.median(figure[key] for figure in figures)
            for key in figures[0]
        }
        for program, figures in every.items()
    }
    ours, theirs = (learned[program] for program in programs)
    same = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(ours))
    return {
        "megabytes": len(text.encode("utf-8")) / 1e6,
        "sha256": hashlib.sha256(text.encode("utf-8")).hexdigest(),
        "merges": {program: len(found) for program, found in learned.items()},
        "identical": ours == theirs,
        "first_identical": same,
        "shared": len({*ours} & {*theirs}),
        "median": median,
        "rounds": every,
    }


def show(found: dict[str, Any]) -> None:
    programs, median = list(found["median"]), found["median"]
    rounds = len(found["rounds"][programs[0]])
    print(
        f"\n{found['megabytes']:,.1f} MB of UTF-8 (SHA-256 {found['sha256'][:16]}...), {os.cpu_count()} CPUs, "
        + (f"medians of {rounds} rounds" if rounds > 1 else "one round")
    )
    print(f"{'':<12} {'whole process':>15} {'training':>12} {'peak memory':>13}")
    for program, figures in median.items():
        memory = "-" if figures["memory"] is None else f"{figures['memory'] / 1e6:,.0f} MB"
        print(f"{program:<12} {figures['seconds']:>13,.2f} s {figures['training_seconds']:>10,.2f} s {memory:>13}")
    ours, theirs = (median[program] for program in programs)
    whole, training = (ours[key] / theirs[key] for key in ("seconds", "training_seconds"))
    print(f"glassgpt / {programs[1]}: {whole:.4g} times the time of the whole process, {training:.4g} of the training")
    counts = found["merges"]
    if found["identical"]:
        print(f"merges: all {counts['glassgpt']:,} identical")
    else:
        print(
            f"merges: different from merge {found['first_identical']:,} on; {found['shared']:,} of "
            f"{counts['glassgpt']:,} are among the {counts[programs[1]]:,} of {programs[1]}"
        )


def parse() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text; without, it is made")
    parser.add_argument("--megabytes", type=float, default=100, help="of the text to make")
    parser.add_argument("--merges", type=int, default=8192)
    parser.add_argument("--pattern", choices=PATTERNS, default="gpt2")
    parser.add_argument("--processes", type=int, default=0, help="or threads; 0: as many as each takes by itself")
    parser.add_argument("--rounds", type=int, default=3, help="times to run both in turn; medians are reported")
    parser.add_argument("--minbpe", type=Path, metavar="CHECKOUT", help="a checkout of minbpe; without, it is left out")
    parser.add_argument("--minbpe-megabytes", type=float, default=1, help="of the same text, for minbpe")
    parser.add_argument("--minbpe-merges", type=int, default=256, help="for minbpe")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to write every figure to")
    parser.add_argument("--worker", choices=TRAINERS, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(), parser


def main() -> None:
    options, parser = parse()
    if options.worker:
        work(options)
        return
    if options.minbpe and not (options.minbpe / "minbpe" / "regex.py").exists():
        parser.error(f"{options.minbpe} is no checkout of minbpe: it has no minbpe/regex.py")
    if min(options.merges, options.minbpe_merges, options.rounds) < 1 or options.processes < 0:
        parser.error("--merges, --minbpe-merges and --rounds are at least 1, --processes at least 0")
    text = options.text.read_bytes().decode("utf-8") if options.text else make_text(options.megabytes)
    results = [compare(["glassgpt", "tokenizers"], text, options.merges, options.rounds, options)]
    if options.minbpe:
        little = first(text, int(options.minbpe_megabytes * 1e6))
        results.append(compare(["glassgpt", "minbpe"], little, options.minbpe_merges, 1, options))
    for found in results:
        show(found)
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items() if value and key not in ("minbpe", "json")}
        content = {"settings": settings, "cpus": os.cpu_count(), "results": results}
        options.json.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
