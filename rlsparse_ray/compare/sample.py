"""A sample of the blocks of a tensor, and what an estimate from it is worth."""

import math

import numpy as np
import numpy.typing as npt
import xxhash

_GOLDEN = 0x9E3779B97F4A7C15


def sampled_blocks(tensor_key: str, total: int, fraction: float) -> npt.NDArray[np.int64]:
    """Numbers of the blocks to count, ascending: max(2, ceil(fraction total)) of them, or all.

    They are those with the smallest hashes of (tensor_key, block), so they are the same for every
    pair, and a larger fraction holds the blocks of a smaller one. Within a tensor this is a
    simple random sample without replacement; two blocks at least, so that it has a spread.
    """
    size = sample_size(total, fraction)
    if size == total:
        return np.arange(total)
    seed = np.uint64(xxhash.xxh3_64_intdigest(tensor_key.encode()))
    hashes = _mixed(seed + np.arange(1, total + 1, dtype=np.uint64) * np.uint64(_GOLDEN))
    return np.sort(np.argsort(hashes, kind="stable")[:size])


def sample_size(total: int, fraction: float) -> int:
    """How many blocks of `total` are counted.

    >>> [sample_size(n, 0.05) for n in (0, 1, 2, 3, 40, 41, 1000)]
    [0, 1, 2, 2, 2, 3, 50]
    """
    return min(total, max(2, math.ceil(fraction * total)))


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def standard_error(
    total: npt.ArrayLike, squares: npt.ArrayLike, blocks: npt.ArrayLike, blocks_total: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Standard error of K/k * total, the estimate of a tensor's sum from k of its K blocks.

    Blocks are clusters drawn without replacement (Cochran, Sampling Techniques, 1977, eq. 2.20):
    K sqrt((1 - k/K) s^2 / k) with s^2 = (squares - total^2 / k) / (k - 1), where `total` and
    `squares` are the sums over the counted blocks of a block's number and of its square.
    0 when all blocks were counted.

    >>> standard_error(6, 20, 2, 4).round(4).item()
    2.8284
    """
    total, squares = np.asarray(total, np.float64), np.asarray(squares, np.float64)
    k, whole = np.asarray(blocks, np.float64), np.asarray(blocks_total, np.float64)
    spread = np.maximum(squares - total**2 / np.maximum(k, 1), 0) / np.maximum(k - 1, 1)
    return np.asarray(np.sqrt(np.maximum(whole - k, 0) * whole * spread / np.maximum(k, 1)))
