"""Kernels for floats of up to 32 bits, compiled once a format.

Every kernel takes the tag of a format; its layout becomes compile-time constants, because shifts
and masks by constants vectorise to 16-bit lanes and by variables they do not (extracting exponents
is 5x faster so). Times in the comments are for one core of an AMD EPYC with AVX-512 and one block
of bf16.
"""

from typing import Any

import numba as nb
import numpy as np

from rlsparse_ray.blocks import BLOCK
from rlsparse_ray.compare.bitops import deposit, leading_zeros, popcount, trailing_zeros
from rlsparse_ray.compare.layouts import exponent, is_inf, is_nan, magnitude, regular, value
from rlsparse_ray.compare.margins import add_margins
from rlsparse_ray.compare.window import LANES

STEP_CODES = 128
"""A step is coded as 64 up + bucket (0 .. 32); code 63 is "not finite"."""

_NONFINITE_STEP = 63

jit = nb.njit(nogil=True, cache=True, error_model="numpy")


@jit
def _sum_lanes(lanes: Any) -> float:
    """Add the lanes by halving; they are used up."""
    width = lanes.size
    while width > 1:
        width //= 2
        for j in range(width):
            lanes[j] += lanes[j + width]
    return lanes[0]


@jit
def _code_exponents(block: Any, codes: Any, tag: Any) -> None:
    for i in range(block.size):
        codes[i] = np.uint8(exponent(magnitude(block[i], tag), tag))
    codes[block.size :] = 0


@jit
def _add_squares(values: Any, lanes: Any, tag: Any) -> int:
    """Squares of the finite values into the lanes; returns how many are not finite."""
    irregular = 0
    for j in range(values.size):
        finite = regular(magnitude(values[j], tag), tag)
        v = np.float64(value(values[j], tag)) if finite else 0.0
        lanes[j] += v * v
        irregular += not finite
    return irregular


@jit
def _count_nonfinite(base: Any, tag: Any) -> Any:
    nan, inf = 0, 0
    for i in range(base.size):
        nan += is_nan(magnitude(base[i], tag), tag)
        inf += is_inf(magnitude(base[i], tag), tag)
    return nan, inf


