"""Singular values and first singular vectors of matrices, with bounds on what they may be off by.

Three ways, all in float64:

gram: eigenvalues of A A^T on the shorter side. All measures together, with vectors and masks, take
0.5 to 1.5 times as long as three SVDs without vectors in float32 (benchmarks/spectra.py). Squaring
costs half the digits of small values: s^2 is known to `slack`, some 2^-52 s_1^2, and so s to
slack / s; what is below sqrt(slack), 1e-7 s_1 or so, cannot be told from 0 and is set to it. An SVD
in float32 is off by up to 1e-6 s_1 even in large values (576 x 1,536) and puts noise of 1.4e-6 s_1
where there should be 0 (300 x 6,000).
svd: LAPACK's or cuSOLVER's SVD, for the few cases that the Gram matrix leaves open.
krylov: the largest values and their vectors only, see krylov.py.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlsparse_ray.compare.spectra.wide import Wide

EPS = 2.0**-52

ZERO = 1e-7
"""A singular value below this share of s_1 spans no principal direction."""

Way = Literal["gram", "svd", "krylov"]


@dataclass(frozen=True, slots=True)
class Values:
    """Singular values [n] of one matrix, descending, and how far each may be off; on the CPU."""

    values: Tensor
    error: Tensor
    way: Way

    @property
    def complete(self) -> bool:
        """Whether these are all of them."""
        return self.way != "krylov"

    def above(self, share: float) -> int:
        """How many are above share x s_1."""
        return int((self.values > share * self.values[0]).sum())

    def doubtful(self, share: float) -> int:
        """How many lie so close to share x s_1 that their error could carry them across."""
        off = (self.values - share * self.values[0]).abs()
        return int((off <= self.error + share * self.error[0]).sum())


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Of matrices A [count, short, long].

    values: singular values [count, n], descending: all of them, or the first.
    error: [count, n], how far each may be off, absolute.
    short: first singular vectors on the shorter side [count, short, k].
    long: those on the longer side [count, long, k]; 0 where the singular value is.
    drift: [count], bound on the sine of the largest angle between these and the true subspace.
    """

    values: Tensor
    error: Tensor
    way: Way
    short: Tensor | None = None
    long: Tensor | None = None
    drift: Tensor | None = None

    def of(self, index: int) -> Values:
        """The singular values of one matrix."""
        return Values(self.values[index].cpu(), self.error[index].cpu(), self.way)


@dataclass(frozen=True, slots=True)
class Subspaces:
    """The first k singular vectors of one matrix: orthonormal columns [rows, k], [columns, k]."""

    left: Tensor
    right: Tensor
    drift: float
    """Bound on the sine of the largest angle between these and the true ones."""
    gap: float
    """(s_k - s_k+1) / s_k."""
    gap_error: float


def principal(spectrum: Spectrum, place: int, transposed: bool) -> Subspaces | None:
    """The first singular vectors of one matrix; None without any, or if its rank is below k.

    Args:
        spectrum: of a batch of matrices.
        place: which of them.
        transposed: whether its shorter side is the columns.
    """
    if spectrum.short is None or spectrum.long is None or spectrum.drift is None:
        return None
    values, error, k = spectrum.values[place], spectrum.error[place], spectrum.short.shape[-1]
    if values[k - 1] <= ZERO * values[0]:
        return None
    sides = (spectrum.short[place], spectrum.long[place])
    return Subspaces(
        *(sides[::-1] if transposed else sides),
        drift=float(spectrum.drift[place]),
        gap=float(1 - values[k] / values[k - 1]),
        gap_error=float((error[k] + error[k - 1]) / values[k - 1]),
    )


def gram_spectrum(matrix: Wide, k: int | None = None) -> Spectrum:
    """Every singular value from the Gram matrix and, with k, the first k vectors.

    Args:
        matrix: A.
        k: below the shorter side.
    """
    gram = matrix.gram()
    squares = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    if k is None:
        power, vectors = torch.linalg.eigvalsh(gram, UPLO="U"), None
    else:
        power, vectors = torch.linalg.eigh(gram, UPLO="U")
    power = power.flip(-1)
    # rounding of the sums, about eps ||A||_F^2 / sqrt(short), and the eigensolver's backward error
    slack = EPS * (squares + matrix.short**0.5 * power[:, 0].abs())
    power = torch.where(power > slack[:, None], power, 0.0)
    values = power.sqrt()
    most = (2 * slack).sqrt()[:, None].expand_as(values)
    error = torch.where(values > 0, torch.minimum(most, slack[:, None] / values), most)
    if vectors is None or k is None:
        return Spectrum(values, error, "gram")
    short = vectors[..., -k:].flip(-1)
    first = values[:, None, :k]
    long = torch.where(first > 0, matrix.transposed_times(short) / first, 0.0)
    gap = power[:, k - 1] - power[:, k] - slack
    drift = torch.where(gap > slack, slack / gap, 1.0)
    return Spectrum(values, error, "gram", short, long, drift)


def svd_values(matrix: Wide) -> Spectrum:
    """Every singular value by an SVD: each within about 2^-52 sqrt(short) s_1."""
    values = torch.linalg.svdvals(matrix.whole())
    error = EPS * matrix.short**0.5 * values[:, :1].expand_as(values)
    return Spectrum(values, error, "svd")
