"""Train and encode with byte-level BPE in glassgpt, `tokenizers`, tiktoken and minbpe, on the same text.

    python benchmarks/tokenizer_speed.py training [--text FILE] [--merges 8192] [--rounds 3] [--minbpe CHECKOUT]
    python benchmarks/tokenizer_speed.py encoding --text shakespeare
    python benchmarks/tokenizer_speed.py --smoke

Without --text, the text is made of the .py, .md, .rst and .txt files of the installed Python packages, in the order of
their paths, up to --megabytes (of 10^6 bytes). Every measurement is a process that reads the text from a file and
writes its merges or ids. The methods run in turn, and each round starts one method later than the last. The figures
are medians, and the merges and ids are compared. A library that is not installed is left out.

tokenizers    trains from parts of 8,192 characters and encodes parts of 65,536, cut by glassgpt's code where no
              pre-token crosses: with one long text it would use one thread. For GPT-2's pattern it uses its built-in
              splitter. Training from a file or from lines (which change the pre-tokens), from the whole text, or with
              the pattern as a Regex was slower.
minbpe        its RegexTokenizer, which counts all pairs of the whole text again for every merge. So it gets the first
              --minbpe-megabytes of the text and makes --minbpe-merges, compared with glassgpt on the same work, in one
              round. Among equally frequent pairs it takes the one that it met first, glassgpt the one with the smaller
              ids.

Seconds are wall time: of the whole process, and of the training or encoding in it. Peak memory is the sum over the
process and its child processes, each at its own peak (VmHWM on Linux).
"""

import argparse
import hashlib
import importlib.util
import json
import os
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from glassgpt.bench.memory import run_and_measure
from glassgpt.tokenizer import BPETokenizer, pretrained
from glassgpt.tokenizer.base import END_OF_TEXT
from glassgpt.tokenizer.pretokenize import PATTERNS, PreTokenizer, usable_cpus

ENDINGS = (".py", ".md", ".rst", ".txt")
#: Characters in each part of the text that `tokenizers` and tiktoken's threads get.
TRAINING_PART, ENCODING_PART = 1 << 13, 1 << 16
Outcome = tuple[float, Any]  # seconds of the work, and its merges or ids


@dataclass(frozen=True)
class Job:
    """The arguments of a measuring process. ``folder`` holds text.txt, and tokenizer.json for encoding."""

    method: str
    folder: str
    merges: int
    pattern: str
    processes: int  # or threads; 0: the default of each library
    minbpe: str

    def parts(self, text: str, size: int) -> Iterator[str]:
        """Cut the text into parts such that the pre-tokens stay the same."""
        return PreTokenizer([PATTERNS[self.pattern]]).chunks(text, size)

    def tokenizer(self) -> BPETokenizer:
        """Load the trained tokenizer."""
        return pretrained.load(Path(self.folder) / "tokenizer.json")


def timed(work: Callable[[], Any]) -> Outcome:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


# --- training: each returns the seconds, and the merges as tokenizer.json writes them --------------------------------


def merges_of(content: Mapping[str, Any]) -> list[str]:
    return [f"{left} {right}" for left, right in content["model"]["merges"]]


def train_glassgpt(text: str, job: Job) -> Outcome:
    options = {"pattern": job.pattern, "special": (), "processes": job.processes or None}
    seconds, tokenizer = timed(lambda: BPETokenizer.train(text, 256 + job.merges, **options))
    return seconds, merges_of(tokenizer.to_json())


def byte_level(pattern: str) -> Any:
    """The pre-tokenizer of `tokenizers` for a pattern; for GPT-2's the built-in one, which is the fastest."""
    from tokenizers import Regex, pre_tokenizers

    if pattern == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train_tokenizers(text: str, job: Job) -> Outcome:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level(job.pattern)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + job.merges, min_frequency=2, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    seconds, _ = timed(lambda: tokenizer.train_from_iterator(job.parts(text, TRAINING_PART), trainer))
    return seconds, merges_of(json.loads(tokenizer.to_str()))


