"""What is read of a tensor for a window of its values, and how the values are made of it.

Most tensors are stored as they are compared: one range, no copy. The others (`TensorSpec.inputs`)
are made by bands: some entries of the first axis, the fewest that can be made by themselves, so
that memory does not grow with the tensor. Windows come in order, from the first value on.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlsparse_ray.compare.dequant import (
    add_update,
    as_float32,
    fp8_to_bf16,
    low_rank,
    mxfp4_to_bf16,
)
from rlsparse_ray.weights import DTYPES, ReadRequest, TensorSpec

Raw = npt.NDArray[np.uint8]
Take = Callable[[], Raw]

_LORA_BAND = 1 << 20
"""Values in a band of a low-rank update, but whole 64 rows: fixed, because the size of a product
may decide how BLAS adds it up."""


class Stored:
    """The values of a tensor that is stored as it is compared."""

    operands: tuple[TensorSpec, ...] = ()
    arrays = 1
    working = 0

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec

    def requests(self, start: int, stop: int) -> list[ReadRequest]:
        """The bytes of the values from `start` to `stop`."""
        width = DTYPES[self.spec.dtype]
        offset = self.spec.offset + start * width
        return [ReadRequest(self.spec.file, offset, (stop - start) * width)]

    def take(self, start: int, stop: int, take: Take, operands: Sequence[Raw]) -> Raw:
        """The values as bytes; a view of what was read."""
        return take()


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How a band is made.

    banded: inputs of which a band needs the same entries of the first axis.
    whole: inputs that every band needs; read with the first window and kept.
    rows: entries of the first axis in a band.
    dtype: of what `make` gives.
    make: bytes of the values of entries, from (first, last, banded inputs, whole inputs).
    operand: an input of the shape and dtype of the result; its window is added to what was made.
    """

    banded: tuple[TensorSpec, ...]
    whole: tuple[TensorSpec, ...]
    rows: int
    dtype: str
    make: Callable[[int, int, list[Raw], list[Raw]], Raw]
    operand: TensorSpec | None = None


class Derived:
    """The values of a tensor that is made from others, in one pass over its windows."""

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self._recipe = _recipe(spec)
        self._whole: list[Raw] = []
        self._rest: Raw = np.empty(0, np.uint8)

    @property
    def operands(self) -> tuple[TensorSpec, ...]:
        """Stored tensors whose windows are needed beside what is read for this one."""
        return (self._recipe.operand,) if self._recipe.operand else ()

    @property
    def arrays(self) -> int:
        """Requests for a window, at most."""
        return len(self._recipe.banded) + len(self._recipe.whole)

    @property
    def working(self) -> int:
        """Bytes of memory while bands are made: twice those of a window or a band, and floats."""
        row = self.spec.numel // max(1, self.spec.shape[0])
        return 8 * max(row * self._recipe.rows, _LORA_BAND) + sum(
            spec.nbytes * 2 for spec in self._recipe.whole
        )

    def requests(self, start: int, stop: int) -> list[ReadRequest]:
        """The bytes that this window needs and no window before it did."""
        needed = [_rows_of(spec, 0, spec.shape[0]) for spec in self._whole_at(start)]
        first, last = self._new_rows(start, stop)
        if first < last:
            needed += [_rows_of(spec, first, last) for spec in self._recipe.banded]
        return needed

    def take(self, start: int, stop: int, take: Take, operands: Sequence[Raw]) -> Raw:
        """The values as bytes; what was made beyond the window is kept for the next one."""
        for _ in self._whole_at(start):
            self._whole.append(take().copy())
        first, last = self._new_rows(start, stop)
        if first < last:
            banded = [take() for _ in self._recipe.banded]
            made = self._recipe.make(first, last, banded, self._whole)
            self._rest = np.concatenate([self._rest, made]) if self._rest.size else made
        cut = (stop - start) * DTYPES[self._recipe.dtype]
        values, self._rest = self._rest[:cut], self._rest[cut:]
        if self._recipe.operand is None:
            return values
        return add_update(operands[0], self.spec.dtype, values.view(np.float32))

    def _whole_at(self, start: int) -> tuple[TensorSpec, ...]:
        return self._recipe.whole if start == 0 else ()

    def _new_rows(self, start: int, stop: int) -> tuple[int, int]:
        """Entries of the first axis whose bands begin in this window."""
        total = self.spec.shape[0]
        band = self._recipe.rows * max(1, self.spec.numel // max(1, total))
        first, last = (-(-value // band) * self._recipe.rows for value in (start, stop))
        return min(first, total), min(last, total)


Values = Stored | Derived


def values_of(spec: TensorSpec) -> Values:
    """The values of a tensor, for one pass over its windows."""
    return Derived(spec) if spec.inputs else Stored(spec)


def _rows_of(spec: TensorSpec, first: int, last: int) -> ReadRequest:
    row = spec.nbytes // max(1, spec.shape[0])
    return ReadRequest(spec.file, spec.offset + first * row, (last - first) * row)


def _recipe(spec: TensorSpec) -> _Recipe:
    return _RECIPES[spec.encoding.partition(" ")[0]](spec)


def _fp8(spec: TensorSpec) -> _Recipe:
    codes, scales = spec.inputs
    rows, columns = (int(text) for text in spec.encoding.rpartition(" ")[2].split("x"))
    across = -(-spec.shape[1] // columns)
    band = rows if rows > 1 else 128
    if rows == spec.shape[0]:
        band = min(rows, 128)

    def make(first: int, last: int, banded: list[Raw], whole: list[Raw]) -> Raw:
        grid = as_float32(whole[0], scales.dtype).reshape(-1, across)
        size = (rows, columns)
        matrix = banded[0].reshape(-1, spec.shape[1])
        return fp8_to_bf16(matrix, codes.dtype, grid[first // rows :], size)

    return _Recipe((codes,), (scales,), band, spec.dtype, make)


def _mxfp4(spec: TensorSpec) -> _Recipe:
    blocks, scales = spec.inputs

    def make(first: int, last: int, banded: list[Raw], whole: list[Raw]) -> Raw:
        packed = banded[0].reshape(-1, *blocks.shape[1:])
        exponents = banded[1].reshape(-1, *scales.shape[1:])
        experts = [mxfp4_to_bf16(b, s) for b, s in zip(packed, exponents, strict=True)]
        return experts[0] if len(experts) == 1 else np.concatenate(experts)

    return _Recipe((blocks, scales), (), 1, spec.dtype, make)


def _lora(spec: TensorSpec) -> _Recipe:
    base, a, b = spec.inputs
    scaling = float(re.findall(r" scale=(\S+)", spec.encoding)[0])
    band = 64 * max(1, _LORA_BAND // (64 * max(1, spec.shape[1])))
    rank = a.shape[0]

    def make(first: int, last: int, banded: list[Raw], whole: list[Raw]) -> Raw:
        down = as_float32(whole[0], a.dtype).reshape(rank, -1)
        up = as_float32((banded or whole)[-1], b.dtype).reshape(-1, rank)
        if not banded:
            # the layer keeps its weight transposed, so columns of A are rows of the weight
            down, up = up.T, down.T[first:last]
        bands = (low_rank(up[k : k + band], down, scaling) for k in range(0, len(up), band))
        return np.concatenate([made.reshape(-1) for made in bands]).view(np.uint8)

    if spec.encoding.endswith(" transposed"):
        return _Recipe((), (a, b), band, "F32", make, base)
    return _Recipe((b,), (a,), band, "F32", make, base)


_RECIPES: Mapping[str, Callable[[TensorSpec], _Recipe]] = {
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "lora": _lora,
}
"""By the first word of the encoding."""
