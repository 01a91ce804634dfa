"""Seeds that are pure functions of their parts, so that no random state has to be saved."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a pure function of its parts, independent for different parts."""
    digest = hashlib.sha256(repr(parts).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "little") >> 1
