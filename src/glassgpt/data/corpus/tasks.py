"""Divide a preparation into tasks of some tens of megabytes, by the file sizes alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glassgpt.config import DataConfig
from glassgpt.data.audit.duplicates import Duplicates, find_duplicates, load_datasketch
from glassgpt.data.corpus.encoding import Signer
from glassgpt.data.sources.source import Survey, TextSource
from glassgpt.files import Progress
from glassgpt.workers import Message, run_tasks

#: Bytes of text in a task, and the least where a source is divided among several processes.
MAX_TASK_BYTES, MIN_TASK_BYTES = 32 << 20, 2 << 20
#: Tasks per source, within these limits.
TARGET_TASKS = 16
#: Shorter sources are prepared in one process: starting more takes longer.
MIN_PARALLEL_BYTES = 8 << 20


def encoding_tasks(source: TextSource, survey: Survey, config: DataConfig) -> Iterator[Message]:
    """List the tasks to encode a source, in its order; see :class:`glassgpt.data.corpus.encoding.Encoder`."""
    if not source.single:
        yield from document_tasks(source)
        return
    val_characters = min(round(survey.characters * config.val_fraction), config.max_val_tokens)
    border = survey.byte_of(survey.characters - val_characters)
    for split, begin, end in (("train", survey.begin, border), ("val", border, survey.end)):
        common = {"split": split, "file": str(survey.plain)}
        for first, last in survey.divide(begin, end, task_size(survey.bytes)):
            yield {**common, "begin": first, "end": last, "bytes": last - first, "first": first == begin}


def document_tasks(source: TextSource) -> Iterator[Message]:
    """Group the segments of a source into tasks of about as many bytes each."""
    group: list[list[Any]] = []
    size, limit = 0, task_size(source.size)
    for segment, length in source.segments(limit):
        if group and size + length > limit:
            yield {"segments": group, "bytes": size}
            group, size = [], 0
        group.append([str(segment.file), segment.begin, segment.end])
        size += length
    if group:
        yield {"segments": group, "bytes": size}


def task_size(total: int) -> int:
    """Choose the bytes in a task from the size of the source alone."""
    if total < MIN_PARALLEL_BYTES:
        return MAX_TASK_BYTES
    return min(MAX_TASK_BYTES, max(MIN_TASK_BYTES, total // TARGET_TASKS))


def read_settings(source: TextSource, config: DataConfig) -> Message:
    """Give the settings with which a task reads and splits documents."""
    return {"val_fraction": config.val_fraction, "text_field": source.text_field, "separator": source.separator}


def find_source_duplicates(
    source: TextSource,
    config: DataConfig,
    tasks: list[Message],
    scratch: Path,
    *,
    processes: int = 1,
    progress: Progress | None = None,
) -> Duplicates:
    """Find the duplicates of a source; see :func:`glassgpt.data.audit.duplicates.find_duplicates`.

    ``tasks`` are from :func:`document_tasks`; ``scratch`` is a folder for the signatures.

    Raises:
        MissingExtraError: if datasketch is not installed.
    """
    load_datasketch()
    signing = [{**task, "to": str(scratch / f"signatures-{number:05d}.npy")} for number, task in enumerate(tasks)]
    done, total = 0, sum(task["bytes"] for task in tasks)
    for number, _ in run_tasks(Signer, read_settings(source, config), signing, processes):
        done += tasks[number]["bytes"]
        if progress:
            progress("comparing documents", done, total)
    return find_duplicates([Path(task["to"]) for task in signing])
