"""Windows added up to tensors."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rlsparse_ray.compare.criteria import Criterion
from rlsparse_ray.compare.formats import MAX_BUCKET, bucket_bounds
from rlsparse_ray.compare.window import I64, Backend, BaseWindow, Margins, PairWindow, Request


class BaseScan:
    """Facts about one base tensor, from its windows in any order."""

    def __init__(self, request: Request) -> None:
        self.exponents: I64 = np.zeros(request.format.exponents, np.int64)
        self.nan = 0
        self.inf = 0
        self._squares: list[float] = []

    def add(self, window: BaseWindow) -> None:
        """Add the facts of one window."""
        self.exponents += window.exponents
        self.nan += window.nan
        self.inf += window.inf
        self._squares.extend(window.block_squares)

    @property
    def l2(self) -> float:
        """L2 norm of the finite values; block sums are added exactly (`math.fsum`)."""
        return math.sqrt(math.fsum(self._squares))


@dataclass(frozen=True, slots=True)
class Stratum:
    """Parameters whose base weight has one binary exponent."""

    exponent: int
    numel: int
    changed: int


@dataclass(frozen=True, slots=True)
class Step:
    """Parameters that moved `low` to `high` ULPs (signed); None: from or to NaN or infinity."""

    low: int | None
    high: int | None
    numel: int


@dataclass(slots=True)
class PairScan:
    """Facts about one tensor of a pair, from its windows in order.

    `shape` is the compared shape. Margins are kept for two axes and more: rows are all axes but
    the last, columns the last one.
    """

    request: Request
    shape: tuple[int, ...]
    changed: I64 = field(init=False)
    exponents: I64 = field(init=False)
    steps: I64 = field(init=False)
    margins: Margins | None = field(init=False, default=None)
    nonfinite: int = 0
    nan: int = 0
    inf: int = 0
    largest: float = 0.0
    _squares: list[float] = field(init=False, default_factory=list)
    _position: int = 0

    def __post_init__(self) -> None:
        masked = len(self.request.masked)
        self.changed = np.zeros(len(self.request.counted), np.int64)
        self.exponents = np.zeros((masked, self.request.format.exponents), np.int64)
        self.steps = np.zeros((2, MAX_BUCKET + 1), np.int64)
        if len(self.shape) >= 2 and 0 not in self.shape:
            rows, columns = math.prod(self.shape[:-1]), self.shape[-1]
            self.margins = Margins(
                np.zeros((masked, rows), np.int32), np.zeros((masked, columns), np.int32)
            )

    def compare(self, backend: Backend, base: Any, tuned: Any, numel: int) -> PairWindow:
        """Compare the next window ([numel] loaded values) and add its facts."""
        window = backend.compare(base, tuned, self.request, self.margins, self._position)
        self._position += numel
        self.changed += window.changed
        self.exponents += window.exponents
        self.steps += window.steps
        self.nonfinite += window.nonfinite
        self.nan += window.nan
        self.inf += window.inf
        self.largest = max(self.largest, window.largest)
        self._squares.extend(window.block_squares)
        return window

    @property
    def l2(self) -> float:
        """L2 norm of the finite differences."""
        return math.sqrt(math.fsum(self._squares))

    def changed_under(self, criterion: Criterion) -> int:
        """Changed parameters under a counted criterion."""
        return int(self.changed[self.request.counted.index(criterion)])

    def strata(self, base: BaseScan, criterion: Criterion) -> list[Stratum]:
        """Non-empty strata under a masked criterion, by exponent."""
        changed = self.exponents[self.request.masked.index(criterion)]
        bias = self.request.format.bias
        return [
            Stratum(int(e) - bias, int(base.exponents[e]), int(changed[e]))
            for e in np.flatnonzero(base.exponents)
        ]

    def step_buckets(self) -> list[Step]:
        """Non-empty buckets from the largest step down to the largest step up."""
        unchanged = self._position - int(self.steps.sum()) - self.nonfinite
        found = [Step(0, 0, unchanged)] if unchanged else []
        for bucket in np.flatnonzero(self.steps.sum(axis=0)):
            low, high = bucket_bounds(int(bucket))
            down, up = (int(n) for n in self.steps[:, bucket])
            found += [Step(-high, -low, down)] * bool(down) + [Step(low, high, up)] * bool(up)
        found.sort(key=lambda step: step.low or 0)
        return found + [Step(None, None, self.nonfinite)] * bool(self.nonfinite)

    def margins_under(self, criterion: Criterion) -> tuple[npt.NDArray[np.int32], ...] | None:
        """Changed per row and per column under a masked criterion; None for fewer than two axes."""
        if self.margins is None:
            return None
        k = self.request.masked.index(criterion)
        return self.margins.rows[k], self.margins.columns[k]
