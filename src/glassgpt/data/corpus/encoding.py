"""The tasks of a preparation: a part of the source in, token shards or signatures out."""

import codecs
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from glassgpt.data.audit.duplicates import sign
from glassgpt.data.corpus.shards import SPLITS, write_shard
from glassgpt.data.sources.documents import Segment, is_single, read_segment
from glassgpt.data.sources.textfiles import is_compressed, reading, text_parts
from glassgpt.errors import DataError
from glassgpt.tokenizer import BPETokenizer, Tokenizer, load
from glassgpt.tokenizer.pretokenize import safe_cut
from glassgpt.workers import Message

#: Most tokens in a shard.
SHARD_TOKENS = 1 << 24
#: Characters that are encoded at a time.
CHUNK_CHARS = 4 << 20
#: The same for a tokenizer that cannot encode in chunks: other libraries take up to 140 bytes for each character.
#: At the borders of such chunks the ids may differ from those of the full text.
UNSAFE_CHUNK_CHARS = 2 << 20
#: A file that is one document and longer than this is read in parts.
LONG_DOCUMENT_BYTES = 32 << 20
_COMPRESSION = 16  # assumed ratio of decompressed to compressed bytes
#: Separates documents if the tokenizer has no special token for it.
PARAGRAPH_BREAK = "\n\n"
#: Shorter texts are encoded in this thread: starting more threads takes longer.
_THREADED_CHARS = 1 << 20
#: Characters of validation text that a task decodes again, to check that the ids are lossless.
_CHECKED_CHARS = 1 << 20


def in_validation(parts: Iterable[str], val_fraction: float) -> bool:
    """Whether a document is in the validation split: depends on its content, so new documents never move old ones."""
    return _fraction(_digest(parts)) < val_fraction


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8"))
    return digest.hexdigest()


def _fraction(digest: str) -> float:
    """Map a SHA-256 to a number from 0 to 1."""
    return int(digest[:16], 16) / 2**64


