"""Bits that two masks share, for many masks at once.

Masks come as [blocks, masks, words] uint64: block by block, so that one block of every mask
(8 KiB each) lies together and stays in the cache while all pairs of it are counted. A short block
is padded with zero words.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from rlsparse_ray.compare.bitops import popcount

Words = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


def shared_bits(
    masks: Words, wanted: npt.NDArray[np.bool_] | None = None, device: str = "cpu"
) -> tuple[Counts, Counts]:
    """Bits set in masks i and j, and the sum of their squares over the blocks.

    The squares are what the standard error of a sample of blocks is computed from.

    Args:
        masks: [blocks, masks, words].
        wanted: [masks, masks]; only pairs that are true in it are counted (for new masks against
            all others, say), the rest stays 0. None: every i < j.
        device: cpu, cuda, cuda:1, ... The integers are the same on each.

    Returns:
        shared and squares, both [masks, masks] int64.

    Example:
        >>> a = np.array([[[0b1110], [0b0111]]], np.uint64)
        >>> shared_bits(a)[0].tolist()
        [[0, 2], [0, 0]]
    """
    count = masks.shape[1]
    if wanted is None:
        wanted = np.triu(np.ones((count, count), np.bool_), 1)
    if device != "cpu":
        from rlsparse_ray.compare.popcount_torch import shared_bits_torch  # noqa: PLC0415

        return shared_bits_torch(masks, wanted, device)
    shared = np.zeros((count, count), np.int64)
    squares = np.zeros((count, count), np.int64)
    _count(masks, wanted, shared, squares)
    return shared, squares


@numba.njit(cache=True, nogil=True)
def _count(masks: Any, wanted: Any, shared: Any, squares: Any) -> None:
    """All pairs of a block before the next block is touched."""
    blocks, count, words = masks.shape
    for b in range(blocks):
        for i in range(count):
            x = masks[b, i]
            for j in range(count):
                if not wanted[i, j]:
                    continue
                y = masks[b, j]
                total = np.uint64(0)
                for w in range(words):
                    total += popcount(x[w] & y[w])
                bits = np.int64(total)
                shared[i, j] += bits
                squares[i, j] += bits * bits
