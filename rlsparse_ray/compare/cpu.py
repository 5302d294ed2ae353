"""The CPU backend: one fused pass over cache-sized blocks, compiled by numba.

A block (128 KiB a side in bf16) is compared and packed in a vectorised loop; everything else runs
over the list of its changed values only, which is short when updates are sparse.
"""

from typing import Any, NamedTuple

import numba as nb
import numpy as np

from rlsparse_ray.blocks import BLOCK
from rlsparse_ray.compare.bitops import leading_zeros, trailing_zeros
from rlsparse_ray.compare.cast import Bits
from rlsparse_ray.compare.formats import FORMATS, MAX_BUCKET, Format
from rlsparse_ray.compare.window import LANES, BaseWindow, Margins, PairWindow, Request

_jit = nb.njit(nogil=True, cache=True, error_model="numpy")
_inline = nb.njit(nogil=True, cache=True, error_model="numpy", inline="always")

_KINDS = {"exact": 0, "abs": 1, "rel": 2}


class _Layout(NamedTuple):
    """A format as the kernels see it; `lut` is empty where the value is `bits << shift`."""

    magnitude: Any
    mantissa_bits: int
    inf: Any
    nan_from: Any
    nonfinite: Any
    exponents: int
    shift: int
    lut: Any


def _layout(fmt: Format) -> _Layout:
    direct = fmt.name in ("BF16", "F32")
    every = np.arange(0 if direct else 1 << fmt.bits).astype(fmt.unsigned)
    u32 = np.uint32
    return _Layout(
        u32(fmt.magnitude_mask),
        fmt.mantissa_bits,
        u32(min(fmt.inf, 0xFFFF_FFFF)),
        u32(fmt.nan_from),
        u32(fmt.nonfinite_from),
        fmt.exponents,
        16 if fmt.name == "BF16" else 0,
        every.view(fmt.numpy).astype(np.float32),
    )


_LAYOUTS = {f.name: _layout(f) for f in FORMATS.values() if f.kind == "float" and f.bits <= 32}


