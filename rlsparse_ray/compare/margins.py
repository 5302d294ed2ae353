"""Kernels that count the set bits of a mask by row and by column."""

from typing import Any

import numba as nb
import numpy as np

from rlsparse_ray.compare.bitops import popcount, trailing_zeros

PLANES = 8
"""Binary digits of the column counts: 255 rows are added up before they go to integers."""

jit = nb.njit(nogil=True, cache=True, error_model="numpy")


@jit
def add_margins(words: Any, start: int, rows: Any, columns: Any) -> None:
    """Set bits by row and column; `start` is the place of the first one in the tensor."""
    width = columns.size
    if width % 64 == 0:
        _add_aligned_margins(words, start // 64, rows, columns)
        return
    for w in range(words.size):
        word = words[w]
        while word:
            at = start + 64 * w + np.int64(trailing_zeros(word))
            rows[at // width] += 1
            columns[at % width] += 1
            word &= word - np.uint64(1)


@jit
def _add_aligned_margins(words: Any, first: int, rows: Any, columns: Any) -> None:
    """Rows of whole words: columns are counted in binary, plane p holding digit p of each.

    So 512 columns are added in one instruction: 1 us a block, where adding each row to integers
    took 6.
    """
    width = columns.size // 64
    planes, carry = np.zeros((PLANES, width), np.uint64), np.empty(width, np.uint64)
    added, w = 0, 0
    while w < words.size:
        row, at = (first + w) // width, (first + w) % width
        part = words[w : w + min(width - at, words.size - w)]
        count = np.uint64(0)
        for v in range(part.size):
            count += popcount(part[v])
        rows[row] += count
        _add_to_planes(part, at, planes, carry)
        w += part.size
        added += 1
        if added == (1 << PLANES) - 1 or w == words.size:
            _empty_planes(planes, columns)
            added = 0


@jit
def _add_to_planes(part: Any, at: int, planes: Any, carry: Any) -> None:
    """A row of words from column word `at` on; what a digit carries goes to the next one."""
    taken = part
    for p in range(PLANES):
        # a contiguous slice each: a slice of both axes would not vectorise
        plane, rest = planes[p][at : at + part.size], np.uint64(0)
        for v in range(part.size):
            digit, word = plane[v], taken[v]
            plane[v] = digit ^ word
            carry[v] = digit & word
            rest |= carry[v]
        if rest == 0:
            return
        taken = carry


@jit
def _empty_planes(planes: Any, columns: Any) -> None:
    for p in range(PLANES):
        for v in range(planes.shape[1]):
            word = planes[p, v]
            if word:
                planes[p, v] = 0
                part = columns[64 * v : 64 * v + 64]
                for k in range(64):
                    part[k] += np.int32((word >> np.uint64(k)) & np.uint64(1)) << np.int32(p)
