"""Is the base of a pair its base? A few ranges of both sides say it before anything is extracted.

At most SIDE_BYTES of each side and SHARE of the bytes of both are read, in 2 * TENSORS requests.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlsparse_ray.align import Aligned
from rlsparse_ray.compare import FORMATS, cast_bits
from rlsparse_ray.compare.lineage import LEAST_SCORE, Likeness, likeness, lineage_score
from rlsparse_ray.plan import PlannedPair
from rlsparse_ray.weights import DTYPES, FLOAT_DTYPES, Reader, ReadRequest, TensorSpec, prefetch

TENSORS = 6
"""Matrices sampled: three depths of attention and of mlp, or two each if there are experts too."""

SIDE_BYTES = 1 << 20
SHARE = 0.005
LEAST_BYTES = 4096
"""Read of each side of a toy model, although it is more than SHARE: 300 values of a matrix."""

_KINDS = ("attention", "mlp", "expert")
_Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Lineage:
    """What the samples of a pair say."""

    score: float | None
    """`compare.lineage.lineage_score`; None: nothing could be sampled."""
    equal_share: float | None
    """Equal values / all, in the comparison dtype."""
    relative_distance: float | None
    """||tuned - base|| / ||base||, the largest of the sampled matrices."""
    tensors: tuple[str, ...]
    """The sampled matrices, by canonical name."""

    @property
    def doubt(self) -> str | None:
        """Why this is no usual pair, and what to do; None if nothing speaks against it.

        >>> Lineage(0.99, 0.4, 0.01, ("layers.0.mlp.up_proj.weight",)).doubt
        """
        if self.score is None or self.relative_distance is None:
            return None
        if self.score < LEAST_SCORE:
            return (
                f"lineage score {self.score:.2f} of 1: the tuned model looks unrelated to the base "
                f"(||tuned - base|| / ||base|| up to {self.relative_distance:.2f} in "
                f"{len(self.tensors)} sampled matrices): check that this is its base, at the "
                f"right revision"
            )
        if self.equal_share == 1:
            return (
                f"the same values in all {len(self.tensors)} sampled matrices: check that the "
                f"tuned model is not the base itself"
            )
        return None


def lineage_of(pair: PlannedPair) -> Lineage:
    """Sample a few matrices of both sides of a pair.

    Tensors that are made from others (dequantised, adapted) are left out, and those that both
    sides take from the same bytes: a pair of nothing else has no score.

    Raises:
        CheckpointError: a side cannot be read.
    """
    rows = _chosen(pair.rows)
    samples = _read(rows, _limit(pair.rows))
    numel = sum(sample.numel for sample in samples)
    if not numel:
        return Lineage(None, None, None, ())
    moved = [s.relative_distance for s in samples if not math.isnan(s.relative_distance)]
    return Lineage(
        score=lineage_score(samples),
        equal_share=sum(sample.equal for sample in samples) / numel,
        relative_distance=max(moved, default=None),
        tensors=tuple(row.tensor for row in rows),
    )


def _chosen(rows: Iterable[Aligned]) -> list[Aligned]:
    """Up to TENSORS matrices, from every kind and spread over the depth."""
    usable = [row for row in rows if _usable(row)]
    by_kind: dict[str, list[Aligned]] = defaultdict(list)
    for row in usable:
        by_kind[row.kind].append(row)
    # embeddings are like one another where a model pads them, so they come last
    groups = [by_kind[kind] for kind in _KINDS if by_kind[kind]] or [usable]
    return [row for group in groups for row in _spread(group, TENSORS // len(groups))]


def _usable(row: Aligned) -> bool:
    if row.base is None or row.tuned is None or row.compare_dtype not in FLOAT_DTYPES:
        return False
    matrix = row.kind != "norm" and len(row.shape or ()) >= 2 and row.numel > 0
    return matrix and not row.base.inputs and not row.tuned.inputs and row.base != row.tuned


def _spread(group: list[Aligned], wanted: int) -> list[Aligned]:
    """`wanted` of them from evenly spaced depths: three are 1/6, 3/6 and 5/6 of the way."""
    group = sorted(group, key=lambda row: (row.layer or 0, row.tensor))
    wanted = min(wanted, len(group))
    return [group[(2 * k + 1) * len(group) // (2 * wanted)] for k in range(wanted)]


def _limit(rows: Iterable[Aligned]) -> int:
    """Bytes to read of a side."""
    sides = (side for row in rows if row.compared for side in (row.base, row.tuned) if side)
    share = int(sum(side.nbytes for side in sides) * SHARE / 2)
    return min(SIDE_BYTES, max(LEAST_BYTES, share))


def _read(rows: Sequence[Aligned], limit: int) -> list[Likeness]:
    if not rows:
        return []
    each = limit // len(rows)
    requests = [request for row in rows for request in _requests(row, each)]
    with Reader() as reader:
        raw = list(prefetch(requests, reader, depth=1, hold=len(requests)))
    return [
        likeness(_values(row, row.base, base), _values(row, row.tuned, tuned))
        for row, base, tuned in zip(rows, raw[::2], raw[1::2], strict=True)
    ]


def _requests(row: Aligned, nbytes: int) -> list[ReadRequest]:
    """The middle values of both sides, at most `nbytes` of the wider one."""
    sides = [(side, DTYPES[side.dtype]) for side in (row.base, row.tuned) if side]
    numel = min(row.numel, max(1, nbytes // max(width for _, width in sides)))
    start = (row.numel - numel) // 2
    return [
        ReadRequest(side.file, side.offset + start * width, numel * width) for side, width in sides
    ]


def _values(row: Aligned, side: TensorSpec | None, raw: npt.NDArray[np.uint8]) -> _Values:
    """The values of a side in the comparison dtype, as float64 (exact)."""
    if side is None or row.compare_dtype is None:
        raise ValueError(f"{row.tensor}: only compared tensors are sampled")
    fmt = FORMATS[row.compare_dtype]
    return cast_bits(raw, side.dtype, fmt).view(fmt.numpy).astype(np.float64)