@jit
def scan_base(base: Any, squares: Any, tag: Any) -> Any:
    """Exponent counts [256], NaN and Inf of base bits [n]; sums of squares into [blocks]."""
    n = base.size
    # two exponents at once as one 16-bit number: half the increments, and equal neighbours
    # do not wait for each other's store (12 us a block against 25)
    twins = np.zeros(65536, np.int32)
    codes = np.zeros(BLOCK, np.uint8)
    lanes = np.empty(LANES)
    irregular = 0
    for b in range(squares.size):
        block = base[b * BLOCK : min(n, (b + 1) * BLOCK)]
        _code_exponents(block, codes, tag)
        for twin in codes.view(np.uint16)[: (block.size + 1) // 2]:
            twins[twin] += 1
        lanes[:] = 0.0
        for k in range(0, block.size, LANES):
            irregular += _add_squares(block[k : k + LANES], lanes, tag)
        squares[b] = _sum_lanes(lanes)
    exponents = np.zeros(256, np.int64)
    for high in range(256):
        row = twins[high << 8 : (high + 1) << 8]
        exponents += row
        exponents[high] += row.sum()
    exponents[0] -= n % 2
    nan, inf = _count_nonfinite(base, tag) if irregular else (0, 0)
    return exponents, nan, inf


@jit
def _list_changed(words: Any, index: Any) -> int:
    """Positions of the set bits of `words` into `index`; returns how many."""
    m = 0
    for w in range(words.size):
        word = words[w]
        while word:
            index[m] = 64 * w + np.int64(trailing_zeros(word))
            m += 1
            word &= word - np.uint64(1)
    return m


@jit
def _gather(values: Any, index: Any, out: Any) -> None:
    """out[j] = values[index[j]]."""
    for j in range(index.size):
        out[j] = values[np.uint32(index[j])]


@jit
def _largest_finite(size: Any) -> Any:
    """The order of positive floats is that of their bits, and integer maxima vectorise."""
    bits, most = size.view(np.uint32), np.uint32(0)
    for j in range(bits.size):
        most = max(most, bits[j] if bits[j] < np.uint32(0x7F800000) else np.uint32(0))
    return np.uint32(most).view(np.float32)


@jit
def _sum_squares(size: Any, lanes: Any) -> float:
    """Sum of squares of the finite sizes: entry j of the list goes to lane j % LANES."""
    lanes[:] = 0.0
    for k in range(0, size.size, LANES):
        part = size[k : k + LANES]
        for j in range(part.size):
            d = np.float64(part[j]) if part[j] < np.float32(np.inf) else 0.0
            lanes[j] += d * d
    return _sum_lanes(lanes)


@nb.njit(inline="always")
def _over(kind: int, tolerance: Any, size: Any, scale: Any) -> Any:
    """Whether a difference is above a tolerance that is absolute (kind 1) or relative (2)."""
    return size > (tolerance * scale if kind == 2 else tolerance)


@jit
def _count_over(kind: int, tolerance: Any, size: Any, scale: Any) -> int:
    """How many entries hold under a criterion."""
    count = np.uint32(0)
    if kind == 2:
        for j in range(size.size):
            count += np.uint32(size[j] > tolerance * scale[j])
    else:
        for j in range(size.size):
            count += np.uint32(size[j] > tolerance)
    return count


@jit
def _flag_over(kind: int, tolerance: Any, size: Any, scale: Any, flags: Any) -> None:
    """Which entries hold under a criterion, 64 a word."""
    n = size.size
    for w in range((n + 63) // 64):
        word = np.uint64(0)
        for k in range(min(64, n - 64 * w)):
            j = 64 * w + k
            word |= np.uint64(_over(kind, tolerance, size[j], scale[j])) << np.uint64(k)
        flags[w] = word
    flags[(n + 63) // 64] = 0


@jit
def _keep(bits: Any, flags: Any, words: Any) -> int:
    """The set bits of `bits` whose flag holds, in `words`; the flags are in their order.

    Returns how many are kept.
    """
    j, count = np.uint64(0), np.uint64(0)
    for w in range(bits.size):
        at, shift = j >> np.uint64(6), j & np.uint64(63)
        # two shifts, because one by 64 is undefined
        high = flags[at + np.uint64(1)] << np.uint64(1) << (np.uint64(63) - shift)
        words[w] = deposit((flags[at] >> shift) | high, bits[w])
        count += popcount(words[w])
        j += popcount(bits[w])
    return count


@jit
def _add_exponents(codes: Any, flags: Any, exponents: Any) -> None:
    for j in range(codes.size):
        flag = flags[np.uint32(j) >> np.uint32(6)] >> np.uint64(j & 63)
        exponents[codes[j] & np.uint32(255)] += np.int64(flag & np.uint64(1))


@nb.njit(inline="always")
def _differ(x: Any, y: Any, tag: Any) -> Any:
    return (x != y) & (magnitude(x | y, tag) != 0)


@jit
def _pack(base: Any, tuned: Any, words: Any, tag: Any) -> None:
    """Bits of the values that differ, 64 a word; 6.5 us a block."""
    n = base.size
    for w in range(n // 64):
        word = np.uint64(0)
        for k in range(64):
            word |= np.uint64(_differ(base[64 * w + k], tuned[64 * w + k], tag)) << np.uint64(k)
        words[w] = word
    if n % 64:
        word = np.uint64(0)
        for i in range(n - n % 64, n):
            word |= np.uint64(_differ(base[i], tuned[i], tag)) << np.uint64(i % 64)
        words[n // 64] = word


@jit
def _measure(old: Any, new: Any, size: Any, scale: Any, tag: Any) -> int:
    """|d| and max(|a|, |b|); returns how many entries have a side that is not finite."""
    irregular = 0
    for j in range(old.size):
        a, b = value(old[j], tag), value(new[j], tag)
        size[j] = abs(b - a)
        scale[j] = max(abs(a), abs(b))
        irregular += not (
            regular(magnitude(old[j], tag), tag) & regular(magnitude(new[j], tag), tag)
        )
    return irregular


@jit
def _mend(old: Any, new: Any, size: Any, scale: Any, codes: Any, extra: Any, tag: Any) -> None:
    """A changed value of which a side is not finite is changed under every criterion."""
    for j in range(old.size):
        p, q = magnitude(old[j], tag), magnitude(new[j], tag)
        if not (regular(p, tag) and regular(q, tag)):
            extra[0] += 1
            extra[1] += np.int64(is_nan(q, tag)) - np.int64(is_nan(p, tag))
            extra[2] += np.int64(is_inf(q, tag)) - np.int64(is_inf(p, tag))
            size[j], scale[j] = np.float32(np.inf), np.float32(0)
            codes[j] = exponent(p, tag) | np.uint32(_NONFINITE_STEP << 8)


@jit
def _code(old: Any, new: Any, codes: Any, tag: Any) -> None:
    """Exponent of the base and step code of each entry: exponent | step << 8."""
    for j in range(old.size):
        p, q = magnitude(old[j], tag), magnitude(new[j], tag)
        minus, over = old[j] != p, new[j] != q
        gap = p + q if minus != over else max(p, q) - min(p, q)
        up = minus if minus != over else (q < p if minus else q > p)
        bucket = np.uint32(32) - leading_zeros(np.uint32(gap - np.uint32(1)))
        step = bucket | (np.uint32(64) if up else np.uint32(0))
        codes[j] = exponent(p, tag) | np.uint32(step << np.uint32(8))


@jit
def _add_flags(kind: int, tolerance: Any, size: Any, scale: Any, codes: Any) -> None:
    """One more bit for each code: whether the entry holds under a criterion."""
    for j in range(codes.size):
        over = np.uint32(_over(kind, tolerance, size[j], scale[j]))
        codes[j] |= over * np.uint32(STEP_CODES << 8)


@jit
def compare(  # noqa: PLR0912, PLR0915 (one loop over cache-sized blocks, whose steps are functions)
    base: Any,
    tuned: Any,
    kinds: Any,
    tolerances: Any,
    masked: Any,
    rows: Any,
    columns: Any,
    start: int,
    words: Any,
    block_changed: Any,
    squares: Any,
    tag: Any,
) -> Any:
    """Everything about base against tuned bits [n]; see CpuBackend.compare for the arrays."""
    n = base.size
    changed = np.zeros(kinds.size, np.int64)
    exponents = np.zeros((masked.size, 256), np.int64)
    # the first mask with a tolerance is counted by exponent along with the steps, as one more bit
    joint = 0
    while joint < masked.size and kinds[masked[joint]] == 0:
        joint += 1
    table = np.zeros(STEP_CODES << 9, np.int32)
    extra = np.zeros(3, np.int64)
    largest = np.float32(0)
    bits = np.empty(BLOCK // 64, np.uint64)
    flags = np.empty(BLOCK // 64 + 1, np.uint64)
    index_, codes_ = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.uint32)
    old_, new_ = np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.uint32)
    size_, scale_ = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    lanes = np.empty(LANES)
    for b in range(squares.size):
        at, end = b * BLOCK, min(n, (b + 1) * BLOCK)
        block, other = base[at:end], tuned[at:end]
        used = (end - at + 63) // 64
        _pack(block, other, bits, tag)
        m = _list_changed(bits[:used], index_)
        if m == 0:
            continue
        index, codes = index_[:m], codes_[:m]
        old, new, size, scale = old_[:m], new_[:m], size_[:m], scale_[:m]
        _gather(block, index, old)
        _gather(other, index, new)
        _code(old, new, codes, tag)
        if _measure(old, new, size, scale, tag):
            _mend(old, new, size, scale, codes, extra, tag)
        largest = max(largest, _largest_finite(size))
        squares[b] = _sum_squares(size, lanes)
        for c in range(kinds.size):
            changed[c] += m if kinds[c] == 0 else _count_over(kinds[c], tolerances[c], size, scale)
        for k in range(masked.size):
            c = masked[k]
            out = words[k, at // 64 : at // 64 + used]
            if kinds[c] == 0:
                out[:] = bits[:used]
                block_changed[k, b] = m
                continue
            _flag_over(kinds[c], tolerances[c], size, scale, flags)
            block_changed[k, b] = _keep(bits[:used], flags, out)
            if k > joint:
                _add_exponents(codes, flags, exponents[k])
        if joint < masked.size:
            _add_flags(kinds[masked[joint]], tolerances[masked[joint]], size, scale, codes)
        for j in range(m):
            table[codes[j]] += 1
    if columns.shape[1]:
        for k in range(masked.size):
            add_margins(words[k], start, rows[k], columns[k])
    steps = np.zeros(STEP_CODES, np.int64)
    every, flagged = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for step in range(STEP_CODES):
        low, high = table[step << 8 : (step + 1) << 8], table[(STEP_CODES + step) << 8 :][:256]
        every += low
        flagged += high
        steps[step] = low.sum() + high.sum()
    every += flagged
    for k in range(masked.size):
        if kinds[masked[k]] == 0:
            exponents[k] = every
        elif k == joint:
            exponents[k] = flagged
    return changed, exponents, steps, extra, largest
