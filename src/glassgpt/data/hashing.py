"""A hash of 64-bit numbers, for reproducible random orders and for fingerprints of text."""

import numpy as np


def splitmix64(numbers: np.ndarray) -> np.ndarray:
    """Scramble 64-bit numbers, one to one (the finaliser of Steele, Lea and Flood's SplitMix64)."""
    x = numbers + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
