"""Sign documents, to find duplicates among them. A signature depends on one document alone.

Two documents are compared by their sets of shingles, the runs of five consecutive words (see
:mod:`glassgpt.data.audit.words`); a document of fewer words has one shingle, all of its words. Their similarity is
Jaccard's: shingles in both, divided by shingles in either. A MinHash sketch of a document has :data:`PERMUTATIONS`
numbers: for each of as many hash functions, the minimum over its shingles. The fraction of numbers that agree between
two sketches estimates the similarity (Broder 1997, "On the resemblance and containment of documents").
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from glassgpt.data.audit.words import stretches
from glassgpt.data.hashing import splitmix64
from glassgpt.errors import DataError
from glassgpt.files import atomic_write

#: Numbers in a sketch.
PERMUTATIONS = 128
#: Words in a shingle.
SHINGLE = 5
#: Every number in the sketch of a document without words.
NO_WORDS = np.uint32(0xFFFFFFFF)

_VERSION = "1"
_SHAPES: dict[str, tuple[str, str, list[int]]] = {  # dtype in safetensors and numpy, shape of a row
    "digest": ("U8", "u1", [16]),
    "sketches": ("U32", "<u4", [PERMUTATIONS]),
    "validation": ("BOOL", "?", []),
}


@dataclass(frozen=True)
class Signatures:
    """The signatures of D documents."""

    digest: np.ndarray  # of the text (BLAKE2b of 16 bytes), [D, 16] uint8
    sketches: np.ndarray  # [D, PERMUTATIONS] uint32
    validation: np.ndarray  # whether the document is in the validation split, [D] bool

    def __len__(self) -> int:
        return len(self.validation)

    def save(self, path: Path) -> None:
        """Write them to a safetensors file, atomically."""
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _SHAPES}
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, metadata={"format": "glassgpt signatures", "version": _VERSION})


def sign(texts: Iterable[str], validation: Iterable[bool]) -> Signatures:
    """Sign documents; the same on every machine.

    Args:
        texts: the documents; one, and arrays of a few MB, are in memory at a time.
        validation: whether each is in the validation split; read after its text.

    Raises:
        ValueError: if their numbers are not equal.
    """
    digests: list[bytes] = []
    is_validation: list[bool] = []

    def digested() -> Iterator[str]:
        for text, flag in zip(texts, validation, strict=True):
            digests.append(_digest(text))
            is_validation.append(flag)
            yield text

    sketches = list(_sketches(digested()))
    return Signatures(
        np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 16),
        np.concatenate(sketches) if sketches else np.empty((0, PERMUTATIONS), dtype=np.uint32),
        np.array(is_validation, dtype=bool),
    )


def _digest(text: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for begin in range(0, len(text), 1 << 20):
        digest.update(text[begin : begin + (1 << 20)].encode("utf-8", "surrogatepass"))
    return digest.digest()


def _sketches(texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Compute the sketches of documents, in order, ``[d, PERMUTATIONS]`` uint32 at a time."""
    done, partial = 0, np.full((1, PERMUTATIONS), NO_WORDS)  # finished documents, and the sketch of the current one
    for stretch in stretches(texts, SHINGLE):
        complete = stretch.words.complete
        first = np.concatenate([stretch.windows(SHINGLE), stretch.short[0]])
        end = np.concatenate([stretch.windows(SHINGLE) + SHINGLE, stretch.short[1]])
        sketches = np.full((complete - done + 1, PERMUTATIONS), NO_WORDS)
        sketches[0] = partial
        if len(first):
            documents = stretch.words.texts[first]
            begins = np.flatnonzero(np.append(True, documents[1:] != documents[:-1]))
            rows = documents[begins] - done
            shingles = (stretch.hashes(first, end) >> np.uint64(32)).astype(np.uint32)
            sketches[rows] = np.minimum(sketches[rows], _min_hashes(shingles, begins).T)
        yield sketches[:-1]
        done, partial = complete, sketches[-1:]


def _min_hashes(shingles: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Compute the least hash of each run of shingles, for each hash function, ``[PERMUTATIONS, runs]`` uint32.

    The functions are a * x + b modulo 2 ** 32 with a odd: they are one to one, and x is already a hash.
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
    """Give constant pseudo-random numbers, ``[count]`` uint64."""
    return splitmix64(splitmix64(np.arange(1, count + 1, dtype=np.uint64)))


# --- reading signatures ----------------------------------------------------------------------------------------------


class SignatureFile:
    """Reads rows from a file that :meth:`Signatures.save` wrote.

    Raises:
        DataError: if the file is missing, truncated, or not a file of signatures.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                if length > 1 << 16:
                    raise ValueError("its header is too long")
                header = json.loads(stream.read(length))
            if header.pop("__metadata__") != {"format": "glassgpt signatures", "version": _VERSION}:
                raise ValueError("it has another format or version")
            self.documents = int(header["validation"]["shape"][0])
            for name, (dtype, _, shape) in _SHAPES.items():
                if (header[name]["dtype"], header[name]["shape"]) != (dtype, [self.documents, *shape]):
                    raise ValueError(f"{name} is {header[name]['dtype']} {header[name]['shape']}")
            self.begins = {name: 8 + length + int(header[name]["data_offsets"][0]) for name in _SHAPES}
            end = 8 + length + max(tensor["data_offsets"][1] for tensor in header.values())
            if path.stat().st_size != end:
                raise ValueError(f"it has {path.stat().st_size} bytes, not {end}")
        except OSError as error:
            raise DataError(f"the signatures {path} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not a valid file of signatures: {error}") from None

    def rows(self, name: str, begin: int, end: int) -> np.ndarray:
        """Read rows of one array."""
        return self.read_runs(name, [(begin, end)])

    def read_runs(self, name: str, runs: Iterable[tuple[int, int]]) -> np.ndarray:
        """Read runs of rows of one array; a run is its first row and the one after its last."""
        _, dtype, shape = _SHAPES[name]
        size, offset = math.prod(shape) * np.dtype(dtype).itemsize, self.begins[name]
        content = []
        with self.path.open("rb", buffering=0) as stream:
            for begin, end in runs:
                stream.seek(offset + begin * size)
                content.append(stream.read((end - begin) * size))
        return np.frombuffer(b"".join(content), dtype=dtype).reshape(-1, *shape)