def markers(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Give the ids before and after each document.

    Tokenizers with BOS and EOS get both. If one token serves for both (``<|endoftext|>``), it comes before the
    document, because generation without a prompt starts with it. Without either, a paragraph break comes after it.
    """
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if begin is None and end is None:
        return [], tokenizer.encode(PARAGRAPH_BREAK)
    if begin is None or begin == end:
        return [end if begin is None else begin], []  # type: ignore[list-item]
    return [begin], [] if end is None else [end]


def read_documents(
    task: Message, text_field: str, separator: str, left_out: Counter[str] | None = None
) -> Iterator[Callable[[], Iterable[str]]]:
    """Give, for each document of a task, a function that reads its text in parts.

    A long file that is one document is read again at each call, not held in memory. ``left_out`` counts what has no
    text, as in :func:`glassgpt.data.sources.documents.read_segment`.
    """
    for name, begin, end in task["segments"]:
        file = Path(name)
        if is_single(file, separator):
            with reading(file):
                size = file.stat().st_size * (_COMPRESSION if is_compressed(file) else 1)
            if size > LONG_DOCUMENT_BYTES:
                if not all(part.isspace() for part in text_parts(file)):
                    yield partial(text_parts, file)
                elif left_out is not None:
                    left_out["only white space"] += 1
                continue
        for document in read_segment(Segment(file, begin, end), text_field, separator, left_out):
            yield partial(iter, (document.text,))


def read_range(task: Message) -> Iterator[str]:
    """Read the text between two bytes of a UTF-8 file."""
    decoder, left = codecs.getincrementaldecoder("utf-8")(), task["end"] - task["begin"]
    with reading(path := Path(task["file"])), path.open("rb") as file:
        file.seek(task["begin"])
        while left:
            content = file.read(min(left, 1 << 20))
            if not content:
                raise DataError(f"{path} has become shorter while it was read; try again")
            left -= len(content)
            try:
                text = decoder.decode(content, final=not left)
            except UnicodeDecodeError:
                raise DataError(f"{path} was changed while it was read; try again") from None
            yield text


def rechunk(parts: Iterable[str], size: int = CHUNK_CHARS) -> Iterator[str]:
    """Join the parts of a text and split it at safe places into chunks of about ``size`` characters."""
    searched: list[str] = []  # already searched; no safe split point
    length, rest = 0, ""
    for part in parts:
        rest += part
        while length + len(rest) > size:
            cut = safe_cut(rest, max(size - length, 1))
            if cut is None:
                searched.append(rest[:-2])  # with the next part, a cut beside the last but one may prove safe
                length, rest = length + len(searched[-1]), rest[-2:]
                break
            yield "".join([*searched, rest[:cut]])
            searched, length, rest = [], 0, rest[cut:]
    if searched or rest:
        yield "".join([*searched, rest])


class ShardWriter:
    """Collects the ids of one split in task ``number``, and writes them as shards. ``setup``: see :class:`Encoder`."""

    def __init__(self, setup: Mapping[str, Any], split: str, number: int, dtype: str):
        self.setup, self.split, self.number, self.dtype = setup, split, number, dtype
        self.entries: list[Message] = []
        self.documents = 0
        self._clear()

    def _clear(self) -> None:
        self._parts: list[np.ndarray] = []
        self._starts: list[int] = []
        self._sizes: list[int] = []
        self._count = self._bytes = 0

    def add(self, ids: np.ndarray, size: int, new_document: bool) -> None:
        """Add the ids of ``size`` bytes of text; ``new_document``: a document begins with them."""
        if self._count and self._count + len(ids) > SHARD_TOKENS:
            self.flush()
        if new_document:
            self._starts.append(self._count)
            self._sizes.append(0)
            self.documents += 1
        if self._sizes:
            self._sizes[-1] += size
        self._parts.append(ids.astype(self.dtype))
        self._count += len(ids)
        self._bytes += size

    def flush(self) -> None:
        """Write the collected ids as a shard."""
        tokens = np.concatenate([np.zeros(0, dtype=self.dtype), *self._parts])
        suffix = f"-{len(self.entries)}" if self.entries else ""
        name = f"{self.split}-{self.number:05d}{suffix}.safetensors"
        arrays = [tokens, np.array(self._starts, dtype="<i8"), np.array(self._sizes, dtype="<i8")]
        digest = write_shard(Path(self.setup["folder"]) / name, self.split, self.setup["tokenizer"], arrays)
        self.entries.append(
            {
                "file": name, "split": self.split, "tokens": len(tokens), "documents": len(self._starts),
                "bytes": self._bytes, "sha256": digest,
            }
        )  # fmt: skip
        self._clear()

    def finish(self, required: bool) -> list[Message]:
        """Write the last shard (an empty one if ``required`` and there is no other); give the entries of all shards."""
        if self._count or (required and not self.entries):
            self.flush()
        return self.entries


class Encoder:
    """Encodes the text of a task and writes its shards.

    A task is a part of a single text (``file``, ``begin``, ``end``, ``split``), or some segments of documents
    (``segments``, and optionally ``dropped``: a file with the numbers of documents to leave out, and
    ``switched_split``: the SHA-256 of a document to put into the other split).

    Args:
        setup: ``folder``, ``tokenizer`` (the SHA-256 of its file), ``val_fraction``, ``text_field``, ``separator``.
        tokenizer: the folder's; loaded by default.
    """

    def __init__(self, setup: Message, tokenizer: Tokenizer | None = None):
        self.setup = setup
        self.tokenizer = tokenizer or load(Path(setup["folder"]))
        self.dtype = "<u2" if self.tokenizer.vocab_size <= 2**16 else "<u4"
        self.chunk_chars = CHUNK_CHARS if self.tokenizer.can_encode_in_chunks else UNSAFE_CHUNK_CHARS
        unknown = self.tokenizer.special_tokens().get("unk_token", "")
        self.unknown = self.tokenizer.special_ids().get(unknown)

    def __call__(self, task: Message) -> Message:
        """Do a task; give its shards' entries, whether they are lossless, and the documents of each split or left out.

        Raises:
            DataError: if the source cannot be read.
            TokenizerError: if the tokenizer cannot encode the text.
        """
        self.writers = {split: ShardWriter(self.setup, split, task["number"], self.dtype) for split in SPLITS}
        self.lossless, self.checked = True, 0
        self.extremes: dict[str, str] = {}
        self.left_out: Counter[str] = Counter()
        if isinstance(self.tokenizer, BPETokenizer):
            self.tokenizer.warm_up(task["bytes"])
        if "segments" in task:
            self._documents(task)
        else:
            self._text(task)
        shards = [
            entry
            for split, writer in self.writers.items()
            for entry in writer.finish(required=task.get("split") == split)  # also an empty validation split
        ]
        documents = {split: writer.documents for split, writer in self.writers.items()}
        return {
            "shards": shards, "lossless": self.lossless, "documents": documents, "extremes": self.extremes,
            "left_out": self.left_out,
        }  # fmt: skip

    def _text(self, task: Message) -> None:
        writer = self.writers[task["split"]]
        for chunk in rechunk(read_range(task), self.chunk_chars):
            ids = self._encode(chunk)
            writer.add(ids, len(chunk.encode("utf-8")), new_document=task["first"] and not writer.documents)
            self._check_lossless(task["split"], ids, chunk)

    def _documents(self, task: Message) -> None:
        dropped = set(np.fromfile(task["dropped"], dtype="<i8").tolist()) if "dropped" in task else set()
        found = read_documents(task, self.setup["text_field"], self.setup["separator"], self.left_out)
        for row, read in enumerate(found):
            if row not in dropped:
                self._document(read, task.get("switched_split"))

    def _document(self, read: Callable[[], Iterable[str]], switched_split: str | None) -> None:
        split = self._choose_split(_digest(read()), switched_split)
        (before, after), writer, is_first = self.markers, self.writers[split], True
        for chunk in rechunk(read(), self.chunk_chars):
            ids = self._encode(chunk)
            self._check_lossless(split, ids, chunk)
            writer.add(np.concatenate([before, ids]) if is_first else ids, len(chunk.encode("utf-8")), is_first)
            is_first = False
        if len(after):
            writer.add(after, 0 if len(before) else len(PARAGRAPH_BREAK), new_document=False)

    @cached_property
    def markers(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids before and after each document. Not used for a single text: its tokenizer may not have line ends."""
        before, after = markers(self.tokenizer)
        return np.array(before, dtype=np.int64), np.array(after, dtype=np.int64)

    def _encode(self, text: str) -> np.ndarray:
        if len(text) > _THREADED_CHARS:
            return self.tokenizer.encode_array(text)
        return np.array(self.tokenizer.encode(text), dtype=np.int64)

    def _choose_split(self, digest: str, switched_split: str | None) -> str:
        """Choose the split of a document; remember the document of each split that is nearest to the border."""
        is_validation = (_fraction(digest) < self.setup["val_fraction"]) != (digest == switched_split)
        if is_validation:
            self.extremes["train"] = max(self.extremes.get("train", ""), digest)
        else:
            self.extremes["val"] = min(self.extremes.get("val", digest), digest)
        return "val" if is_validation else "train"

    def _check_lossless(self, split: str, ids: np.ndarray, text: str) -> None:
        """Check that validation ids decode to their text."""
        if split != "val" or not self.lossless:
            return
        if self.unknown is not None and bool((ids == self.unknown).any()):
            self.lossless = False
        elif self.checked < _CHECKED_CHARS:
            self.checked += len(text)
            self.lossless = self.tokenizer.decode(ids.tolist()) == text


class Signer:
    """Writes the signatures of a task's documents, to find duplicates. ``setup``: see :class:`Encoder`."""

    def __init__(self, setup: Message):
        self.setup = setup

    def __call__(self, task: Message) -> Message:
        """Sign the documents of a task; write the file ``to``."""
        validation: list[bool] = []

        def texts() -> Iterator[str]:
            for read in read_documents(task, self.setup["text_field"], self.setup["separator"]):
                text = "".join(read())
                validation.append(in_validation([text], self.setup["val_fraction"]))
                yield text

        np.save(task["to"], sign(texts(), validation))
        return {"documents": len(validation)}
