"""What a preparation consists of: tasks of some tens of megabytes, divided by the sizes of the files alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glassgpt.config import DataConfig
from glassgpt.data.audit.duplicates import Duplicates, find_duplicates
from glassgpt.data.corpus.encoding import Signer
from glassgpt.data.sources.source import TextSource, Survey
from glassgpt.files import Progress
from glassgpt.workers import Message, run_tasks

#: Bytes of text in a task at most, and of a source of several at least: what several processes take in turn.
TASK, SMALL_TASK = 32 << 20, 2 << 20
#: Tasks that a source is divided into, if they are neither too large nor too small.
TASKS = 16
#: Shorter sources are prepared in one process: starting others takes longer.
WORTH_PROCESSES = 8 << 20


def tasks_of(source: TextSource, survey: Survey, config: DataConfig) -> Iterator[Message]:
    """What there is to encode, in the order of the source; see :class:`glassgpt.data.corpus.encoding.Encoder`."""
    if not source.single:
        yield from document_tasks(source)
        return
    cut = min(round(survey.characters * config.val_fraction), config.max_val_tokens)
    place = survey.byte_of(survey.characters - cut)
    for split, begin, end in (("train", survey.begin, place), ("val", place, survey.end)):
        common = {"split": split, "file": str(survey.plain)}
        for first, last in survey.divide(begin, end, task_size(survey.bytes)):
            yield {**common, "begin": first, "end": last, "bytes": last - first, "first": first == begin}


def document_tasks(source: TextSource) -> Iterator[Message]:
    """Segments of a source in groups of about as many bytes."""
    group: list[list[Any]] = []
    size, most = 0, task_size(source.size)
    for segment, length in source.segments(most):
        if group and size + length > most:
            yield {"segments": group, "bytes": size}
            group, size = [], 0
        group.append([str(segment.file), segment.begin, segment.end])
        size += length
    if group:
        yield {"segments": group, "bytes": size}


def task_size(total: int) -> int:
    """Bytes in a task: a function of the size of the source alone."""
    return TASK if total < WORTH_PROCESSES else min(TASK, max(SMALL_TASK, total // TASKS))


def reading(source: TextSource, config: DataConfig) -> Message:
    """What a task has to know to read and split documents."""
    return {
        "val_fraction": config.val_fraction,
        "text_field": source.text_field,
        "separator": source.separator,
    }


def find_source_duplicates(
    source: TextSource,
    config: DataConfig,
    tasks: list[Message],
    scratch: Path,
    *,
    processes: int = 1,
    progress: Progress | None = None,
) -> Duplicates:
    """Documents of a source that repeat an earlier one; see :func:`glassgpt.data.audit.duplicates.find_duplicates`.

    Args:
        source: what to read.
        config: how it is split.
        tasks: the source in parts, from :func:`document_tasks`.
        scratch: a folder for signatures and for what is found.
        processes: to use.
        progress: told while it takes time.
    """
    asked = [{**task, "to": str(scratch / f"signatures-{number:05d}")} for number, task in enumerate(tasks)]
    done, total = 0, sum(task["bytes"] for task in tasks)
    name = f"{Signer.__module__}:{Signer.__name__}"
    for number, _ in run_tasks(name, reading(source, config), asked, processes):
        done += tasks[number]["bytes"]
        if progress:
            progress("comparing documents", done, total)
    return find_duplicates([Path(task["to"]) for task in asked], scratch / "duplicates")
