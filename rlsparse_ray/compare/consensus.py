"""Consensus of N masks: which parameters changed in how many of them, and how many would by chance.

Shapes: N = masks, W = words of 64 parameters, P = bit planes of the counters, S = strata. Bits past
the last parameter are 0 in every mask.
"""

from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt

from rlsparse_ray.compare.bitops import popcount

Words = npt.NDArray[np.uint64]

_CHUNK = 64
"""Words counted at a time: counters and leaves of a chunk stay in the L1 cache up to N = 63."""

_STRATA = 8192
"""Strata in a step of the expectation: 4 MiB a table at N = 64."""

_jit = nb.njit(nogil=True, cache=True, error_model="numpy")


def count_masks(words: Words) -> Words:
    """Bit-sliced counters of masks [N, W]: planes [P, W], P the bits of N.

    Bit i of `planes[p, w]` is bit p of the number of masks in which bit i of word w is set.
    """
    planes = np.zeros((len(words).bit_length(), words.shape[1]), np.uint64)
    _count(np.ascontiguousarray(words), planes)
    return planes


def histogram(planes: Words, masks: int, numel: int) -> npt.NDArray[np.int64]:
    """How many of `numel` parameters changed in exactly c of `masks` masks, c = 0 .. masks."""
    leaves = np.zeros(1 << len(planes), np.int64)
    _leaves(planes, leaves)
    leaves[0] -= 64 * planes.shape[1] - numel
    return leaves[: masks + 1]


def at_least(planes: Words, k: int) -> Words:
    """The words [W] of the parameters that changed in at least `k` masks.

    `k` = N is the core (changed in all) and `k` = 1 the union (changed in any).

    Raises:
        ValueError: k is below 1: bits past the last parameter would be set.
    """
    if k < 1:
        raise ValueError(f"at least {k} masks: say 1 or more")
    if k.bit_length() > len(planes):
        return np.zeros(planes.shape[1], np.uint64)
    more = np.zeros(planes.shape[1], np.uint64)
    equal = np.full(planes.shape[1], ~np.uint64(0))
    for p in reversed(range(len(planes))):
        if k >> p & 1:
            equal &= planes[p]
        else:
            more |= equal & planes[p]
            equal &= ~planes[p]
    return more | equal


def expected_histogram(
    changed: npt.NDArray[np.int64], numel: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """The histogram [N + 1] if the N masks were independent within each stratum.

    In a stratum of `numel` [S] parameters, of which mask i changed `changed` [S, N], a parameter
    changes in mask i with p_i = changed / numel, and the number of masks it changes in is
    Poisson-binomial. Its distribution is convolved mask by mask, all strata at once.
    """
    masks = changed.shape[1]
    total = np.zeros(masks + 1)
    for start in range(0, len(numel), _STRATA):
        size = numel[start : start + _STRATA].astype(np.float64)
        table = np.zeros((len(size), masks + 1))
        table[:, 0] = size
        for i in range(masks):
            p = (changed[start : start + _STRATA, i] / np.maximum(size, 1.0))[:, None]
            stepped = table[:, : i + 1] * p
            table[:, : i + 1] *= 1.0 - p
            table[:, 1 : i + 2] += stepped
        total += table.sum(axis=0)
    return total


@_jit
def _count(words: Any, planes: Any) -> None:
    """Two masks a step: a full adder into plane 0, half adders for its carry above."""
    masks, width = words.shape
    carry = np.empty(_CHUNK, np.uint64)
    for start in range(0, width, _CHUNK):
        stop = min(width, start + _CHUNK)
        for i in range(0, masks, 2):
            low, first = planes[0, start:stop], words[i, start:stop]
            if i + 1 < masks:
                second = words[i + 1, start:stop]
                for k in range(stop - start):
                    half = first[k] ^ second[k]
                    carry[k] = (first[k] & second[k]) | (low[k] & half)
                    low[k] ^= half
            else:
                for k in range(stop - start):
                    carry[k] = low[k] & first[k]
                    low[k] ^= first[k]
            p, most = 1, (i + 2) >> 1
            while most and p < planes.shape[0]:
                plane = planes[p, start:stop]
                for k in range(stop - start):
                    over = plane[k] & carry[k]
                    plane[k] ^= carry[k]
                    carry[k] = over
                p, most = p + 1, most >> 1


@_jit
def _leaves(planes: Any, leaves: Any) -> None:
    """Parameters by the value of their counter: each plane splits every node of a binary tree."""
    depth, width = planes.shape
    nodes = np.empty((leaves.size, _CHUNK), np.uint64)
    for start in range(0, width, _CHUNK):
        size = min(_CHUNK, width - start)
        nodes[0, :size] = ~np.uint64(0)
        for level in range(depth):
            plane = planes[depth - 1 - level]
            # downwards: a node's children lie at or above its own place
            for j in range((1 << level) - 1, -1, -1):
                for k in range(size):
                    node, bit = nodes[j, k], plane[start + k]
                    nodes[2 * j + 1, k] = node & bit
                    nodes[2 * j, k] = node & ~bit
        for j in range(leaves.size):
            found = np.uint64(0)
            for k in range(size):
                found += popcount(nodes[j, k])
            leaves[j] += np.int64(found)
