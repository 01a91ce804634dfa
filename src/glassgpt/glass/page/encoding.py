"""Numbers and texts as text inside an HTML file: exact, and small."""

import base64
import gzip
import json
from typing import Any

import numpy as np


def encode_floats(values: np.ndarray) -> str:
    """Encode float32 numbers: byte 0 of all numbers, then byte 1 and so on, compressed with gzip, as base64.

    The bytes with the exponents compress, and compress better beside each other. The shape is not kept.
    """
    planes = np.ascontiguousarray(values, dtype="<f4").reshape(-1, 1).view(np.uint8).T
    return encode_bytes(planes.tobytes())


def encode_bytes(content: bytes) -> str:
    """Compress bytes with gzip and write them as base64, the same for the same bytes."""
    return base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode("ascii")


def encode_json(value: Any) -> str:
    """Write JSON that is safe between <script> tags: in ASCII, without ``<``, ``>`` and ``&``."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
