"""The ways to train and to apply byte-level BPE that are compared, and the process in which one is measured.

Everyone gets the same work in the form that suits it best. `tokenizers` gets the text in short parts: in one part it
would use one thread, and is slower even so. The parts are cut where no piece crosses, so the pieces, the merges and
the ids have to be the same.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glassgpt.bench.memory import peak_resident
from glassgpt.errors import GlassError
from glassgpt.tokenizer import pretrained
from glassgpt.tokenizer.base import END_OF_TEXT
from glassgpt.tokenizer.bpe.tokenizer import BPETokenizer
from glassgpt.tokenizer.pretokenize import PATTERNS, PreTokenizer, usable_cpus

TRAINING, ENCODING = "training", "encoding"
#: Characters of the parts of a text that `tokenizers` gets for training; that it and tiktoken's threads encode.
TRAINING_PART, ENCODING_PART = 1 << 13, 1 << 16


@dataclass(frozen=True)
class Job:
    """What a process is to measure.

    Attributes:
        way: a name in :data:`WAYS`.
        folder: with the text; with the tokenizer, once it is trained.
        vocab_size: to train, with one special token.
        pattern: a name in :data:`PATTERNS`.
        processes: or threads, at most; None: as many as the library takes by itself.
    """

    way: str
    folder: str
    vocab_size: int
    pattern: str
    processes: int | None

    def file(self, name: str) -> Path:
        """A file in the folder."""
        return Path(self.folder) / name

    def text(self) -> str:
        """The text."""
        return self.file("text.txt").read_bytes().decode("utf-8")

    def parts(self, text: str, size: int) -> Iterator[str]:
        """The text in short parts, such that the pieces stay the same."""
        return PreTokenizer([PATTERNS[self.pattern]]).chunks(text, size)

    def trained(self) -> BPETokenizer:
        """The tokenizer that was trained before."""
        tokenizer = pretrained.load(self.file("tokenizer.json"))
        assert isinstance(tokenizer, BPETokenizer)
        return tokenizer


class Lap(NamedTuple):
    """One timed piece of work.

    Attributes:
        seconds: it took.
        result: merges, each as published files write it (two tokens and a space between them), or ids.
    """

    seconds: float
    result: Any


class Laps(NamedTuple):
    """What a process has measured: a lap for each ``how`` of its way, and the seconds of building an encoder."""

    laps: list[Lap]
    build_seconds: float | None = None


# --- the ways --------------------------------------------------------------------------------------------------------


def _timed(work: Callable[[], Any]) -> Lap:
    start = time.perf_counter()
    result = work()
    return Lap(time.perf_counter() - start, result)


def _train_glassgpt(job: Job) -> Laps:
    text = job.text()
    train = lambda: BPETokenizer.train(text, job.vocab_size, pattern=job.pattern, processes=job.processes)  # noqa: E731
    seconds, tokenizer = _timed(train)
    content = tokenizer.to_json()
    job.file("tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return Laps([Lap(seconds, _written(content))])


def byte_level(pattern: str) -> Any:
    """The pre-tokenizer of `tokenizers` for a named pattern; for GPT-2's its built-in one, which is the fastest."""
    from tokenizers import Regex, pre_tokenizers

    if pattern == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _train_tokenizers(job: Job) -> Laps:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    text = job.text()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level(job.pattern)
    trainer = trainers.BpeTrainer(
        vocab_size=job.vocab_size - 1,  # without a special token, which takes no part in the merges
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    seconds, _ = _timed(lambda: tokenizer.train_from_iterator(job.parts(text, TRAINING_PART), trainer))
    return Laps([Lap(seconds, _written(json.loads(tokenizer.to_str())))])


def _written(content: Mapping[str, Any]) -> list[str]:
    return [f"{left} {right}" for left, right in content["model"]["merges"]]


def _encode_python(job: Job) -> Laps:
    text = job.text()
    build, tokenizer = _timed(job.trained)
    laps = []
    for _ in _PYTHON:
        seconds, ids = _timed(lambda: tokenizer.encode(text, engine="python"))
        laps.append(Lap(seconds, np.array(ids, dtype=np.uint32)))
    return Laps(laps, build)


def _encode_engine(job: Job) -> Laps:
    text, tokenizer = job.text(), job.trained()
    build, _ = _timed(lambda: tokenizer.encode("text", engine="tiktoken"))
    return Laps([_timed(lambda: tokenizer.encode_array(text, engine="tiktoken"))], build)


def _tiktoken(job: Job) -> tuple[float, Any]:
    import tiktoken

    ranks = dict(job.trained().model.vocab)
    pattern, special = PATTERNS[job.pattern], {END_OF_TEXT: len(ranks)}
    return _timed(lambda: tiktoken.Encoding("bench", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special))


def _encode_tiktoken(job: Job) -> Laps:
    text, (build, encoding) = job.text(), _tiktoken(job)
    return Laps([_timed(lambda: encoding.encode_ordinary(text))], build)


def _encode_tiktoken_numpy(job: Job) -> Laps:
    text, (build, encoding) = job.text(), _tiktoken(job)
    return Laps([_timed(lambda: encoding.encode_to_numpy(text, disallowed_special=()))], build)


def _encode_tiktoken_batch(job: Job) -> Laps:
    parts, (build, encoding) = list(job.parts(job.text(), ENCODING_PART)), _tiktoken(job)
    threads = job.processes or usable_cpus()
    seconds, found = _timed(lambda: encoding.encode_ordinary_batch(parts, num_threads=threads))
    return Laps([Lap(seconds, _joined(found))], build)


def _tokenizers(job: Job) -> tuple[float, Any]:
    from tokenizers import Tokenizer

    build, tokenizer = _timed(lambda: Tokenizer.from_file(str(job.file("tokenizer.json"))))
    tokenizer.pre_tokenizer = byte_level(job.pattern)
    tokenizer.encode_special_tokens = True  # as text, as everyone here does
    return build, tokenizer


def _encode_tokenizers(job: Job) -> Laps:
    text = job.text()
    build, tokenizer = _tokenizers(job)
    encode = lambda part: tokenizer.encode(part, add_special_tokens=False).ids  # noqa: E731
    seconds, found = _timed(lambda: [encode(part) for part in job.parts(text, ENCODING_PART)])
    return Laps([Lap(seconds, _joined(found))], build)


def _encode_tokenizers_batch(job: Job) -> Laps:
    parts = list(job.parts(job.text(), ENCODING_PART))
    build, tokenizer = _tokenizers(job)
    encode = lambda: [found.ids for found in tokenizer.encode_batch_fast(parts, add_special_tokens=False)]  # noqa: E731
    seconds, found = _timed(encode)
    return Laps([Lap(seconds, _joined(found))], build)


def _joined(found: Iterable[Sequence[int]]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.uint32), *(np.array(ids, dtype=np.uint32) for ids in found)])


