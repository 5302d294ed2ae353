"""Masks of a base matrix: its principal weights and its weights of low magnitude.

Both are thresholds on a magnitude, found exactly from two histograms of its bits: the upper and the
lower half of a float32. No sort, no copy, and the same on every device. All ties at the threshold
are in the mask: in bf16 there are thousands, and to take the first of them would favour the upper
rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rlsparse_ray.compare.spectra.results import MaskKind, MaskOverlap

PIECE = 1 << 22
"""Entries whose keys are held at a time."""

HALF = 1 << 16

Keys = Callable[[slice], Tensor]
"""The magnitudes of some rows as int32 [n]: the bits of a float32, which order as it does."""

LAYOUTS = {
    torch.float64: (torch.int64, 52),
    torch.float32: (torch.int32, 23),
    torch.bfloat16: (torch.int16, 7),
    torch.float16: (torch.int16, 10),
}
"""By dtype: integers of its size, and bits of the mantissa."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """An order of the entries of a matrix [rows, columns] by a magnitude."""

    rows: int
    columns: int
    keys: Keys
    kind: MaskKind

    def pieces(self) -> Iterator[slice]:
        """Rows a few at a time."""
        return _pieces(self.rows, self.columns)

    def holds(self, keys: Tensor, threshold: int) -> Tensor:
        """Which of these are in the mask of this threshold."""
        return keys >= threshold if self.kind == "principal" else keys <= threshold


def by_magnitude(base: Tensor) -> Ranking:
    """Entries by |base|; float64 is ranked as float32."""
    rows, columns = base.shape
    return Ranking(rows, columns, lambda part: _bits(base[part]), "low_magnitude")


def by_principal(base: Tensor, right: Tensor) -> Ranking:
    """Entries by |rank-k SVD of base|, in float32.

    Its error, 1e-7 of a value, matters to entries that close to a threshold only.

    Args:
        base: [rows, columns].
        right: its first k right singular vectors V [columns, k]; the rank-k SVD is base V V^T.
    """
    rows, columns = base.shape
    scaled = torch.cat([(base[part].double() @ right).float() for part in _pieces(rows, columns)])
    narrow = right.float()
    return Ranking(rows, columns, lambda part: _bits(scaled[part] @ narrow.mT), "principal")


def thresholds(ranking: Ranking, alphas: Sequence[float]) -> list[int]:
    """The key at which the mask of each size ends: it holds round(alpha x numel) entries, or more
    where there are ties, and at least one."""
    numel = ranking.rows * ranking.columns
    counts = [max(1, round(alpha * numel)) for alpha in alphas]
    if ranking.kind == "principal":
        # the n-th largest is the (numel - n + 1)-th smallest
        counts = [numel - count + 1 for count in counts]
    upper = _histogram(ranking, _upper)
    highs = [_place(upper, count) for count in counts]
    lower = {
        high: _histogram(ranking, partial(_lower, high=high))
        for high in {high for high, _ in highs}
    }
    return [(high << 16) + _place(lower[high], count)[0] for high, count in highs]


def mask_of(ranking: Ranking, alpha: float) -> Tensor:
    """The mask [rows, columns], bool."""
    (threshold,) = thresholds(ranking, [alpha])
    found = [ranking.holds(ranking.keys(rows), threshold) for rows in ranking.pieces()]
    return torch.cat(found).view(ranking.rows, ranking.columns)


@dataclass(frozen=True, slots=True)
class Marks:
    """The masks of one ranking, a larger one holding every smaller one."""

    ranking: Ranking
    alphas: tuple[float, ...]
    """Descending."""
    ends: tuple[int, ...]

    @classmethod
    def of(cls, ranking: Ranking, alphas: Sequence[float]) -> "Marks":
        """Those of these sizes."""
        falling = tuple(sorted(set(alphas), reverse=True))
        return cls(ranking, falling, tuple(thresholds(ranking, falling)))

    def overlaps(self, base: Tensor, changed: Tensor) -> list[MaskOverlap]:
        """What an update shares with each mask, the smallest first.

        Args:
            base: [rows, columns]; its dtype says what a binary exponent is (0 and subnormals are
                one).
            changed: [rows, columns] bool.
        """
        exponents = _exponents(base.dtype)
        shape = (len(self.ends) + 1, 2, exponents)
        table = torch.zeros(shape, dtype=torch.int64, device=base.device).flatten()
        for rows in self.ranking.pieces():
            keys = self.ranking.keys(rows)
            # how many masks hold an entry tells which, since each holds the next
            code = changed[rows].flatten().int()
            for end in self.ends:
                code += 2 * self.ranking.holds(keys, end)
            code = code * exponents + _exponent(base[rows])
            table += torch.bincount(code, minlength=len(table))
        counts = table.view(shape).cpu()
        found = [
            _overlap(counts, depth, self.ranking.kind, alpha)
            for depth, alpha in enumerate(self.alphas, 1)
        ]
        return found[::-1]


def _overlap(counts: Tensor, depth: int, kind: MaskKind, alpha: float) -> MaskOverlap:
    """From counts [depth of nesting, changed or not, exponent]."""
    every, held = counts.sum((0, 1)), counts[depth:].sum((0, 1))
    moved = counts[:, 1].sum(0)
    numel, size, changed = int(every.sum()), int(held.sum()), int(moved.sum())
    return MaskOverlap(
        kind=kind,
        alpha=alpha,
        size=size,
        numel=numel,
        changed=changed,
        shared=int(counts[depth:, 1].sum()),
        expected_uniform=size * changed / numel,
        expected_magnitude=float((held.double() * moved / every.clamp(min=1)).sum()),
    )


def _histogram(ranking: Ranking, digits: Callable[[Tensor], Tensor]) -> Tensor:
    """How often each 16 bits come up, [65,536] on the CPU."""
    pieces = [
        torch.bincount(digits(ranking.keys(rows)), minlength=HALF) for rows in ranking.pieces()
    ]
    return torch.stack(pieces).sum(0).cpu()


def _pieces(rows: int, columns: int) -> Iterator[slice]:
    height = max(1, PIECE // columns)
    for start in range(0, rows, height):
        yield slice(start, min(rows, start + height))


def _upper(keys: Tensor) -> Tensor:
    return keys >> 16


def _lower(keys: Tensor, high: int) -> Tensor:
    return keys[keys >> 16 == high] & (HALF - 1)


def _place(histogram: Tensor, count: int) -> tuple[int, int]:
    """The bin of the count-th smallest, and its place within the bin, from 1."""
    ends = histogram.cumsum(0)
    found = int(torch.searchsorted(ends, count))
    return found, count - int(ends[found] - histogram[found])


def _bits(values: Tensor) -> Tensor:
    """|values| as int32 keys [n]."""
    return values.float().abs().contiguous().view(torch.int32).flatten()


def _exponents(dtype: torch.dtype) -> int:
    integer, mantissa = LAYOUTS[dtype]
    return 1 << (torch.iinfo(integer).bits - 1 - mantissa)


def _exponent(values: Tensor) -> Tensor:
    """The biased binary exponents [n], int32, in the dtype's own layout."""
    integer, mantissa = LAYOUTS[values.dtype]
    bits = values.contiguous().view(integer).flatten() & torch.iinfo(integer).max
    return (bits >> mantissa).int()
