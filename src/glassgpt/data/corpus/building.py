"""Build one prepared corpus in one folder: tokenizer, shards, manifest; resume after a kill."""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glassgpt.config import DataConfig
from glassgpt.data.corpus.encoding import PARAGRAPH_BREAK, Encoder, in_validation, read_documents, read_range, rechunk
from glassgpt.data.corpus.manifest import (
    Manifest,
    ShardEntry,
    TokenStream,
    open_stream,
    parse_entry,
    read_manifest,
    settings_of,
    write_manifest,
)
from glassgpt.data.corpus.shards import FORMAT_VERSION, SPLITS
from glassgpt.data.corpus.tasks import encoding_tasks, find_source_duplicates, read_settings
from glassgpt.data.sources.documents import listed_counts
from glassgpt.data.sources.source import MANIFEST, PLAN, Survey, TextSource, no_documents, unfinished_key
from glassgpt.errors import DataError
from glassgpt.files import Progress, exclusive_lock, has_type, parse_json, sha256_of, write_text
from glassgpt.tokenizer import Tokenizer, load, save, specs
from glassgpt.tokenizer.base import FILES
from glassgpt.tokenizer.published import TOKENIZER_CONFIG
from glassgpt.workers import Message, run_tasks

#: The files of a corpus's tokenizer, of which some exist.
_TOKENIZER = (*FILES, TOKENIZER_CONFIG)
#: While a process builds in a folder, it holds this lock file.
LOCK = ".lock"
#: A tokenizer is trained on at most this many bytes of text, taken evenly from the training split of a longer source.
MAX_TOKENIZER_TRAIN_BYTES = 256 << 20

#: Makes the tokenizer from the training texts, all texts, and the number of characters of the training texts.
MakeTokenizer = Callable[[Iterable[str], Iterable[str], int], Tokenizer]