class Way(NamedTuple):
    """A way to do some work.

    Attributes:
        work: ``training`` or ``encoding``.
        library: whose code does it.
        how: a name for each lap.
        needs: the library that has to be installed; empty for none.
        measure: does it, in a process of its own.
        first: whether its result is what the others of the same work are compared with.
    """

    work: str
    library: str
    how: tuple[str, ...]
    needs: str
    measure: Callable[[Job], Laps]
    first: bool = False


_PYTHON = ("encode in Python, cache empty", "encode in Python, cache filled")
#: By name, in the order in which they are measured.
WAYS = {
    "train": Way(TRAINING, "glassgpt", ("BPETokenizer.train",), "", _train_glassgpt, first=True),
    "train tokenizers": Way(TRAINING, "tokenizers", ("BpeTrainer",), "tokenizers", _train_tokenizers),
    "python": Way(ENCODING, "glassgpt", _PYTHON, "", _encode_python, first=True),
    "engine": Way(ENCODING, "glassgpt", ("encode_array, tiktoken's engine",), "tiktoken", _encode_engine),
    "tiktoken": Way(ENCODING, "tiktoken", ("encode_ordinary",), "tiktoken", _encode_tiktoken),
    "tiktoken numpy": Way(ENCODING, "tiktoken", ("encode_to_numpy",), "tiktoken", _encode_tiktoken_numpy),
    "tiktoken batch": Way(ENCODING, "tiktoken", ("encode_ordinary_batch",), "tiktoken", _encode_tiktoken_batch),
    "tokenizers": Way(ENCODING, "tokenizers", ("encode",), "tokenizers", _encode_tokenizers),
    "tokenizers batch": Way(ENCODING, "tokenizers", ("encode_batch_fast",), "tokenizers", _encode_tokenizers_batch),
}


def work() -> None:
    """The part of a child process: measure what the first argument asks for, and print the figures as JSON."""
    job = Job(**json.loads(sys.argv[1]))
    try:
        found = WAYS[job.way].measure(job)
    except GlassError as error:
        print(json.dumps({"error": str(error)}))
        return
    peak = peak_resident()
    for number, lap in enumerate(found.laps):
        np.save(job.file(f"result {number}.npy"), np.array(lap.result))
    print(json.dumps({"laps": [lap.seconds for lap in found.laps], "build": found.build_seconds, "peak": peak}))
