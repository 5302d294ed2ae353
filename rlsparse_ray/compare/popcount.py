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
            found[b, i] = _words(blocks[b, i], words)


TILE = 4
"""Masks on a side of the squares in which pairs are counted."""


@numba.njit(cache=True, nogil=True)
def _count(blocks: Any, words: Any, wanted: Any, shared: Any, squares: Any) -> None:
    """All pairs of a block before the next block is touched, in squares of four masks by four.

    A square loads each word once for four pairs: 0.16 ms for all pairs of 64 blocks, in squares of
    two by two 0.21 ms, pair after pair 0.26 ms.
    """
    masks = blocks.shape[1]
    bits = np.empty((TILE, TILE), np.int64)
    for b in range(blocks.shape[0]):
        for i in range(0, masks, TILE):
            for j in range(0, masks, TILE):
                if not wanted[i : i + TILE, j : j + TILE].any():
                    continue
                _square(_four(blocks[b], i, words), _four(blocks[b], j, words), bits)
                for u in range(min(TILE, masks - i)):
                    for v in range(min(TILE, masks - j)):
                        if wanted[i + u, j + v]:
                            shared[i + u, j + v] += bits[u, v]
                            squares[i + u, j + v] += bits[u, v] * bits[u, v]


@numba.njit(inline="always")
def _words(address: Any, words: Any) -> Any:
    return numba.carray(words_at(address), words)


@numba.njit(inline="always")
def _four(addresses: Any, first: Any, words: Any) -> Any:
    """The words of four masks; the last one stands in for those beyond it."""
    last = addresses.size - 1
    return (
        _words(addresses[first], words),
        _words(addresses[min(first + 1, last)], words),
        _words(addresses[min(first + 2, last)], words),
        _words(addresses[min(first + 3, last)], words),
    )


@numba.njit(inline="always")
def _square(rows: Any, columns: Any, bits: Any) -> None:
    """Bits that each of four masks shares with each of four others, into [4, 4].

    Sixteen sums by name: in an array they would not stay in registers.
    """
    a, b, c, d = rows
    e, f, g, h = columns
    ae, af, ag, ah = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
    be, bf, bg, bh = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
    ce, cf, cg, ch = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
    de, df, dg, dh = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
    for w in range(a.size):
        p, q, r, s = e[w], f[w], g[w], h[w]
        ae, af = ae + popcount(a[w] & p), af + popcount(a[w] & q)
        ag, ah = ag + popcount(a[w] & r), ah + popcount(a[w] & s)
        be, bf = be + popcount(b[w] & p), bf + popcount(b[w] & q)
        bg, bh = bg + popcount(b[w] & r), bh + popcount(b[w] & s)
        ce, cf = ce + popcount(c[w] & p), cf + popcount(c[w] & q)
        cg, ch = cg + popcount(c[w] & r), ch + popcount(c[w] & s)
        de, df = de + popcount(d[w] & p), df + popcount(d[w] & q)
        dg, dh = dg + popcount(d[w] & r), dh + popcount(d[w] & s)
    bits[0, 0], bits[0, 1], bits[0, 2], bits[0, 3] = ae, af, ag, ah
    bits[1, 0], bits[1, 1], bits[1, 2], bits[1, 3] = be, bf, bg, bh
    bits[2, 0], bits[2, 1], bits[2, 2], bits[2, 3] = ce, cf, cg, ch
    bits[3, 0], bits[3, 1], bits[3, 2], bits[3, 3] = de, df, dg, dh