@dataclass(frozen=True)
class CorpusBuilder:
    """Builds the corpus of one source."""

    source: TextSource
    survey: Survey  # of the source
    config: DataConfig  # how to split
    tokenizer_id: str  # see glassgpt.tokenizer.specs
    make_tokenizer: MakeTokenizer
    key: str  # the cache key; equal for equal results
    processes: int
    progress: Progress
    scratch: Path  # a folder for temporary files

    def build_in(self, folder: Path) -> TokenStream:
        """Build in a folder that the user named; resume an interrupted preparation there.

        Raises:
            DataError: if the folder holds something else, another process writes it, or it cannot be written.
        """

        def refuse(holder: str) -> DataError:
            return DataError(f"another process is preparing {folder} ({holder}); stop it, or wait for its end")

        try:
            folder.mkdir(parents=True, exist_ok=True)
            if unfinished_key(folder) is None and not (folder / MANIFEST).exists() and _has_files(folder):
                raise DataError(f"{folder} exists and is not empty; choose another folder")
            with exclusive_lock(folder / LOCK, refuse):
                return self._build_in_locked(folder)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder} cannot be written or read: {error}") from None

    def _build_in_locked(self, folder: Path) -> TokenStream:
        stream = self._open_or_reset(folder)
        if stream is None:
            if unfinished_key(folder) not in (None, self.key):
                raise DataError(
                    f"{folder} holds the unfinished preparation of another text or with other settings; choose "
                    "another folder, or remove it"
                )
            self._write_plan(folder)
            self.write(folder)
            stream = open_stream(folder)
        _remove_temporary(folder)
        (folder / PLAN).unlink(missing_ok=True)
        return stream

    def _open_or_reset(self, folder: Path) -> TokenStream | None:
        """Open the corpus in a folder. If it is damaged, delete its manifest and tokenizer, and give None."""
        if not (folder / MANIFEST).exists():
            return None
        if read_manifest(folder).key != self.key:
            raise DataError(
                f"{folder} holds a corpus of another text or with other settings; choose another folder, or remove it"
            )
        try:
            return open_stream(folder)
        except DataError:
            if blocked := [path for path in folder.glob("*.*") if path.is_dir()]:
                raise DataError(f"{blocked[0]} is a folder, and a file must be written there; remove it") from None
            self._write_plan(folder)
            _reset(folder)
            return None

    def _write_plan(self, folder: Path) -> None:
        write_text(folder / PLAN, json.dumps({"key": self.key}))
        _remove_temporary(folder)

    def write(self, folder: Path) -> None:
        """Write all files of the corpus; keep the finished tasks of a killed process."""
        tasks = list(encoding_tasks(self.source, self.survey, self.config))
        tokenizer = self._tokenizer(folder, tasks)
        tokenizer_sha256 = {name: sha256_of(folder / name) for name in _TOKENIZER if (folder / name).exists()}
        setup = {
            "folder": str(folder.absolute()),
            "tokenizer": next(tokenizer_sha256[name] for name in FILES if name in tokenizer_sha256),
            **read_settings(self.source, self.config),
        }
        duplicates = self._drop_duplicates(tasks) if self.config.duplicates == "drop" else {}
        encoder = Encoder(setup, tokenizer) if self.processes == 1 else None
        results = self._encode(folder, tasks, setup, encoder)
        if not self.source.single:
            results = self._ensure_both_splits(folder, tasks, setup, results, encoder)
        entries = [ShardEntry(**entry) for result in results for entry in result["shards"]]
        if self.source.state() != self.survey.state:
            _reset(folder)
            raise DataError(f"{self.source.source} was changed while it was prepared; prepare it again")
        for name in {shard.name for shard in folder.glob("*.safetensors")} - {entry.file for entry in entries}:
            (folder / name).unlink()
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            text_sha256=self.survey.sha256,
            tokenizer=self.tokenizer_id,
            vocab_size=tokenizer.vocab_size,
            split="position" if self.source.single else "documents",
            settings=settings_of(self.config),
            lossless=all(result["lossless"] for result in results),
            tokenizer_sha256=tokenizer_sha256,
            shards=sorted(entries, key=lambda entry: SPLITS.index(entry.split)),
            duplicates=duplicates,
            left_out=dict(_left_out(results)),
        )
        write_manifest(folder, manifest)
        shutil.rmtree(folder / "done", ignore_errors=True)

    def _tokenizer(self, folder: Path, tasks: list[Message]) -> Tokenizer:
        """Load the folder's tokenizer, or make and save it; a long source is sampled evenly to train it."""
        if any((folder / name).exists() for name in FILES) and (folder / "tokenizer_config.json").exists():
            return load(folder)  # of a preparation that was killed
        training = [task for task in tasks if task.get("split") != "val"]
        step = max(1, -(-sum(task["bytes"] for task in training) // MAX_TOKENIZER_TRAIN_BYTES))
        sample = training[::step]
        size = sum(task["bytes"] for task in sample)
        tokenizer = self.make_tokenizer(self._texts(sample, "train"), self._texts(tasks, None), size)
        if not self.source.single:
            tokenizer = specs.with_eos_as_bos(tokenizer)
        with tempfile.TemporaryDirectory(prefix=".tokenizer-", suffix=".tmp", dir=folder) as temporary:
            save(tokenizer, Path(temporary), block_size=2**31 - 1)
            for file in sorted(Path(temporary).iterdir()):  # tokenizer_config.json is last: then all files are there
                os.replace(file, folder / file.name)
        return tokenizer

    def _texts(self, tasks: list[Message], split: str | None) -> Iterator[str]:
        """Read the texts of some tasks: of one split, or of both with a paragraph break after each document."""
        empty, left_out = True, Counter[str]()
        for task in tasks:
            if self.source.single:
                yield from rechunk(read_range(task))
                empty = False
                continue
            for read in read_documents(task, self.source.text_field, self.source.separator, left_out):
                if split is None or in_validation(read(), self.config.val_fraction) == (split == "val"):
                    empty = False
                    yield from rechunk(read())
                    yield from [] if split else [PARAGRAPH_BREAK]
        if empty and split is None:
            raise no_documents(self.source, left_out)
        if empty:  # few documents, none of them in this split yet; see _ensure_both_splits
            yield from self._texts(tasks, None)

    def _encode(self, folder: Path, tasks: list[Message], setup: Message, encoder: Encoder | None) -> list[Message]:
        """Run the unfinished tasks; give the results of all tasks, in order."""
        done = folder / "done"
        done.mkdir(exist_ok=True)
        files = [done / f"{number:05d}.json" for number in range(len(tasks))]
        results = {number: result for number, file in enumerate(files) if (result := _finished_result(file, folder))}
        unfinished = [number for number in range(len(tasks)) if number not in results]
        total = sum(task["bytes"] for task in tasks)
        finished = sum(tasks[number]["bytes"] for number in results)
        numbered = [{**tasks[number], "number": number} for number in unfinished]
        for place, result in run_tasks(Encoder, setup, numbered, self.processes, encoder):
            number = unfinished[place]
            results[number] = result
            write_text(files[number], json.dumps(result))
            finished += tasks[number]["bytes"]
            self.progress("encoding", finished, total)
        return [results[number] for number in range(len(tasks))]

    def _ensure_both_splits(
        self, folder: Path, tasks: list[Message], setup: Message, results: list[Message], encoder: Encoder | None
    ) -> list[Message]:
        """If one split has no document, move the document nearest to the border into it, and encode it again.

        Raises:
            DataError: if there are not two different documents.
        """
        counts = {split: sum(result["documents"][split] for result in results) for split in SPLITS}
        if sum(counts.values()) < 2:
            left_out = _left_out(results)
            raise DataError(
                f"{self.source.source} holds {'one document' if sum(counts.values()) else 'no document'}; two are "
                "needed, one for training and one for validation. A text by itself (a .txt file) is split by position"
                + (f". Left out, because they have no text: {listed_counts(left_out)}" if left_out else "")
            )
        if min(counts.values()) > 0:
            return results
        empty = "val" if counts["val"] == 0 else "train"
        nearest = [result["extremes"].get(empty, "") for result in results]
        document = (min if empty == "val" else max)(filter(None, nearest))
        for number in [number for number, name in enumerate(nearest) if name == document]:
            tasks[number]["switched_split"] = document
            (folder / "done" / f"{number:05d}.json").unlink(missing_ok=True)
        results = self._encode(folder, tasks, setup, encoder)
        if not all(any(result["documents"][split] for result in results) for split in SPLITS):
            raise DataError(
                f"{self.source.source} holds {sum(counts.values())} documents, all with the same text; two different "
                "ones are needed, one for training and one for validation"
            )
        return results

    def _drop_duplicates(self, tasks: list[Message]) -> dict[str, int]:
        """Find duplicates, add the file of rows to leave out to each task, and count them."""
        found = find_source_duplicates(
            self.source, self.config, tasks, self.scratch, processes=self.processes, progress=self.progress
        )
        for number, task in enumerate(tasks):
            rows = np.flatnonzero(found.dropped[number])
            if len(rows):
                path = self.scratch / f"dropped-{number:05d}"
                rows.astype("<i8").tofile(path)
                task["dropped"] = str(path)
        return {"exact": found.exact, "near": found.near}


def _left_out(results: list[Message]) -> Counter[str]:
    """Count what has no text, in all tasks."""
    return sum((Counter(result["left_out"]) for result in results), Counter())


def _reset(folder: Path) -> None:
    """Delete the manifest, the tokenizer and the results of tasks, so that all is made again."""
    for name in (MANIFEST, *_TOKENIZER):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "done", ignore_errors=True)


def _has_files(folder: Path) -> bool:
    return any(not path.name.startswith(LOCK) for path in folder.iterdir())


def _remove_temporary(folder: Path) -> None:
    """Remove the temporary files and folders of a killed process."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


#: The types in the result of a task; see :class:`Encoder`.
_RESULT = {
    "shards": list[dict[str, Any]], "lossless": bool, "documents": dict[str, int], "extremes": dict[str, str],
    "left_out": dict[str, int],
}  # fmt: skip


def _finished_result(path: Path, folder: Path) -> Message | None:
    """Read the result of a finished task; None if there is none, or a shard has changed since."""
    try:
        result: Message = parse_json(path.read_text(encoding="utf-8"))
        valid = all(has_type(result[name], kind) for name, kind in _RESULT.items())
        valid = valid and result["documents"].keys() == set(SPLITS)
        for entry in map(parse_entry, result["shards"]):
            valid = valid and sha256_of(folder / entry.file) == entry.sha256
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return result if valid else None
