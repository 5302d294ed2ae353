"""Units of work of a pass over the geometry of updates: base matrices and those tuned from them."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod

from rlsparse_ray.compare.spectra.cost import flops, working_bytes
from rlsparse_ray.compare.spectra.options import SpectraOptions
from rlsparse_ray.plan import MAX_TUNED
from rlsparse_ray.population.whole_tensors import Side
from rlsparse_ray.weights import DTYPES

UNIT_FLOPS = 5e11
"""Small matrices are put together up to this: half a minute of one core, a second of a GPU."""

UNIT_BYTES = 512 << 20
"""And up to so many bytes that are read."""

BATCH_NUMEL = 1 << 24
"""Parameters of small matrices of one shape that are measured in one step."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """One tuned tensor of a pair, and how many of its parameters `counts` says have changed."""

    pair_id: str
    side: Side
    changed: int


@dataclass(frozen=True, slots=True)
class Matrices:
    """A base tensor and those tuned from it: a matrix each, or a stack of experts.

    The base is read and decomposed once for all of them.
    """

    tensor: str
    tensor_key: str
    shape: tuple[int, ...]
    """As compared: [rows, columns], or [matrices, rows, columns]."""
    compare_dtype: str
    base: Side
    tuned: tuple[Tuned, ...]

    @property
    def count(self) -> int:
        """Matrices in the stack; 1 for a plain one."""
        return prod(self.shape[:-2])

    @property
    def rows(self) -> int:
        """Rows of each matrix."""
        return self.shape[-2]

    @property
    def columns(self) -> int:
        """Columns of each matrix."""
        return self.shape[-1]

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return self.base.spec.nbytes + sum(tuned.side.spec.nbytes for tuned in self.tuned)

    def flops(self, options: SpectraOptions) -> float:
        """Floating-point operations, about."""
        return self.count * flops(self.rows, self.columns, options, len(self.tuned))

    @property
    def together(self) -> int:
        """Matrices of this shape that are measured in one step."""
        return max(1, BATCH_NUMEL // max(1, self.rows * self.columns))

    def memory(self, options: SpectraOptions) -> int:
        """Bytes that are held at the same time: both sides, what is read for one, and the maths."""
        # torch computes in no float8: those are widened
        width = 4 if self.compare_dtype.startswith("F8") else DTYPES[self.compare_dtype]
        held = max(prod(self.shape), self.together * self.rows * self.columns)
        reading = max(side.nbytes for side in (self.base, *(t.side for t in self.tuned)))
        maths = self.together * working_bytes(self.rows, self.columns, options, width)
        return 2 * held * width + max(reading, maths)


@dataclass(frozen=True, slots=True)
class SpectraUnit:
    """A unit of work: some matrices, which share the task around them."""

    options: SpectraOptions
    matrices: tuple[Matrices, ...]

    @property
    def name(self) -> str:
        """Name of its file of rows: it changes with everything that goes into it."""
        return f"unit-{hashlib.sha256(repr(self).encode()).hexdigest()[:16]}"

    @property
    def title(self) -> str:
        """Its name in messages."""
        more = f" and {len(self.matrices) - 1} more" if len(self.matrices) > 1 else ""
        return f"spectra of {self.matrices[0].tensor}{more}"

    @property
    def flops(self) -> float:
        """Floating-point operations, about."""
        return sum(each.flops(self.options) for each in self.matrices)

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return sum(each.nbytes for each in self.matrices)

    @property
    def memory(self) -> int:
        """Bytes that a worker needs: torch and the largest of its matrices."""
        return (700 << 20) + max(each.memory(self.options) for each in self.matrices)

    @property
    def keys(self) -> set[tuple[str, str]]:
        """Pair and tensor_key of all that it measures."""
        return {(t.pair_id, each.tensor_key) for each in self.matrices for t in each.tuned}


def cut_units(every: Iterable[Matrices], options: SpectraOptions) -> Iterator[SpectraUnit]:
    """Neighbours in units of at most UNIT_FLOPS and UNIT_BYTES, or one tensor that is larger."""
    run: list[Matrices] = []
    cost, nbytes = 0.0, 0
    for each in (part for whole in every for part in _parts(whole)):
        more = each.flops(options)
        if run and (cost + more > UNIT_FLOPS or nbytes + each.nbytes > UNIT_BYTES):
            yield SpectraUnit(options, tuple(run))
            run, cost, nbytes = [], 0.0, 0
        run.append(each)
        cost, nbytes = cost + more, nbytes + each.nbytes
    if run:
        yield SpectraUnit(options, tuple(run))


def _parts(whole: Matrices) -> Iterator[Matrices]:
    """At most MAX_TUNED tuned tensors beside one base: decomposing it again costs little then."""
    for first in range(0, len(whole.tuned), MAX_TUNED):
        yield replace(whole, tuned=whole.tuned[first : first + MAX_TUNED])