def train_minbpe(text: str, job: Job) -> Outcome:
    sys.path.insert(0, job.minbpe)
    from minbpe import RegexTokenizer

    from glassgpt.tokenizer.bpe.bytelevel import written

    tokenizer = RegexTokenizer(PATTERNS[job.pattern])
    seconds, _ = timed(lambda: tokenizer.train(text, 256 + job.merges))
    token = tokenizer.vocab
    return seconds, [f"{written(token[left])} {written(token[right])}" for left, right in tokenizer.merges]


# --- encoding: each returns the seconds, and the ids -----------------------------------------------------------------


def encode_python(text: str, job: Job) -> Outcome:
    return timed(partial(job.tokenizer().encode, text, engine="python"))


def encode_python_again(text: str, job: Job) -> Outcome:
    tokenizer = job.tokenizer()
    tokenizer.encode(text, engine="python")  # fills the cache
    return timed(partial(tokenizer.encode, text, engine="python"))


def encode_engine(text: str, job: Job) -> Outcome:
    tokenizer = job.tokenizer()
    tokenizer.encode("text", engine="tiktoken")  # builds the engine
    return timed(partial(tokenizer.encode_array, text, engine="tiktoken"))


def tiktoken_encoding(job: Job) -> Any:
    import tiktoken

    ranks = dict(job.tokenizer().model.vocab)
    special = {END_OF_TEXT: len(ranks)}  # without a special token, encode_to_numpy takes twice the time
    return tiktoken.Encoding("bench", pat_str=PATTERNS[job.pattern], mergeable_ranks=ranks, special_tokens=special)


def encode_tiktoken(text: str, job: Job) -> Outcome:
    return timed(partial(tiktoken_encoding(job).encode_ordinary, text))


def encode_tiktoken_numpy(text: str, job: Job) -> Outcome:
    return timed(partial(tiktoken_encoding(job).encode_to_numpy, text, disallowed_special=()))


def encode_tiktoken_batch(text: str, job: Job) -> Outcome:
    encoding, parts = tiktoken_encoding(job), list(job.parts(text, ENCODING_PART))
    threads = job.processes or usable_cpus()
    seconds, ids = timed(lambda: encoding.encode_ordinary_batch(parts, num_threads=threads))
    return seconds, joined(ids)


def tokenizers_tokenizer(job: Job) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{job.folder}/tokenizer.json")
    tokenizer.pre_tokenizer = byte_level(job.pattern)
    return tokenizer


def encode_tokenizers(text: str, job: Job) -> Outcome:
    tokenizer = tokenizers_tokenizer(job)
    seconds, ids = timed(lambda: [tokenizer.encode(part).ids for part in job.parts(text, ENCODING_PART)])
    return seconds, joined(ids)


def encode_tokenizers_batch(text: str, job: Job) -> Outcome:
    tokenizer, parts = tokenizers_tokenizer(job), list(job.parts(text, ENCODING_PART))
    seconds, ids = timed(lambda: [encoding.ids for encoding in tokenizer.encode_batch_fast(parts)])
    return seconds, joined(ids)


def joined(ids: Iterable[Sequence[int]]) -> np.ndarray:
    return np.concatenate([np.array(part, dtype=np.int64) for part in ids])


Methods = dict[str, tuple[Callable[[str, Job], Outcome], str]]  # name -> function, and the library that it needs
TRAINING: Methods = {
    "glassgpt": (train_glassgpt, ""),
    "tokenizers": (train_tokenizers, "tokenizers"),
    "minbpe": (train_minbpe, ""),
}
ENCODING: Methods = {
    "glassgpt, Python, empty cache": (encode_python, ""),
    "glassgpt, Python, filled cache": (encode_python_again, ""),
    "glassgpt, tiktoken's engine, encode_array": (encode_engine, "tiktoken"),
    "tiktoken, encode_ordinary": (encode_tiktoken, "tiktoken"),
    "tiktoken, encode_to_numpy": (encode_tiktoken_numpy, "tiktoken"),
    "tiktoken, encode_ordinary_batch": (encode_tiktoken_batch, "tiktoken"),
    "tokenizers, encode": (encode_tokenizers, "tokenizers"),
    "tokenizers, encode_batch_fast": (encode_tokenizers_batch, "tokenizers"),
}


