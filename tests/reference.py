"""The tables of a pair by slow, obvious numpy from whole models in memory.

Rounding, NaN and the criteria themselves are held against exact fractions in tests/compare; here
it is about the way from files to rows: names, windows, slices, statuses, hashes.
"""

import math
from collections import Counter
from typing import Any

import numpy as np
import xxhash

from rlsparse_ray.blocks import BLOCK

CRITERIA = ("exact", *(f"abs:1e-{n}" for n in range(8, 2, -1)), "rel:1e-3")
Rows = list[dict[str, Any]]


def changed(base: np.ndarray, tuned: np.ndarray, criterion: str) -> np.ndarray:
    """[n] bool for finite values of one dtype."""
    a, b = (side.astype(np.float32).ravel() for side in (base, tuned))
    kind, _, tolerance = criterion.partition(":")
    if kind == "exact":
        return a != b
    scale = np.maximum(abs(a), abs(b)) if kind == "rel" else np.float32(1)
    return abs(b - a) > np.float32(tolerance) * scale


def counts(base: np.ndarray, tuned: np.ndarray) -> dict[str, int]:
    """Changed parameters by criterion."""
    return {c: int(changed(base, tuned, c).sum()) for c in CRITERIA}


def blocks(base: np.ndarray, tuned: np.ndarray, criterion: str) -> Rows:
    """Rows of `masks`, without their key."""
    flags = changed(base, tuned, criterion)
    pieces = [flags[at : at + BLOCK] for at in range(0, flags.size, BLOCK)]
    return [
        {
            "block": number,
            "numel": piece.size,
            "changed": int(piece.sum()),
            "bits": np.packbits(piece, bitorder="little").tobytes(),
        }
        for number, piece in enumerate(pieces)
    ]


def strata(base: np.ndarray, tuned: np.ndarray, criterion: str) -> dict[int, tuple[int, int]]:
    """(numel, changed) by binary exponent of the base; -127: zero and subnormals of bf16."""
    exponents = np.frexp(base.astype(np.float32).ravel())[1] - 1
    exponents[abs(base.astype(np.float32).ravel()) < 2.0**-126] = -127
    flags = changed(base, tuned, criterion)
    return {
        int(e): (int((exponents == e).sum()), int(flags[exponents == e].sum()))
        for e in np.unique(exponents)
    }


def margins(base: np.ndarray, tuned: np.ndarray, criterion: str) -> tuple[list[int], list[int]]:
    """Changed by row and by column."""
    grid = changed(base, tuned, criterion).reshape(-1, base.shape[-1])
    return grid.sum(axis=1).tolist(), grid.sum(axis=0).tolist()


def steps(base: np.ndarray, tuned: np.ndarray) -> dict[tuple[int, int], int]:
    """Parameters by bucket of signed bf16 ULPs."""
    moved = _ordinals(tuned) - _ordinals(base)
    found: Counter[tuple[int, int]] = Counter()
    for step, numel in zip(*np.unique(moved, return_counts=True), strict=True):
        found[_bucket(int(step))] += int(numel)
    return dict(found)


def norms(base: np.ndarray, tuned: np.ndarray) -> tuple[float, float, float]:
    """L2 of the base, L2 and maximum of the update."""
    a, b = (side.astype(np.float32).ravel() for side in (base, tuned))
    delta = (b - a).astype(np.float64)
    squares = (a.astype(np.float64) ** 2).tolist(), (delta**2).tolist()
    return *(math.sqrt(math.fsum(s)) for s in squares), float(abs(delta).max(initial=0.0))


def digest(array: np.ndarray) -> str:
    """XXH3-64 of the stored bytes."""
    return xxhash.xxh3_64_hexdigest(array.tobytes())


def _ordinals(array: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(array).ravel().view(np.uint16).astype(np.int64)
    return np.where(bits & 0x8000, -(bits & 0x7FFF), bits)


def _bucket(step: int) -> tuple[int, int]:
    if step == 0:
        return 0, 0
    high = 1 << (abs(step) - 1).bit_length()
    low = high // 2 + 1
    return (low, high) if step > 0 else (-high, -low)