class CpuBackend:
    """Floats of up to 32 bits on the CPU; the torch backend serves the rare other formats."""

    # base and tuned windows of 2 MiB each in bf16 stay in the L3 cache between read and compare
    window = 16 * BLOCK

    def load(self, bits: Bits) -> Bits:
        """The CPU computes on host memory as it is."""
        return bits

    def scan_base(self, base: Bits, request: Request) -> BaseWindow:
        """Exponents, norms, NaN and Inf of base bits [n]."""
        layout = _LAYOUTS.get(request.format.name)
        if layout is None:
            return _wide().scan_base(_wide().load(base), request)
        return BaseWindow(*_scan_base(base, layout))

    def compare(
        self, base: Bits, tuned: Bits, request: Request, margins: Margins | None, start: int
    ) -> PairWindow:
        """Everything about base bits [n] against tuned bits [n] in one pass."""
        layout = _LAYOUTS.get(request.format.name)
        if layout is None:
            wide = _wide()
            return wide.compare(wide.load(base), wide.load(tuned), request, margins, start)
        counted = request.counted
        rows, columns = _NO_MARGINS if margins is None else (margins.rows, margins.columns)
        words, *facts = _compare(
            base,
            tuned,
            layout,
            np.array([_KINDS[c.kind] for c in counted]),
            np.array([c.tolerance for c in counted], np.float32),
            np.array([counted.index(c) for c in request.masked], np.int64),
            rows,
            columns,
            start,
        )
        changed, block_changed, exponents, steps, squares, largest, extra = facts
        bits = words.view(np.uint8)[:, : -(-base.size // 8)]
        return PairWindow(
            changed=changed,
            bits=bits,
            block_changed=block_changed,
            exponents=exponents,
            steps=_step_rows(steps),
            nonfinite=int(extra[0]),
            block_squares=squares,
            largest=float(largest),
            nan=int(extra[1]),
            inf=int(extra[2]),
        )


def _step_rows(codes: Any) -> Any:
    """[256] bucket codes as [2, MAX_BUCKET + 1]; 32-bit formats have no bucket above 32."""
    rows = np.zeros((2, MAX_BUCKET + 1), np.int64)
    rows[:, :64] = codes[:128].reshape(2, 64)
    return rows


_NO_MARGINS = (np.zeros((0, 0), np.int32), np.zeros((0, 0), np.int32))


def _wide() -> Any:
    from rlsparse_ray.compare.torch_backend import TorchBackend  # noqa: PLC0415 (2 s to import)

    return TorchBackend("cpu")


@_inline
def _value(x: Any, layout: _Layout) -> Any:
    if layout.lut.size:
        return layout.lut[x]
    return np.uint32(np.uint32(x) << np.uint32(layout.shift)).view(np.float32)


@_jit
def _sum_lanes(lanes: Any) -> float:
    width = lanes.size
    while width > 1:
        width //= 2
        for j in range(width):
            lanes[j] += lanes[j + width]
    return lanes[0]


@_jit
def _scan_base(base: Any, layout: _Layout) -> Any:
    n = base.size
    squares = np.zeros((n + BLOCK - 1) // BLOCK)
    # two exponents at once as one 16-bit number: half the increments, and neighbours with the
    # same exponent do not wait for each other's store; 2x faster than one increment a value
    twins = np.zeros(65536, np.int64)
    codes = np.zeros(BLOCK, np.uint8)
    lanes = np.empty(LANES)
    for b in range(squares.size):
        block = base[b * BLOCK : min(n, (b + 1) * BLOCK)]
        for i in range(block.size):
            codes[i] = (np.uint32(block[i]) & layout.magnitude) >> layout.mantissa_bits
        codes[block.size :] = 0
        for twin in codes.view(np.uint16)[: (block.size + 1) // 2]:
            twins[twin] += 1
        lanes[:] = 0.0
        for k in range(0, block.size, LANES):
            _add_squares(block[k : k + LANES], layout, lanes)
        squares[b] = _sum_lanes(lanes)
    table = twins.reshape(256, 256)
    exponents = (table.sum(axis=0) + table.sum(axis=1))[: layout.exponents]
    exponents[0] -= n % 2
    nan, inf = 0, 0
    if exponents[-1]:
        for i in range(n):
            magnitude = np.uint32(base[i]) & layout.magnitude
            nan += magnitude >= layout.nan_from
            inf += magnitude == layout.inf
    return exponents, squares, nan, inf


@_jit
def _add_squares(values: Any, layout: _Layout, lanes: Any) -> None:
    for j in range(values.size):
        x = np.uint32(values[j])
        finite = (x & layout.magnitude) < layout.nonfinite
        v = np.float64(_value(x, layout)) if finite else 0.0
        lanes[j] += v * v


@_jit
def _pack(base: Any, tuned: Any, magnitude: Any, words: Any) -> int:
    """Bits of the values that differ, 64 a word. Kept apart so that LLVM vectorises it."""
    n = base.size
    for w in range(n // 64):
        word = np.uint64(0)
        for k in range(64):
            x, y = base[64 * w + k], tuned[64 * w + k]
            differ = (x != y) & ((np.uint32(x | y) & magnitude) != 0)
            word |= np.uint64(differ) << np.uint64(k)
        words[w] = word
    if n % 64:
        word = np.uint64(0)
        for k in range(n % 64):
            x, y = base[n - n % 64 + k], tuned[n - n % 64 + k]
            differ = (x != y) & ((np.uint32(x | y) & magnitude) != 0)
            word |= np.uint64(differ) << np.uint64(k)
        words[n // 64] = word


@_jit
def _list_changed(words: Any, index: Any) -> int:
    m = 0
    for w in range(words.size):
        word = words[w]
        while word:
            index[m] = 64 * w + np.int64(trailing_zeros(word))
            m += 1
            word &= word - np.uint64(1)
    return m


@_jit
def _gather(values: Any, index: Any, out: Any) -> None:
    for j in range(index.size):
        out[j] = values[index[j]]


@_jit
def _measure(old: Any, new: Any, layout: _Layout, size: Any, scale: Any, extra: Any) -> float:
    """|d| into `size` and max(|a|, |b|) into `scale` (inf and 0 where a side is not finite)."""
    irregular = 0
    for j in range(old.size):
        a, b = _value(old[j], layout), _value(new[j], layout)
        size[j], scale[j] = abs(b - a), max(abs(a), abs(b))
        p, q = old[j] & layout.magnitude, new[j] & layout.magnitude
        irregular += (p >= layout.nonfinite) | (q >= layout.nonfinite)
    if irregular:
        _mend_nonfinite(old, new, layout, size, scale, extra)
    # the order of positive floats is that of their bits, and only integer maxima vectorise
    bits, largest = size.view(np.uint32), np.uint32(0)
    for j in range(bits.size):
        largest = max(largest, bits[j] if bits[j] < np.uint32(0x7F800000) else np.uint32(0))
    return np.uint32(largest).view(np.float32)


@_jit
def _mend_nonfinite(old: Any, new: Any, layout: _Layout, size: Any, scale: Any, extra: Any) -> None:
    for j in range(old.size):
        p, q = old[j] & layout.magnitude, new[j] & layout.magnitude
        if p >= layout.nonfinite or q >= layout.nonfinite:
            extra[0] += 1
            extra[1] += np.int64(q >= layout.nan_from) - np.int64(p >= layout.nan_from)
            extra[2] += np.int64(q == layout.inf) - np.int64(p == layout.inf)
            size[j], scale[j] = np.float32(np.inf), np.float32(0)


@_jit
def _sum_squares(index: Any, size: Any, lanes: Any) -> float:
    lanes[:] = 0.0
    for j in range(index.size):
        d = np.float64(size[j]) if size[j] < np.float32(np.inf) else 0.0
        lanes[index[j] % LANES] += d * d
    return _sum_lanes(lanes)


@_jit
def _add_steps(old: Any, new: Any, layout: _Layout, codes: Any, steps: Any) -> None:
    """Bucket codes in a vectorised loop, then a histogram; row 0 down, row 1 up, row 2 neither."""
    for j in range(old.size):
        p, q = old[j] & layout.magnitude, new[j] & layout.magnitude
        down, gap = q < p, max(p, q) - min(p, q)
        if (old[j] == p) != (new[j] == q):
            down, gap = old[j] == p, p + q
        if old[j] != p and new[j] != q:
            down = p < q
        bucket = np.uint32(32) - leading_zeros(np.uint32(gap - np.uint32(1)))
        row = np.uint32(0) if down else np.uint32(1)
        regular = (p < layout.nonfinite) & (q < layout.nonfinite)
        codes[j] = bucket + np.uint32(64) * (row if regular else np.uint32(2))
    for j in range(old.size):
        steps[codes[j]] += 1


@_inline
def _holds(kind: int, tolerance: Any, size: Any, scale: Any) -> bool:
    if kind == 2:
        return size > tolerance * scale
    return size > tolerance


@_jit
def _count(kind: int, tolerance: Any, size: Any, scale: Any) -> int:
    count = 0
    for j in range(size.size):
        count += _holds(kind, tolerance, size[j], scale[j])
    return count


@_jit
def _keep(kind: int, tolerance: Any, size: Any, scale: Any, index: Any, words: Any) -> Any:
    """The sub-list of `index` that holds under a criterion, and its bits in `words`."""
    kept = np.empty_like(index)
    m = 0
    for j in range(index.size):
        kept[m] = index[j]
        m += _holds(kind, tolerance, size[j], scale[j])
    for j in range(m):
        words[kept[j] >> 6] |= np.uint64(1) << np.uint64(kept[j] & 63)
    return kept[:m]


@_jit
def _add_exponents(base: Any, index: Any, layout: _Layout, exponents: Any) -> None:
    for j in range(index.size):
        magnitude = np.uint32(base[index[j]]) & layout.magnitude
        exponents[magnitude >> layout.mantissa_bits] += 1


@_jit
def _add_margins(index: Any, start: int, rows: Any, columns: Any) -> None:
    """Row by row, so that no position needs a division."""
    width = columns.size
    row = start // width
    origin = row * width - start
    j = 0
    while j < index.size:
        if index[j] >= origin + width:
            row += (index[j] - origin) // width
            origin = row * width - start
        first = j
        while j < index.size and index[j] < origin + width:
            columns[index[j] - origin] += 1
            j += 1
        rows[row] += j - first


@_jit
def _compare(
    base: Any,
    tuned: Any,
    layout: _Layout,
    kinds: Any,
    tolerances: Any,
    masked: Any,
    rows: Any,
    columns: Any,
    start: int,
) -> Any:
    n, blocks = base.size, (base.size + BLOCK - 1) // BLOCK
    words = np.zeros((masked.size, (n + 63) // 64), np.uint64)
    changed = np.zeros(kinds.size, np.int64)
    block_changed = np.zeros((masked.size, blocks), np.int32)
    exponents = np.zeros((masked.size, layout.exponents), np.int64)
    steps = np.zeros(256, np.int64)
    squares = np.zeros(blocks)
    extra = np.zeros(3, np.int64)
    largest = np.float32(0)
    differ = np.empty(BLOCK // 64, np.uint64)
    index = np.empty(BLOCK, np.int32)
    old, new = np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.uint32)
    size, scale = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    codes = np.empty(BLOCK, np.uint8)
    lanes = np.empty(LANES)
    for b in range(blocks):
        at, end = b * BLOCK, min(n, (b + 1) * BLOCK)
        block, other = base[at:end], tuned[at:end]
        used = (end - at + 63) // 64
        _pack(block, other, layout.magnitude, differ)
        found = index[: _list_changed(differ[:used], index)]
        if not found.size:
            continue
        x, y = old[: found.size], new[: found.size]
        ad, most = size[: found.size], scale[: found.size]
        _gather(block, found, x)
        _gather(other, found, y)
        largest = max(largest, _measure(x, y, layout, ad, most, extra))
        squares[b] = _sum_squares(found, ad, lanes)
        _add_steps(x, y, layout, codes, steps)
        for c in range(kinds.size):
            changed[c] += found.size if kinds[c] == 0 else _count(kinds[c], tolerances[c], ad, most)
        for k in range(masked.size):
            c = masked[k]
            out = words[k, at // 64 : at // 64 + used]
            if kinds[c] == 0:
                kept = found
                out[:] = differ[:used]
            else:
                kept = _keep(kinds[c], tolerances[c], ad, most, found, out)
            block_changed[k, b] = kept.size
            _add_exponents(block, kept, layout, exponents[k])
            if columns.size:
                _add_margins(kept, start + at, rows[k], columns[k])
    return words, changed, block_changed, exponents, steps, squares, largest, extra