def worker(job: Job) -> None:
    """Do a job in this process: write result.npy, and print the seconds."""
    text = (Path(job.folder) / "text.txt").read_bytes().decode("utf-8")
    seconds, result = (TRAINING | ENCODING)[job.method][0](text, job)
    np.save(Path(job.folder) / "result.npy", np.array(result))
    print(seconds)


# --- comparing -------------------------------------------------------------------------------------------------------


def make_text(megabytes: float) -> str:
    """Join source code and documentation of the installed packages, in the order of their paths."""
    root, size = Path(sysconfig.get_path("purelib")), int(megabytes * 1e6)
    files = [path for path in root.rglob("*") if path.suffix in ENDINGS and path.is_file()]
    parts, total = [], 0
    for path in sorted(files, key=lambda path: path.relative_to(root).as_posix()):
        content = path.read_bytes()
        try:
            parts.append(content.decode("utf-8"))
        except UnicodeDecodeError:
            continue
        total += len(content)
        if total >= size:
            return beginning("".join(parts), size)
    sys.exit(f"the installed packages have {total / 1e6:.1f} MB of text; give --text, or less --megabytes")


def beginning(text: str, size: int) -> str:
    """The first ``size`` bytes of a text, or a little less."""
    return text.encode("utf-8")[:size].decode("utf-8", errors="ignore")


def difference(expected: np.ndarray, result: np.ndarray) -> str:
    """Describe how merges ``[merges]`` or ids ``[tokens]`` differ from those expected; empty if they are equal."""
    common = min(len(expected), len(result))
    positions = np.flatnonzero(expected[:common] != result[:common])
    if len(positions):
        shared = np.isin(result, expected).sum()
        first = int(positions[0])
        got, wanted = result[first].item(), expected[first].item()
        return f"number {first:,} is {got!r}, not {wanted!r}; {shared:,} of {len(result):,} occur in both"
    return "" if len(expected) == len(result) else f"{len(result):,}, not {len(expected):,}"


def compare(methods: Sequence[str], text: str, merges: int, rounds: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run the methods in turn; return every figure, the medians, and how each result differs from the first's."""
    figures: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    results: dict[str, np.ndarray] = {}
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "true"}
    if options.processes:
        environment["RAYON_NUM_THREADS"] = str(options.processes)  # the threads of `tokenizers`
    with tempfile.TemporaryDirectory(prefix="glassgpt-bench-") as folder:
        (Path(folder) / "text.txt").write_bytes(text.encode("utf-8"))
        if methods[0] in ENCODING:
            tokenizer = BPETokenizer.train(text, 256 + merges, pattern=options.pattern, special=())
            (Path(folder) / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()), encoding="utf-8")
        for number in range(rounds):
            start = number % len(methods)
            for method in (*methods[start:], *methods[:start]):
                job = Job(method, folder, merges, options.pattern, options.processes, str(options.minbpe or ""))
                command = [sys.executable, __file__, "--worker", json.dumps(asdict(job))]
                ended = run_and_measure(command, environment)
                if ended.exit_code:
                    sys.exit(f"{method} failed:\n{ended.error}")
                work = float(ended.output.splitlines()[-1])
                figures[method].append({"process": ended.seconds, "work": work, "memory": ended.memory})
                results[method] = np.load(Path(folder) / "result.npy")
                print(f"round {number + 1} {method:<42} {work:>9.2f} s", file=sys.stderr, flush=True)
    median = {
        method: {key: statistics.median(row[key] or 0 for row in rows) for key in rows[0]}
        for method, rows in figures.items()
    }
    differences = {method: difference(results[methods[0]], result) for method, result in results.items()}
    size, digest = len(text.encode("utf-8")), hashlib.sha256(text.encode("utf-8")).hexdigest()
    return {
        "bytes": size, "sha256": digest, "merges": merges, "length": len(results[methods[0]]), "rounds": figures,
        "median": median, "differences": differences,
    }  # fmt: skip


