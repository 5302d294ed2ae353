"""Bits that two masks share, for many masks at once.

A block of a mask is named by the address of its words, so that blocks are counted where Parquet's
decoder put them: copying them side by side first cost as much as half the counting. Block by block,
so that one block of every mask (8 KiB each) stays in the cache while all pairs of it are counted.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from rlsparse_ray.compare.bitops import popcount, words_at

Words = npt.NDArray[np.uint64]
Addresses = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


def addresses_of(masks: Words) -> Addresses:
    """Where the blocks of masks [blocks, masks, words] lie: [blocks, masks].

    The caller keeps `masks` alive as long as the addresses are used.
    """
    if not masks.flags.c_contiguous:
        raise ValueError("masks must be C-contiguous")
    blocks, count, words = masks.shape
    numbers = np.arange(blocks * count, dtype=np.uint64).reshape(blocks, count)
    return np.uint64(masks.ctypes.data) + numbers * np.uint64(8 * words)


def shared_bits(
    blocks: Addresses,
    words: int,
    wanted: npt.NDArray[np.bool_] | None = None,
    device: str = "cpu",
) -> tuple[Counts, Counts]:
    """Bits set in masks i and j, and the sum of their squares over the blocks.

    The squares are what the standard error of a sample of blocks is computed from.

    Args:
        blocks: addresses [blocks, masks] of the words of each block; the memory is the caller's.
        words: uint64 words in each; a shorter block is padded with zero words.
        wanted: [masks, masks]; only pairs that are true in it are counted (for new masks against
            all others, say), the rest stays 0. None: every i < j.
        device: cpu, cuda, cuda:1, ... The integers are the same on each.

    Returns:
        shared and squares, both [masks, masks] int64.

    Example:
        >>> a = np.array([[[0b1110], [0b0111]]], np.uint64)
        >>> shared_bits(addresses_of(a), 1)[0].tolist()
        [[0, 2], [0, 0]]
    """
    count = blocks.shape[1]
    if wanted is None:
        wanted = np.triu(np.ones((count, count), np.bool_), 1)
    if device != "cpu":
        from rlsparse_ray.compare.popcount_torch import shared_bits_torch  # noqa: PLC0415

        return shared_bits_torch(gather(blocks, words), wanted, device)
    shared = np.zeros((count, count), np.int64)
    squares = np.zeros((count, count), np.int64)
    _count(blocks, words, wanted, shared, squares)
    return shared, squares


def gather(blocks: Addresses, words: int) -> Words:
    """The blocks at these addresses [blocks, masks], side by side: [blocks, masks, words]."""
    found = np.empty((*blocks.shape, words), np.uint64)
    _gather(blocks, found)
    return found


@numba.njit(cache=True, nogil=True)
def _gather(blocks: Any, found: Any) -> None:
    count, masks, words = found.shape
    for b in range(count):
        for i in range(masks):
            found[b, i] = numba.carray(words_at(blocks[b, i]), words)


@numba.njit(cache=True, nogil=True)
def _count(blocks: Any, words: Any, wanted: Any, shared: Any, squares: Any) -> None:
    """All pairs of a block before the next block is touched."""
    for b in range(blocks.shape[0]):
        for i in range(blocks.shape[1]):
            x = numba.carray(words_at(blocks[b, i]), words)
            for j in range(blocks.shape[1]):
                if not wanted[i, j]:
                    continue
                y = numba.carray(words_at(blocks[b, j]), words)
                total = np.uint64(0)
                for w in range(words):
                    total += popcount(x[w] & y[w])
                bits = np.int64(total)
                shared[i, j] += bits
                squares[i, j] += bits * bits
