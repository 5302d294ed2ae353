"""Was one model tuned from the other? Told from a few values of matrices at the same places.

Two networks that were trained apart use other directions for everything, so their matrices are
orthogonal but for noise of 1/sqrt(n), while training leaves most of a matrix where it was. The
cosine between same places, measured (tiny: 0.35 M parameters, bf16; the least over all matrices
of the layers):

| pair                                                        | cosine | relative distance |
|-------------------------------------------------------------|--------|-------------------|
| tiny, GRPO or DPO, 60 steps at 1e-5                         | 1.0000 | 0.004             |
| tiny, SFT, 60 steps at 1e-4                                 | 0.9996 | 0.03              |
| tiny, pretraining gone on with for 150 steps at 2e-3        | 0.9955 | 0.10              |
| tiny, from random weights to 150 steps of pretraining       | 0.9776 | 0.21              |
| SmolLM2-135M, GRPO, 6 steps at 5e-6                         | 1.0000 | 0.0002            |
| tiny, two that were trained apart (the largest, either way) | 0.0190 | 1.44              |
| the same two: heads and embeddings                          | 0.0474 | 1.42              |
| the same two: norms (the least)                             | 0.9977 | 0.10              |

So norms say nothing, being near 1.0 in every model, and any limit between 0.05 and 0.97 tells the
others apart. What it cannot tell: an earlier or later checkpoint of the same run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEAST_SCORE = 0.75
"""Below it a pair is suspect. A quarter of the matrices may be unrelated, or all have moved by 0.7
of their length, seven times further than the longest training in the table."""

LEAST_VALUES = 64
"""Fewer values give no score: the cosine of unrelated ones is 0 +- 0.125 with so many."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """How near values of one tensor are to values at the same places of another."""

    numel: int
    """Values that are finite on both sides."""
    equal: int
    """Of these, the equal ones."""
    relative_distance: float
    """||tuned - base|| / ||base||; NaN if the base values are all zero."""
    cosine: float
    """NaN if the values of a side are all zero."""


def likeness(base: npt.NDArray[np.floating], tuned: npt.NDArray[np.floating]) -> Likeness:
    """Compare values [n] with values [n]; what is not finite on both sides is left out.

    >>> likeness(np.array([3.0, 4.0, np.inf]), np.array([3.0, -4.0, 1.0]))
    Likeness(numel=2, equal=1, relative_distance=1.6, cosine=-0.28)
    """
    b, t = base.astype(np.float64), tuned.astype(np.float64)
    finite = np.isfinite(b) & np.isfinite(t)
    b, t = b[finite], t[finite]
    lengths = math.sqrt(b @ b), math.sqrt(t @ t)
    moved = math.sqrt((t - b) @ (t - b))
    return Likeness(
        numel=b.size,
        equal=int((b == t).sum()),
        relative_distance=moved / lengths[0] if lengths[0] else math.nan,
        cosine=float(b @ t) / (lengths[0] * lengths[1]) if all(lengths) else math.nan,
    )


def lineage_score(samples: Sequence[Likeness]) -> float | None:
    """How alike two models are, from samples of their matrices: 0 (unrelated) to 1 (the same).

    The mean of the cosines, a negative one counting as 0; of tensors alone that have one.

    Returns:
        None if there are fewer than LEAST_VALUES values to tell it from.

    >>> lineage_score([Likeness(100, 50, 0.1, 0.99), Likeness(100, 0, 1.4, -0.02)])
    0.495
    >>> lineage_score([])
    """
    told = [sample for sample in samples if not math.isnan(sample.cosine)]
    if sum(sample.numel for sample in told) < LEAST_VALUES:
        return None
    return min(1.0, math.fsum(max(0.0, sample.cosine) for sample in told) / len(told))
