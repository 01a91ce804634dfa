"""The tasks of a preparation, as one process does them: a part of the source in, token shards out."""

import codecs
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from glassgpt.data.audit.duplicates import sign
from glassgpt.data.corpus.shards import SPLITS, write_shard
from glassgpt.data.sources.documents import Segment, is_whole, read_segment, text_parts
from glassgpt.data.sources.textfiles import is_compressed
from glassgpt.errors import DataError
from glassgpt.tokenizer import BPETokenizer, Tokenizer, load
from glassgpt.tokenizer.pretokenize import safe_cut
from glassgpt.workers import Message

#: Tokens in a shard at most.
SHARD = 1 << 24
#: Bytes of text that are encoded at a time, where a text may be cut.
PART = 4 << 20
#: Characters at a time for a tokenizer that cannot encode in chunks: other libraries take up to 140 bytes for each.
#: At the ends of such parts of a longer text the ids may differ from those of the whole.
UNDIVIDED = 2 << 20
#: A file that is one document and longer than this is read in parts.
LONG_DOCUMENT = 32 << 20
_PACKED = 16  # how many times longer what a compressed file holds is taken to be
#: What stands between documents for tokenizers that have no token for it.
BETWEEN = "\n\n"
#: Characters up to which a text is encoded in this thread: starting others takes longer.
_SHORT = 1 << 20
#: Characters of validation text in a task that are decoded again, to see whether the ids hold them.
_DECODED = 1 << 20


def in_validation(parts: Iterable[str], val_fraction: float) -> bool:
    """Whether a document validates: a function of its content, so that adding documents moves no other."""
    return _fraction(_digest(parts).digest()) < val_fraction


def _digest(parts: Iterable[str]) -> "hashlib._Hash":
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8"))
    return digest


def _fraction(digest: bytes) -> float:
    """A SHA-256 as a number from 0 to 1."""
    return int.from_bytes(digest[:8], "big") / 2**64


