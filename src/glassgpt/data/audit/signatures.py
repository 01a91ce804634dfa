"""Signatures of documents: what duplicates are found by, computed document by document.

Two documents are compared by their sets of shingles, the runs of five consecutive words (see
:mod:`glassgpt.data.audit.words`); a document of fewer words has one shingle, all of its words. Their similarity is
that of Jaccard: shingles in both, divided by shingles in either. A sketch of :data:`PERMUTATIONS` numbers is kept of
each document, the least of each of as many hash functions of its shingles; the share of numbers that agree between two
sketches estimates the similarity (Broder 1997, "On the resemblance and containment of documents").
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from glassgpt.data.audit.words import mixed, stretches
from glassgpt.errors import DataError

#: Numbers of a sketch.
PERMUTATIONS = 128
#: Words of a shingle.
SHINGLE = 5
#: All numbers of the sketch of a document without words.
NO_WORDS = np.uint32(0xFFFFFFFF)

_VERSION = "1"
_SHAPES: dict[str, tuple[str, str, list[int]]] = {  # as safetensors and numpy call the type; what a row is
    "digest": ("U8", "u1", [16]),
    "sketches": ("U32", "<u4", [PERMUTATIONS]),
    "validation": ("BOOL", "?", []),
}


@dataclass(frozen=True)
class Signatures:
    """What is kept of some documents for finding duplicates among them.

    Attributes:
        digest: of the text (BLAKE2b of 16 bytes), ``[D, 16]`` uint8.
        sketches: ``[D, PERMUTATIONS]`` uint32.
        validation: whether the document is validated with, ``[D]`` bool.
    """

    digest: np.ndarray
    sketches: np.ndarray
    validation: np.ndarray

    def __len__(self) -> int:
        return len(self.validation)

    def save(self, path: Path) -> None:
        """Write them to a safetensors file, whole or not at all."""
        part = path.with_name(f".{path.name}.{os.urandom(8).hex()}.part")
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _SHAPES}
        try:
            save_file(tensors, part, metadata={"format": "glassgpt signatures", "version": _VERSION})
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> "Signatures":
        """Read what :meth:`save` wrote.

        Raises:
            DataError: if the file is not there, or is something else, or was cut short.
        """
        file = SignatureFile(path)
        return cls(*(file.rows(name, 0, file.documents) for name in _SHAPES))


def sign(texts: Iterable[str], validation: Iterable[bool]) -> Signatures:
    """Sign documents: a function of their texts alone, on every machine.

    Args:
        texts: the documents; one, and arrays of a few MB, are in memory at a time.
        validation: for each, whether it is validated with; taken after its text.

    Raises:
        ValueError: if there are not as many of both.
    """
    digests: list[bytes] = []
    sides: list[bool] = []

    def passed() -> Iterator[str]:
        for text, side in zip(texts, validation, strict=True):
            digests.append(_digest(text))
            sides.append(side)
            yield text

    sketches = list(_sketches(passed()))
    return Signatures(
        np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 16),
        np.concatenate(sketches) if sketches else np.empty((0, PERMUTATIONS), dtype=np.uint32),
        np.array(sides, dtype=bool),
    )


def _digest(text: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for begin in range(0, len(text), 1 << 20):
        digest.update(text[begin : begin + (1 << 20)].encode("utf-8", "surrogatepass"))
    return digest.digest()


def _sketches(texts: Iterable[str]) -> Iterator[np.ndarray]:
    """The sketches of documents, in order, ``[d, PERMUTATIONS]`` uint32 at a time."""
    done, going_on = 0, np.full((1, PERMUTATIONS), NO_WORDS)  # documents that are done; the sketch so far of the next
    for stretch in stretches(texts, SHINGLE):
        complete = stretch.words.complete
        first = np.concatenate([stretch.windows(SHINGLE), stretch.short[0]])
        end = np.concatenate([stretch.windows(SHINGLE) + SHINGLE, stretch.short[1]])
        sketches = np.full((complete - done + 1, PERMUTATIONS), NO_WORDS)
        sketches[0] = going_on
        if len(first):
            documents = stretch.words.texts[first]
            begins = np.flatnonzero(np.append(True, documents[1:] != documents[:-1]))  # each has its own in a row
            rows = documents[begins] - done
            shingles = (stretch.hashes(first, end) >> np.uint64(32)).astype(np.uint32)
            sketches[rows] = np.minimum(sketches[rows], _least(shingles, begins).T)
        yield sketches[:-1]
        done, going_on = complete, sketches[-1:]


def _least(shingles: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """The least hash of each run of shingles, for each hash function, ``[PERMUTATIONS, runs]`` uint32.

    The functions are a * x + b modulo 2 ** 32 with a odd: one to one, of numbers that are hashes already.
    """
    factors, terms = (numbers.astype(np.uint32) for numbers in np.split(numbers(2 * PERMUTATIONS), 2))
    least = np.empty((PERMUTATIONS, len(begins)), dtype=np.uint32)
    hashes = np.empty_like(shingles)
    for number in range(PERMUTATIONS):
        np.multiply(shingles, factors[number] | np.uint32(1), out=hashes)
        np.add(hashes, terms[number], out=hashes)
        np.minimum.reduceat(hashes, begins, out=least[number])
    return least


@lru_cache(maxsize=8)
def numbers(count: int) -> np.ndarray:
    """Always the same numbers, ``[count]`` uint64."""
    return mixed(mixed(np.arange(1, count + 1, dtype=np.uint64)))


# --- reading signatures ----------------------------------------------------------------------------------------------


class SignatureFile:
    """A file of signatures, of which rows are read as they are needed."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                if length > 1 << 16:
                    raise ValueError("its header is too long")
                header = json.loads(stream.read(length))
            if header.pop("__metadata__") != {"format": "glassgpt signatures", "version": _VERSION}:
                raise ValueError("it is of another version")
            self.documents = int(header["validation"]["shape"][0])
            for name, (dtype, _, shape) in _SHAPES.items():
                if (header[name]["dtype"], header[name]["shape"]) != (dtype, [self.documents, *shape]):
                    raise ValueError(f"{name} is {header[name]['dtype']} {header[name]['shape']}")
            self.begins = {name: 8 + length + int(header[name]["data_offsets"][0]) for name in _SHAPES}
            end = 8 + length + max(tensor["data_offsets"][1] for tensor in header.values())
            if path.stat().st_size != end:
                raise ValueError(f"it has {path.stat().st_size} bytes instead of {end}")
        except OSError as error:
            raise DataError(f"the signatures {path} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} holds no signatures that can be read: {error}") from None

    def rows(self, name: str, begin: int, end: int) -> np.ndarray:
        """Some rows of one array."""
        return self.picked(name, [(begin, end)])

    def picked(self, name: str, runs: Iterable[tuple[int, int]]) -> np.ndarray:
        """Rows of one array, from some runs of them: the first of each, and the one behind its last."""
        _, dtype, shape = _SHAPES[name]
        size, offset = math.prod(shape) * np.dtype(dtype).itemsize, self.begins[name]
        read = []
        with self.path.open("rb", buffering=0) as stream:
            for begin, end in runs:
                stream.seek(offset + begin * size)
                read.append(stream.read((end - begin) * size))
        return np.frombuffer(b"".join(read), dtype=dtype).reshape(-1, *shape)