def show(found: dict[str, Any]) -> None:
    rounds, noun = len(next(iter(found["rounds"].values()))), "merges" if "glassgpt" in found["median"] else "ids"
    print(
        f"\n{found['bytes'] / 1e6:,.2f} MB of UTF-8 (SHA-256 {found['sha256'][:16]}...), {found['length']:,} {noun}, "
        f"{os.cpu_count()} CPUs, medians of {rounds}"
    )
    print(f"{'':<42} {'process':>10} {'work':>10} {'MB/s':>8} {'ratio':>7} {'peak memory':>12}  {noun}")
    base = next(iter(found["median"].values()))["work"]
    for method, row in found["median"].items():
        memory = f"{row['memory'] / 1e6:,.0f} MB" if row["memory"] else "-"
        speed, equal = found["bytes"] / 1e6 / row["work"], "DIFFERENT" if found["differences"][method] else "equal"
        times = f"{row['process']:>8,.2f} s {row['work']:>8,.2f} s {speed:>8,.2f} {base / row['work']:>7.3g}"
        print(f"{method:<42} {times} {memory:>12}  {equal}")
    for method, text in found["differences"].items():
        if text:
            print(f"{method}: {noun} differ: {text}")
    print("ratio: time of the first method / time of this one")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="?", choices=("training", "encoding"), default="training")
    parser.add_argument("--smoke", action="store_true", help="check in seconds that this works: both, on a tiny text")
    parser.add_argument("--text", help="a text file or a corpus name; by default made of the installed packages")
    parser.add_argument("--megabytes", type=float, default=100, help="size of the text made of the installed packages")
    parser.add_argument("--merges", type=int, default=8192)
    parser.add_argument("--pattern", choices=PATTERNS, default="gpt2")
    parser.add_argument("--processes", type=int, default=0, help="or threads; 0: the default of each library")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minbpe", type=Path, metavar="CHECKOUT", help="a checkout of minbpe; by default left out")
    parser.add_argument("--minbpe-megabytes", type=float, default=1, help="size of the text for minbpe")
    parser.add_argument("--minbpe-merges", type=int, default=256, help="merges for minbpe")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to write every figure to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.minbpe and not (options.minbpe / "minbpe" / "regex.py").exists():
        parser.error(f"{options.minbpe} is not a checkout of minbpe: minbpe/regex.py does not exist")
    if min(options.merges, options.minbpe_merges, options.rounds) < 1 or options.processes < 0:
        parser.error("--merges, --minbpe-merges and --rounds are at least 1, --processes at least 0")
    if options.smoke:
        options.text, options.merges, options.minbpe_merges, options.rounds = __file__, 100, 10, 1
    return options


def main() -> None:
    options = parse()
    if options.worker:
        worker(Job(**json.loads(options.worker)))
        return
    if options.text:
        from glassgpt.data import read_text

        text = read_text(options.text).content
    else:
        text = make_text(options.megabytes)
    results = []
    for work, all_methods in (("training", TRAINING), ("encoding", ENCODING)):
        if options.smoke or options.work == work:
            methods = [name for name, (_, needs) in all_methods.items() if not needs or importlib.util.find_spec(needs)]
            for name in set(all_methods) - set(methods):
                print(f"left out: {name}: the library is not installed")
            methods = [name for name in methods if name != "minbpe"]
            results.append(compare(methods, text, options.merges, options.rounds, options))
    if options.minbpe:
        text = beginning(text, int(options.minbpe_megabytes * 1e6))
        results.append(compare(["glassgpt", "minbpe"], text, options.minbpe_merges, 1, options))
    elif options.smoke:
        print("left out: minbpe: give --minbpe CHECKOUT")
    for found in results:
        show(found)
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items() if value and key not in ("minbpe", "json")}
        content = {"settings": settings, "cpus": os.cpu_count(), "results": results}
        options.json.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
