"""What a backend is asked and what it answers, for one window of one tensor.

A window is a run of whole blocks (the tensor's last one may be short). Backends are pure functions
of windows; `scan.py` adds windows up to tensors. Two backends give the same bits in every field.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rlsparse_ray.compare.cast import Bits
from rlsparse_ray.compare.criteria import Criterion, counted_with
from rlsparse_ray.compare.formats import Format

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

LANES = 2048
"""Squares are summed in LANES interleaved fp64 sums a block, then by halving.

One fixed order of additions makes norms reproducible to the last bit on every backend."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to compute: the comparison format, the criteria, and those of them to keep masks for."""

    format: Format
    masked: tuple[Criterion, ...]

    @property
    def counted(self) -> tuple[Criterion, ...]:
        """Every criterion that is counted; the masked ones are among them."""
        return counted_with(self.masked)


@dataclass(slots=True)
class BaseWindow:
    """Facts about the base values alone.

    exponents: [format.exponents] values with each exponent index.
    block_squares: [blocks] sum of squares of the finite values.
    """

    exponents: I64
    block_squares: F64
    nan: int
    inf: int


@dataclass(slots=True)
class PairWindow:
    """Facts about base against tuned.

    changed: [counted] changed values under each counted criterion.
    bits: [masked, ceil(n / 8)] uint8, bit i of byte j is value 8j+i.
    block_changed: [masked, blocks] bits set in each block.
    exponents: [masked, format.exponents] changed values by the exponent index of the base.
    steps: [2, MAX_BUCKET + 1] changed finite values by bucket of |step|; row 0 down, row 1 up.
    nonfinite: changed values of which one side is NaN or infinite.
    block_squares: [blocks] sum of squares of the finite differences, over the list of changed
        values of the block (entry j of the list in lane j % LANES).
    largest: largest finite |difference|.
    nan, inf: how many more NaN and infinite values the tuned side has than the base.
    """

    changed: I64
    bits: npt.NDArray[np.uint8]
    block_changed: npt.NDArray[np.int32]
    exponents: I64
    steps: I64
    nonfinite: int
    block_squares: F64
    largest: float
    nan: int
    inf: int


@dataclass(slots=True)
class Margins:
    """Changed values by row ([masked, rows]) and by column ([masked, columns]) of a tensor.

    Backends add to it in place; `start`, the position of the window in the flattened tensor, tells
    them where they are.
    """

    rows: npt.NDArray[np.int32]
    columns: npt.NDArray[np.int32]


class Backend(Protocol):
    """Where windows are computed."""

    window: int
    """Values in a window: big enough to hide the overhead of a call, small enough for caches."""

    def load(self, bits: Bits) -> Any:
        """Bring bits [n] to where they are computed on; the result goes into the other calls."""

    def scan_base(self, base: Any, request: Request) -> BaseWindow:
        """Facts about a loaded base window."""

    def compare(
        self, base: Any, tuned: Any, request: Request, margins: Margins | None, start: int
    ) -> PairWindow:
        """Facts about two loaded windows of equal length; `margins` grows in place."""