def markers(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids before and after each document.

    ``<|endoftext|>`` comes first, where one token serves for both ends: so a document's first token is predicted from
    what generation from nothing starts with. Tokenizers with a token for each end get both, those with none two line
    ends after.
    """
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if begin is None and end is None:
        return [], tokenizer.encode(BETWEEN)
    if begin is None or begin == end:
        return [end if begin is None else begin], []  # type: ignore[list-item]
    return [begin], [] if end is None else [end]


def documents_of(segment: Sequence[Any], text_field: str, separator: str) -> Iterator[Callable[[], Iterable[str]]]:
    """The documents of a segment, ``[file, begin, end]``: of each, what gives its text in parts, once or again.

    A long file that is one document is read each time rather than held.
    """
    file = Path(segment[0])
    if is_whole(file, separator):
        size = file.stat().st_size * (_PACKED if is_compressed(file) else 1)
        if size > LONG_DOCUMENT:
            if not all(part.isspace() for part in text_parts(file)):
                yield partial(text_parts, file)
            return
    for document in read_segment(Segment(file, *segment[1:]), text_field, separator):
        yield partial(iter, (document.text,))


def segment_text(task: Message) -> Iterator[str]:
    """The text between two bytes of a UTF-8 file."""
    decoder, left = codecs.getincrementaldecoder("utf-8")(), task["end"] - task["begin"]
    with Path(task["file"]).open("rb") as file:
        file.seek(task["begin"])
        while left:
            content = file.read(min(left, 1 << 20))
            if not content:
                raise DataError(f"{task['file']} has become shorter while it was read")
            left -= len(content)
            yield decoder.decode(content, final=not left)


def divided(parts: Iterable[str], size: int = PART) -> Iterator[str]:
    """A text that comes in parts, in others of about ``size`` characters that end where it may be cut."""
    done: list[str] = []  # searched, with no place to cut
    length, rest = 0, ""
    for part in parts:
        rest += part
        while length + len(rest) > size:
            cut = safe_cut(rest, max(size - length, 1))
            if cut is None:
                done.append(rest[:-2])  # what follows may show that it may be cut before or after the last but one
                length, rest = length + len(done[-1]), rest[-2:]
                break
            yield "".join([*done, rest[:cut]])
            done, length, rest = [], 0, rest[cut:]
    if done or rest:
        yield "".join([*done, rest])


class ShardWriter:
    """Collects the ids of one split of one task, and writes them as shards.

    Args:
        setup: of the task's kind; names the folder and the tokenizer.
        split: "train" or "val".
        number: of the task.
        dtype: of the ids.
    """

    def __init__(self, setup: Mapping[str, Any], split: str, number: int, dtype: str):
        self.setup, self.split, self.number, self.dtype = setup, split, number, dtype
        self.entries: list[Message] = []
        self.documents = 0
        self._begin()

    def _begin(self) -> None:
        self._parts: list[np.ndarray] = []
        self._starts: list[int] = []
        self._sizes: list[int] = []
        self._count = self._bytes = 0

    def add(self, ids: np.ndarray, size: int, starts: bool) -> None:
        """Add ids of ``size`` bytes of text; with ``starts``, a document begins with them."""
        if self._count and self._count + len(ids) > SHARD:
            self.flush()
        if starts:
            self._starts.append(self._count)
            self._sizes.append(0)
            self.documents += 1
        if self._sizes:
            self._sizes[-1] += size
        self._parts.append(ids.astype(self.dtype))
        self._count += len(ids)
        self._bytes += size

    def flush(self) -> None:
        """Write what was collected."""
        tokens = np.concatenate([np.zeros(0, dtype=self.dtype), *self._parts])
        further = f"-{len(self.entries)}" if self.entries else ""
        name = f"{self.split}-{self.number:05d}{further}.safetensors"
        arrays = [tokens, np.array(self._starts, dtype="<i8"), np.array(self._sizes, dtype="<i8")]
        digest = write_shard(Path(self.setup["folder"]) / name, self.split, self.setup["tokenizer"], arrays)
        self.entries.append(
            {
                "file": name, "split": self.split, "tokens": len(tokens), "documents": len(self._starts),
                "bytes": self._bytes, "sha256": digest,
            }
        )  # fmt: skip
        self._begin()

    def finish(self, required: bool) -> list[Message]:
        """Write the rest, and an empty shard if nothing came and one is required; what was written, shard by shard."""
        if self._count or (required and not self.entries):
            self.flush()
        return self.entries


class Encoder:
    """Encodes the text of a task and writes its shards.

    A task is a part of a single text (``file``, ``begin``, ``end``, ``split``), or some segments of documents
    (``segments``, perhaps ``dropped``: a file of rows to leave out, and ``moved``: a document that changes sides).

    Args:
        setup: ``folder``, ``tokenizer`` (the SHA-256 of its file), ``val_fraction``, ``text_field``, ``separator``.
        tokenizer: the folder's, where it is at hand.
    """

    def __init__(self, setup: Message, tokenizer: Tokenizer | None = None):
        self.setup = setup
        self.tokenizer = tokenizer or load(Path(setup["folder"]))
        self.dtype = "<u2" if self.tokenizer.vocab_size <= 2**16 else "<u4"
        self.part = PART if self.tokenizer.can_encode_in_chunks else UNDIVIDED
        unknown = self.tokenizer.special_tokens().get("unk_token", "")
        self.unknown = self.tokenizer.special_ids().get(unknown)

    def __call__(self, task: Message) -> Message:
        """Do a task.

        Raises:
            DataError: if the source cannot be read.
            TokenizerError: if the tokenizer does not know the text.
        """
        self.writers = {split: ShardWriter(self.setup, split, task["number"], self.dtype) for split in SPLITS}
        self.lossless, self.decoded = True, 0
        self.extremes: dict[str, str] = {}
        if isinstance(self.tokenizer, BPETokenizer):
            self.tokenizer.warm_up(task["bytes"])
        if "segments" in task:
            self._documents(task)
        else:
            self._text(task)
        shards = [
            entry
            for split, writer in self.writers.items()
            for entry in writer.finish(required=task.get("split") == split)  # of a text without validation part, too
        ]
        documents = {split: writer.documents for split, writer in self.writers.items()}
        return {"shards": shards, "lossless": self.lossless, "documents": documents, "extremes": self.extremes}

    def _text(self, task: Message) -> None:
        writer = self.writers[task["split"]]
        for part in divided(segment_text(task), self.part):
            ids = self._encoded(part)
            writer.add(ids, len(part.encode("utf-8")), starts=task["first"] and not writer.documents)
            self._look(task["split"], ids, part)

    def _documents(self, task: Message) -> None:
        dropped = set(np.fromfile(task["dropped"], dtype="<i8").tolist()) if "dropped" in task else set()
        row = 0
        for segment in task["segments"]:
            for read in documents_of(segment, self.setup["text_field"], self.setup["separator"]):
                if row not in dropped:
                    self._document(read, task.get("moved"))
                row += 1

    def _document(self, read: Callable[[], Iterable[str]], moved: str | None) -> None:
        split = self._side(_digest(read()), moved)
        (before, after), writer, starts = self.markers, self.writers[split], True
        for part in divided(read(), self.part):
            ids = self._encoded(part)
            self._look(split, ids, part)
            writer.add(np.concatenate([before, ids]) if starts else ids, len(part.encode("utf-8")), starts)
            starts = False
        if len(after):
            writer.add(after, 0 if len(before) else len(BETWEEN), starts=False)

    @cached_property
    def markers(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids before and after each document; a single text has none, nor need its tokenizer know line ends."""
        before, after = markers(self.tokenizer)
        return np.array(before, dtype=np.int64), np.array(after, dtype=np.int64)

    def _encoded(self, part: str) -> np.ndarray:
        if len(part) > _SHORT:
            return self.tokenizer.encode_array(part)
        return np.array(self.tokenizer.encode(part), dtype=np.int64)

    def _side(self, digest: "hashlib._Hash", moved: str | None) -> str:
        """The split of a document; the nearest to the border on each side is remembered."""
        name, fraction = digest.hexdigest(), _fraction(digest.digest())
        validates = (fraction < self.setup["val_fraction"]) != (name == moved)
        if validates:
            self.extremes["train"] = max(self.extremes.get("train", ""), name)
        else:
            self.extremes["val"] = min(self.extremes.get("val", name), name)
        return "val" if validates else "train"

    def _look(self, split: str, ids: np.ndarray, text: str) -> None:
        """See whether validation ids hold their text."""
        if split != "val" or not self.lossless:
            return
        if self.unknown is not None and bool((ids == self.unknown).any()):
            self.lossless = False
        elif self.decoded < _DECODED:
            self.decoded += len(text)
            self.lossless = self.tokenizer.decode(ids.tolist()) == text


class Signer:
    """Writes the signatures of a task's documents, by which duplicates are found.

    Args:
        setup: as for :class:`Encoder`.
    """

    def __init__(self, setup: Message):
        self.setup = setup

    def __call__(self, task: Message) -> Message:
        """Do a task; its file goes to ``to``."""
        sides: list[bool] = []

        def texts() -> Iterator[str]:
            for segment in task["segments"]:
                for read in documents_of(segment, self.setup["text_field"], self.setup["separator"]):
                    text = "".join(read())
                    sides.append(in_validation([text], self.setup["val_fraction"]))
                    yield text

        signatures = sign(texts(), sides)
        signatures.save(Path(task["to"]))
        return {"documents": len(sides)}
