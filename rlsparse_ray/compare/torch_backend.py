"""The torch backend: the same numbers as the CPU backend, on a GPU, and for every format.

Dense operations over large windows; integers throughout, so that only the fixed-order sums of
squares and one subtraction in fp32 (fp64 for F64) are floating-point.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlsparse_ray.blocks import BLOCK, blocks_of
from rlsparse_ray.compare.cast import Bits
from rlsparse_ray.compare.criteria import Criterion
from rlsparse_ray.compare.formats import MAX_BUCKET, Format
from rlsparse_ray.compare.window import LANES, BaseWindow, Margins, PairWindow, Request

_SIGNED = {8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}
_FLOATS = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class TorchBackend:
    """Compute windows on any torch device."""

    # on a GPU a launch costs microseconds whatever the size: 16 M values hide it
    window = 256 * BLOCK

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def load(self, bits: Bits) -> Tensor:
        """Bits [n] as a signed integer tensor of the same width on the device."""
        signed = np.ascontiguousarray(bits).view(f"i{bits.itemsize}")
        return torch.from_numpy(signed.copy() if self.device.type == "cpu" else signed).to(
            self.device
        )

    def scan_base(self, base: Tensor, request: Request) -> BaseWindow:
        """Exponents, norms, NaN and Inf of base bits [n]."""
        fmt = request.format
        magnitude = _magnitude(base, fmt)
        finite = (
            magnitude < fmt.nonfinite_from if fmt.kind == "float" else torch.ones_like(base) > 0
        )
        values = _values(base, fmt).double()
        squares = _block_squares(torch.where(finite, values * values, 0.0))
        exponents = torch.bincount(_exponent_index(base, fmt), minlength=fmt.exponents)
        nan, inf = _nan_inf(magnitude, fmt)
        return BaseWindow(exponents.cpu().numpy(), squares.cpu().numpy(), int(nan), int(inf))

    def compare(
        self, base: Tensor, tuned: Tensor, request: Request, margins: Margins | None, start: int
    ) -> PairWindow:
        """Everything about base bits [n] against tuned bits [n]."""
        fmt, n = request.format, base.numel()
        differ = _ordinal(base, fmt) != _ordinal(tuned, fmt)
        index = differ.nonzero().flatten()
        old, new = base[index], tuned[index]
        size, scale, regular = _measure(old, new, fmt)
        held = {c: _holds(c, size, scale) for c in request.counted}
        kept = [index[held[c]] for c in request.masked]
        masks = [_mask(k, n) for k in kept]
        exponents = [
            torch.bincount(_exponent_index(old[held[c]], fmt), minlength=fmt.exponents)
            for c in request.masked
        ]
        if margins is not None:
            for row, k in enumerate(kept):
                _add_margins(margins, row, k + start)
        finite = torch.isfinite(size)
        distance = torch.where(finite, size, 0.0).double()
        nan_inf = [
            a - b
            for a, b in zip(
                _nan_inf(_magnitude(new, fmt), fmt),
                _nan_inf(_magnitude(old, fmt), fmt),
                strict=True,
            )
        ]
        return PairWindow(
            changed=np.array([int(held[c].sum()) for c in request.counted]),
            bits=_stack([_pack(m) for m in masks], np.uint8, -(-n // 8)),
            block_changed=_stack([_per_block(m) for m in masks], np.int32, blocks_of(n)),
            exponents=_stack(exponents, np.int64, fmt.exponents),
            steps=_steps(old[regular], new[regular], fmt),
            nonfinite=int((~regular).sum()),
            block_squares=_list_squares(distance * distance, index, n).cpu().numpy(),
            largest=float(distance.max()) if index.numel() else 0.0,
            nan=int(nan_inf[0]),
            inf=int(nan_inf[1]),
        )


def _stack(rows: list[Tensor], dtype: Any, width: int) -> Any:
    if not rows:
        return np.zeros((0, width), dtype)
    return torch.stack(rows).cpu().numpy().astype(dtype)


def _integers(bits: Tensor, fmt: Format) -> Tensor:
    """Bits as int64, without the sign extension that loading them as signed brought."""
    wide = bits.to(torch.int64)
    return wide if fmt.kind == "int" or fmt.bits == 64 else wide & ((1 << fmt.bits) - 1)


def _magnitude(bits: Tensor, fmt: Format) -> Tensor:
    return _integers(bits, fmt) & fmt.magnitude_mask


def _ordinal(bits: Tensor, fmt: Format) -> Tensor:
    """int64 that orders the values and counts ULPs between them."""
    wide = _integers(bits, fmt)
    if fmt.kind == "int":
        return wide
    if fmt.kind == "uint":
        return wide ^ torch.iinfo(torch.int64).min if fmt.bits == 64 else wide
    magnitude = wide & fmt.magnitude_mask
    return torch.where(bits < 0, -magnitude, magnitude)


def _values(bits: Tensor, fmt: Format) -> Tensor:
    """The numbers in the precision of differences: fp32, or fp64 for F64 and integers."""
    if fmt.kind == "float":
        dtype = torch.float64 if fmt.bits == 64 else torch.float32
        return bits.view(_FLOATS[fmt.name]).to(dtype)
    if fmt.kind == "uint" and fmt.bits == 64:
        low = (bits & ((1 << 32) - 1)).double()
        return ((bits >> 32) & ((1 << 32) - 1)).double() * 2.0**32 + low
    return _integers(bits, fmt).double()


def _exponent_index(bits: Tensor, fmt: Format) -> Tensor:
    if fmt.kind == "float":
        return _magnitude(bits, fmt) >> fmt.mantissa_bits
    wide = _integers(bits, fmt)
    negative = wide < 0
    # a u64 of 2^63 and more reads as negative; its bit length is 64
    size = torch.where(negative, -(wide + 1), wide) if fmt.kind == "int" else wide.clamp(min=0)
    powers = 2 ** torch.arange(63, device=bits.device)
    length = torch.bucketize(size, powers, right=True)
    if fmt.kind == "uint":
        return torch.where(negative, 64, length)
    # |v| = size + 1 for a negative v: one bit longer only when size + 1 is a power of two
    rounds_up = torch.isin(size + 1, powers)
    longest = size == torch.iinfo(torch.int64).max
    return length + (negative & (rounds_up | longest))


def _nan_inf(magnitude: Tensor, fmt: Format) -> tuple[int, int]:
    if fmt.kind != "float":
        return 0, 0
    return int((magnitude >= fmt.nan_from).sum()), int((magnitude == fmt.inf).sum())


def _measure(old: Tensor, new: Tensor, fmt: Format) -> tuple[Tensor, Tensor, Tensor]:
    """|d|, max(|a|, |b|) (inf and 0 where a side is not finite), and where both are finite."""
    a, b = _values(old, fmt), _values(new, fmt)
    if fmt.kind == "float":
        regular = torch.isfinite(a) & torch.isfinite(b)
        size = (b - a).abs()
    else:
        regular = torch.ones_like(old, dtype=torch.bool)
        size = _distance(_ordinal(old, fmt), _ordinal(new, fmt))
    infinity = torch.tensor(torch.inf, dtype=size.dtype, device=size.device)
    zero = torch.zeros((), dtype=size.dtype, device=size.device)
    scale = torch.maximum(a.abs(), b.abs())
    return torch.where(regular, size, infinity), torch.where(regular, scale, zero), regular


def _distance(old: Tensor, new: Tensor) -> Tensor:
    """|new - old| of int64 as fp64, exact up to its rounding even where int64 overflows."""
    high, low = torch.maximum(old, new), torch.minimum(old, new)
    gap = high - low
    return torch.where(gap < 0, gap.double() + 2.0**64, gap.double())


def _holds(criterion: Criterion, size: Tensor, scale: Tensor) -> Tensor:
    if criterion.kind == "exact":
        return torch.ones_like(size, dtype=torch.bool)
    tolerance = torch.tensor(criterion.tolerance, dtype=size.dtype, device=size.device)
    return size > (tolerance * scale if criterion.kind == "rel" else tolerance)


def _steps(old: Tensor, new: Tensor, fmt: Format) -> Any:
    before, after = _ordinal(old, fmt), _ordinal(new, fmt)
    gap = torch.maximum(before, after) - torch.minimum(before, after)
    powers = 2 ** torch.arange(63, device=old.device)
    bucket = torch.bucketize(gap, powers)
    # a gap of 2^63 and more wraps to a negative number
    bucket = torch.where(gap < 0, torch.where(gap == torch.iinfo(torch.int64).min, 63, 64), bucket)
    up = (after > before).to(torch.int64)
    width = MAX_BUCKET + 1
    return torch.bincount(up * width + bucket, minlength=2 * width).view(2, width).cpu().numpy()


def _add_margins(margins: Margins, row: int, position: Tensor) -> None:
    if not position.numel():
        return
    width = margins.columns.shape[1]
    rows = position // width
    first = int(rows[0])
    in_rows = torch.bincount(rows - first).cpu().numpy()
    margins.rows[row, first : first + in_rows.size] += in_rows.astype(np.int32)
    in_columns = torch.bincount(position % width, minlength=width)
    margins.columns[row] += in_columns.cpu().numpy().astype(np.int32)


def _mask(index: Tensor, n: int) -> Tensor:
    mask = torch.zeros(n, dtype=torch.bool, device=index.device)
    mask[index] = True
    return mask


def _padded(values: Tensor, multiple: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, -values.numel() % multiple)).view(-1, multiple)


def _pack(mask: Tensor) -> Tensor:
    weights = 2 ** torch.arange(8, device=mask.device)
    return (_padded(mask, 8) * weights).sum(dim=1).to(torch.uint8)


def _per_block(mask: Tensor) -> Tensor:
    return _padded(mask, BLOCK).sum(dim=1)


def _block_squares(squares: Tensor) -> Tensor:
    """Sum each block in LANES interleaved sums, in order, then by halving."""
    table = _padded(squares, BLOCK).view(-1, BLOCK // LANES, LANES)
    lanes = torch.zeros_like(table[:, 0])
    for k in range(table.shape[1]):
        lanes += table[:, k]
    width = LANES
    while width > 1:
        width //= 2
        lanes = lanes[:, :width] + lanes[:, width : 2 * width]
    return lanes.flatten()


def _list_squares(squares: Tensor, index: Tensor, n: int) -> Tensor:
    """As `_block_squares`, but of the list of changed values of each block, closed up."""
    block = index // BLOCK
    length = torch.bincount(block, minlength=blocks_of(n))
    first = torch.cumsum(length, 0) - length
    rank = torch.arange(index.numel(), device=index.device) - first[block]
    dense = torch.zeros(blocks_of(n) * BLOCK, dtype=torch.float64, device=index.device)
    dense[block * BLOCK + rank] = squares
    return _block_squares(dense)
