"""From a source to a prepared corpus: survey it, make the tokenizer, encode in parallel, write the manifest.

The work is cut into tasks by the sizes of the files alone, and each task writes shards of its own, so the result is the
same with any number of processes, and a preparation that was killed goes on with the tasks that are missing. A task
holds some tens of megabytes, however long the source is.

A single text is split by position: its end validates. Documents are split by their own content (its SHA-256, read as a
fraction of one, is below ``val_fraction`` or is not), so adding documents moves no other.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from glassgpt import assets
from glassgpt.config import DataConfig
from glassgpt.data.corpus.encoding import BETWEEN, Encoder, divided, documents_of, in_validation, segment_text
from glassgpt.data.corpus.manifest import (
    MANIFEST,
    PLAN,
    Manifest,
    ShardEntry,
    TokenStream,
    hashes,
    open_stream,
    plan_in,
    read_manifest,
    write_manifest,
)
from glassgpt.data.corpus.shards import FORMAT_VERSION, SPLITS
from glassgpt.data.corpus.tasks import WORTH_PROCESSES, find_source_duplicates, reading, tasks_of
from glassgpt.data.sources.source import TextSource, Survey
from glassgpt.errors import DataError
from glassgpt.files import Progress, sha256_of
from glassgpt.tokenizer import Tokenizer, load, save, specs
from glassgpt.tokenizer.base import FILES
from glassgpt.tokenizer.pretokenize import usable_cpus
from glassgpt.workers import Message, run_tasks

#: Bytes of text that a tokenizer is trained on at most, taken evenly from the training part of longer ones.
TRAINED_ON = 256 << 20

#: Makes the tokenizer from training texts, all texts, and the number of characters of the former.
MakeTokenizer = Callable[[Iterable[str], Iterable[str], int], Tokenizer]


def prepare(
    source: TextSource,
    config: DataConfig,
    progress: Progress | None = None,
    *,
    folder: Path | None = None,
    processes: int | None = None,
) -> TokenStream:
    """Tokenise a source once and keep the result; later calls with the same source and settings only open it.

    Args:
        source: what was found; a corpus that is prepared already is opened.
        config: the tokenizer, and how to split.
        progress: told while it takes time.
        folder: where to write. A preparation that was interrupted there goes on. By default a folder of the cache.
        processes: that work at the same time; by default one per CPU, or one for a short source.

    Raises:
        DataError: if the source cannot be read, or the folder cannot be written or holds something else.
        TokenizerError: if there is no such tokenizer, or it does not know the text.
    """
    if source.prepared:
        return open_stream(source.prepared)
    spec = specs.parse(config.tokenizer)

    def make(train: Iterable[str], everything: Iterable[str], characters: int) -> Tokenizer:
        closed = spec.kind in ("char", "word") and spec.vocab_size is None
        return specs.make(spec, everything if closed else train, progress=progress, characters=characters)

    return _prepared(source, config, specs.identity(spec), make, progress, folder, processes)


def prepare_again(source: TextSource, config: DataConfig, identity: str, tokenizer: Tokenizer) -> TokenStream:
    """As :func:`prepare`, with a tokenizer that is at hand and was known by ``identity`` then."""
    if source.prepared:
        return open_stream(source.prepared)
    return _prepared(source, config, identity, lambda *texts: tokenizer, None, None, None)


def find_prepared(text_sha256: str, identity: str, config: DataConfig) -> TokenStream | None:
    """The corpus in the cache for a text of that SHA-256 and a tokenizer, or None if there is none or it is damaged.

    Args:
        text_sha256: of the text, in UTF-8; of several files, see :class:`glassgpt.data.corpus.manifest.Manifest`.
        identity: of the tokenizer, see :func:`glassgpt.tokenizer.specs.identity`.
        config: how the text was split.
    """
    key = _key(text_sha256, identity, _settings(config))
    try:
        stream = open_stream(_cached(key))
    except DataError:
        return None
    return stream if _key_of(stream.manifest) == key else None


def _settings(config: DataConfig) -> dict[str, Any]:
    """What of the configuration decides what the shards hold, beside the tokenizer."""
    names = ("val_fraction", "max_val_tokens", "separator", "text_field", "duplicates")
    return {name: getattr(config, name) for name in names}


def _key(text_sha256: str, identity: str, settings: Mapping[str, Any]) -> str:
    """What is the same for two preparations if and only if they are."""
    parts = [FORMAT_VERSION, text_sha256, identity, settings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _key_of(manifest: Manifest) -> str:
    return _key(manifest.text_sha256, manifest.tokenizer, manifest.settings)


def _cached(key: str) -> Path:
    return assets.cache_dir() / "streams" / key[:16]


def _prepared(
    source: TextSource,
    config: DataConfig,
    identity: str,
    make: MakeTokenizer,
    progress: Progress | None,
    folder: Path | None,
    processes: int | None,
) -> TokenStream:
    if source.single and config.duplicates == "drop":
        raise DataError(
            f"data.duplicates=drop is for documents, and {source.source} is one text; give a folder, a .jsonl file, or "
            "the separator that stands between documents"
        )
    with tempfile.TemporaryDirectory(prefix="glassgpt-", ignore_cleanup_errors=True) as scratch:
        survey = source.survey(Path(scratch), progress)
        key = _key(survey.sha256, identity, _settings(config))
        if processes is None:
            processes = usable_cpus() if survey.bytes >= WORTH_PROCESSES else 1
        preparation = Preparation(source, survey, config, identity, make, key, processes, progress, Path(scratch))
        return preparation.into(folder) if folder else _into_cache(preparation)


def _into_cache(preparation: "Preparation") -> TokenStream:
    """Prepare into a folder of the cache, or open what is there."""
    folder = _cached(preparation.key)
    for _ in range(10):  # another process may be preparing the same text, or mending the same damage
        found = find_prepared(preparation.survey.sha256, preparation.identity, preparation.config)
        if found is not None:
            return found
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", suffix=".tmp", dir=folder.parent))
        except OSError as error:
            raise DataError(
                f"the cache {folder.parent} cannot be written: {error.strerror}; set GLASSGPT_CACHE to a folder that "
                "can"
            ) from None
        try:
            preparation.write(temporary)
            os.replace(temporary, folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if error.errno == 28:
                raise DataError(f"the cache {folder.parent} is full; set GLASSGPT_CACHE to a larger disk") from None
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    raise DataError(f"the prepared corpus {folder} cannot be written; is something else changing that folder?")


class Preparation:
    """One source on its way into one folder.

    Args:
        source: what to read.
        survey: what a first look at it told.
        config: the tokenizer, and how to split.
        identity: of the tokenizer.
        make: makes it.
        key: the same for the same result.
        processes: to use.
        progress: told while it takes time.
        scratch: a folder for what is not kept.
    """

    def __init__(
        self,
        source: TextSource,
        survey: Survey,
        config: DataConfig,
        identity: str,
        make: MakeTokenizer,
        key: str,
        processes: int,
        progress: Progress | None,
        scratch: Path,
    ):
        self.source, self.survey, self.config, self.identity = source, survey, config, identity
        self.make, self.key, self.processes, self.scratch = make, key, processes, scratch
        self.progress: Progress = progress or (lambda doing, done, total: None)

    def into(self, folder: Path) -> TokenStream:
        """Prepare into a folder that the user named; go on with what was interrupted there.

        Raises:
            DataError: if it holds something else.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stream = self._finished(folder)
            if stream is None:
                found = plan_in(folder)
                if found is None and any(folder.iterdir()):
                    raise DataError(f"{folder} exists and is not empty; choose another folder")
                if found not in (None, self.key):
                    raise DataError(
                        f"{folder} holds the unfinished preparation of another text or with other settings; choose "
                        "another folder, or remove it"
                    )
                self._plan(folder)
                self.write(folder)
                stream = open_stream(folder)
            _tidy(folder)
            (folder / PLAN).unlink(missing_ok=True)
            return stream
        except (OSError, ValueError) as error:
            raise DataError(f"{folder} cannot be written or read: {error}") from None

    def _finished(self, folder: Path) -> TokenStream | None:
        """What is prepared there already; of this same preparation but damaged, it is made ready to be made again."""
        if not (folder / MANIFEST).exists():
            return None
        if _key_of(read_manifest(folder)) != self.key:
            raise DataError(f"{folder} holds a corpus prepared otherwise; choose another folder, or remove it")
        try:
            return open_stream(folder)
        except DataError:
            self._plan(folder)
            for name in (MANIFEST, *FILES, "tokenizer_config.json"):
                (folder / name).unlink(missing_ok=True)
            return None

    def _plan(self, folder: Path) -> None:
        (folder / PLAN).write_text(json.dumps({"key": self.key}), encoding="utf-8")
        _tidy(folder)

    def write(self, folder: Path) -> None:
        """Fill a folder; what a killed process has done there is kept."""
        tasks = list(tasks_of(self.source, self.survey, self.config))
        tokenizer = self._tokenizer(folder, tasks)
        kept = [folder / name for name in (*FILES, "tokenizer_config.json") if (folder / name).exists()]
        sums = hashes(kept)
        setup = {
            "folder": str(folder.absolute()),
            "tokenizer": next(sums[name] for name in FILES if name in sums),
            **reading(self.source, self.config),
        }
        dropped = self._drop_duplicates(tasks) if self.config.duplicates == "drop" else {}
        encoder = Encoder(setup, tokenizer) if self.processes == 1 else None
        answers = self._encode(folder, tasks, setup, encoder)
        if not self.source.single:
            answers = self._both_splits(folder, tasks, setup, answers, encoder)
        entries = [ShardEntry(**entry) for answer in answers for entry in answer["shards"]]
        wanted = {entry.file for entry in entries}
        for shard in folder.glob("*.safetensors"):
            if shard.name not in wanted:
                shard.unlink()
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            text_sha256=self.survey.sha256,
            tokenizer=self.identity,
            vocab_size=tokenizer.vocab_size,
            split="position" if self.source.single else "documents",
            settings=_settings(self.config),
            lossless=all(answer["lossless"] for answer in answers),
            tokenizer_sha256=sums,
            shards=sorted(entries, key=lambda entry: SPLITS.index(entry.split)),
            duplicates=dropped,
        )
        write_manifest(folder, manifest)
        shutil.rmtree(folder / "done", ignore_errors=True)

    def _tokenizer(self, folder: Path, tasks: list[Message]) -> Tokenizer:
        """The tokenizer, as the folder keeps it; trained on an even part of a source that is too long for it."""
        if any((folder / name).exists() for name in FILES) and (folder / "tokenizer_config.json").exists():
            return load(folder)  # made before the process was killed
        training = [task for task in tasks if task.get("split") != "val"]
        every = max(1, -(-sum(task["bytes"] for task in training) // TRAINED_ON))
        sample = training[::every]
        tokenizer = self.make(
            self._texts(sample, "train"), self._texts(tasks, None), sum(task["bytes"] for task in sample)
        )
        if not self.source.single:
            tokenizer = specs.with_bos(tokenizer)
        with tempfile.TemporaryDirectory(prefix=".tokenizer-", suffix=".tmp", dir=folder) as temporary:
            save(tokenizer, Path(temporary), block_size=2**31 - 1)
            for file in sorted(Path(temporary).iterdir()):  # tokenizer_config.json comes last: then it is whole
                os.replace(file, folder / file.name)
        return tokenizer

    def _texts(self, tasks: list[Message], split: str | None) -> Iterator[str]:
        """The texts of some tasks: of one split, or of both with what is put between documents."""
        nothing = True
        for task in tasks:
            if self.source.single:
                yield from divided(segment_text(task))
                nothing = False
                continue
            documents = (documents_of(part, self.source.text_field, self.source.separator) for part in task["segments"])
            for read in chain.from_iterable(documents):
                if split is None or in_validation(read(), self.config.val_fraction) == (split == "val"):
                    nothing = False
                    yield from divided(read())
                    yield from [] if split else [BETWEEN]
        if nothing and split is None:
            raise DataError(f"{self.source.source} is empty; there is nothing to learn from")
        if nothing:  # few documents, of which none is on that side yet; see _both_splits
            yield from self._texts(tasks, None)

    def _encode(self, folder: Path, tasks: list[Message], setup: Message, encoder: Encoder | None) -> list[Message]:
        """Do the tasks that are not done; the answers of all, in order."""
        done = folder / "done"
        done.mkdir(exist_ok=True)
        answers: dict[int, Message] = {}
        numbers = []
        for number in range(len(tasks)):
            answer = _answered(done / f"{number:05d}.json", folder)
            if answer is None:
                numbers.append(number)
            else:
                answers[number] = answer
        total = sum(task["bytes"] for task in tasks)
        finished = sum(tasks[number]["bytes"] for number in answers)
        asked = [{**tasks[number], "number": number} for number in numbers]
        name = f"{Encoder.__module__}:{Encoder.__name__}"
        for place, answer in run_tasks(name, setup, asked, self.processes, encoder):
            number = numbers[place]
            answers[number] = answer
            temporary = done / f".{number:05d}.tmp"
            temporary.write_text(json.dumps(answer), encoding="utf-8")
            os.replace(temporary, done / f"{number:05d}.json")
            finished += tasks[number]["bytes"]
            self.progress("encoding", finished, total)
        return [answers[number] for number in range(len(tasks))]

    def _both_splits(
        self, folder: Path, tasks: list[Message], setup: Message, answers: list[Message], encoder: Encoder | None
    ) -> list[Message]:
        """See that few documents do not all fall on one side: if so, the one nearest to the border changes sides.

        Raises:
            DataError: if there are not two documents.
        """
        counts = {split: sum(answer["documents"][split] for answer in answers) for split in SPLITS}
        if sum(counts.values()) < 2:
            raise DataError(
                f"{self.source.source} holds {'one document' if sum(counts.values()) else 'no document'}; two are "
                "needed, one to train on and one to validate with. A text by itself (a .txt file) is split by position"
            )
        if min(counts.values()) > 0:
            return answers
        empty = "val" if counts["val"] == 0 else "train"
        extremes = [answer["extremes"].get(empty, "") for answer in answers]
        found = (min if empty == "val" else max)(filter(None, extremes))
        for number in [number for number, extreme in enumerate(extremes) if extreme == found]:
            tasks[number]["moved"] = found
            (folder / "done" / f"{number:05d}.json").unlink(missing_ok=True)
        answers = self._encode(folder, tasks, setup, encoder)
        if not all(any(answer["documents"][split] for answer in answers) for split in SPLITS):
            raise DataError(
                f"{self.source.source} holds {sum(counts.values())} documents, all with the same text; two different "
                "ones are needed, one to train on and one to validate with"
            )
        return answers

    def _drop_duplicates(self, tasks: list[Message]) -> dict[str, int]:
        """Find documents that repeat an earlier one, and tell each task which of its own to leave out."""
        found = find_source_duplicates(
            self.source, self.config, tasks, self.scratch, processes=self.processes, progress=self.progress
        )
        for number, task in enumerate(tasks):
            rows = found.dropped(number)
            if len(rows):
                path = self.scratch / f"dropped-{number:05d}"
                rows.astype("<i8").tofile(path)
                task["dropped"] = str(path)
        return {"exact": found.exact, "near": found.near}


def _tidy(folder: Path) -> None:
    """Remove what a killed process was writing."""
    for leftover in folder.glob(".*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _answered(path: Path, folder: Path) -> Message | None:
    """What a task answered, if its shards are still what they were."""
    try:
        answer: Message = json.loads(path.read_text(encoding="utf-8"))
        whole = all(sha256_of(folder / entry["file"]) == entry["sha256"] for entry in answer["shards"])
    except (OSError, ValueError, KeyError):
        return None
    return answer if whole else None
