"""What a rank adds to a sum in tests: made from a seed, so that every process knows what all of them have."""

from __future__ import annotations

import functools
import hashlib

import numpy as np

SPOILED = {"nan": np.nan, "infinity": np.inf, "minus infinity": -np.inf}
"""Kinds in which one rank has one number that is not finite, at ``spoiled_at``."""


@functools.lru_cache(maxsize=100)
def part(kind: str, count: int, seed: int, rank: int) -> np.ndarray:
    """Rank ``rank``'s float32 numbers.

    ``normal``: of one size. ``gradient``: of sizes that differ by 10^6 and from block to block. ``large``: from 20,000
    to 65,000, so that no sum fits into a half. ``signs``: they cancel each other but for the last bits. Not to be
    changed: it is the same array every time.
    """
    random = np.random.default_rng([seed, rank])
    if kind == "large":
        return random.uniform(2e4, 6.5e4, count).astype(np.float32)
    if kind == "gradient":
        return (random.standard_normal(count) * 10.0 ** random.uniform(-8, -2, count)
                * 2.0 ** (np.arange(count) // 512 % 20)).astype(np.float32)
    if kind == "signs":
        common = np.random.default_rng(seed).standard_normal(count)
        return (common * (-1) ** rank * (1 + 1e-3 * random.standard_normal(count))).astype(np.float32)
    values = random.standard_normal(count).astype(np.float32)
    if kind in SPOILED and rank == 1 and count:
        values[spoiled_at(count)] = SPOILED[kind]
    return values


def spoiled_at(count: int) -> int:
    return (2 * count) // 3


def hashed(values: np.ndarray) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()
