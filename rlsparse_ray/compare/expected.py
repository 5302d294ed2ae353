"""Shared parameters of many masks over one tensor, were they independent within a tensor,
within a stratum, or given their margins. All results are [masks, masks] float64."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Reals = npt.NDArray[np.float64]
Stratum = tuple[int, int, int]
"""Exponent, parameters and changed parameters of a stratum."""


def expected_tensor(changed: npt.ArrayLike, numel: int) -> Reals:
    """|A| |B| / n."""
    c = np.asarray(changed, np.float64)
    return np.outer(c, c) / max(numel, 1)


def expected_magnitude(
    strata: Sequence[Sequence[Stratum]], bases: Sequence[str | None], numel: int
) -> Reals:
    """Sum over exponents of |A_e| |B_e| / n_e; NaN for two masks of different bases.

    `bases` tells the base tensors apart; of one base, masks that were compared in dtypes in which
    its strata differ have no expectation together. Masks without strata for every parameter have
    none at all. The sum goes through the exponents in the order given, which is the same
    for all masks of a base, so that it does not depend on which masks take part.
    """
    found = np.full((len(strata), len(strata)), np.nan)
    groups: dict[tuple[str, tuple[tuple[int, int], ...]], list[int]] = {}
    for mask, (base, rows) in enumerate(zip(bases, strata, strict=True)):
        if base is not None and sum(n for _, n, _ in rows) == numel:
            groups.setdefault((base, tuple((e, n) for e, n, _ in rows)), []).append(mask)
    for (_, levels), members in groups.items():
        changed = np.array([[c for _, _, c in strata[m]] for m in members], np.float64)
        sums = np.zeros((len(members), len(members)))
        for column, (_, n) in enumerate(levels):
            sums += np.outer(changed[:, column], changed[:, column]) / max(n, 1)
        found[np.ix_(members, members)] = sums
    return found


def expected_margins(rows: Reals, columns: Reals, changed: npt.ArrayLike) -> Reals:
    """(sum_i rA_i rB_i)(sum_j cA_j cB_j) / (|A| |B|); 0 where a mask is empty.

    rows [masks, rows] and columns [masks, columns] are the changed parameters of each. The sums
    are whole numbers below 2^53 and so exact, in whatever order BLAS adds them.
    """
    c = np.asarray(changed, np.float64)
    return (rows @ rows.T) * (columns @ columns.T) / np.maximum(np.outer(c, c), 1)
