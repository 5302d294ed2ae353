"""What to measure of an update and how exactly."""

from dataclasses import dataclass
from typing import Literal

Method = Literal["auto", "exact", "randomised"]

EXACT_SIDE = {"cpu": 4096, "cuda": 8192}
"""Shorter side up to which `auto` takes the whole spectrum: its cost grows with side^2 x length."""


@dataclass(frozen=True, slots=True)
class SpectraOptions:
    """How the geometry of an update is measured.

    `k` is the dimension of the principal subspace: the first k left and right singular vectors of
    the base. A matrix with no more than k rows or columns has no principal subspace (it would be
    the whole space): what needs one is None there.

    Args:
        method: `exact` takes the whole spectrum in float64; `randomised` the first singular values
            and vectors by block Krylov, with errors; `auto` is exact up to a shorter side of
            4,096 on a CPU and 8,192 on a GPU.
        k: dimension of the principal subspace, and of the top-k energy.
        alphas: sizes of the principal and low-magnitude masks as shares of the matrix.
        energies: shares of the squared Frobenius norm that energy ranks are given for.
        device: cpu, cuda, cuda:1, ...
        oversample: columns of the random block beyond k, at least 1.
        depth: blocks of the Krylov basis, at least 2; the error shrinks with each.
        seed: of the random block, which is the same on every device.

    Raises:
        ValueError: an option is out of range; the message names it.
    """

    method: Method = "auto"
    k: int = 64
    alphas: tuple[float, ...] = (0.1, 0.25, 0.5)
    energies: tuple[float, ...] = (0.9, 0.99)
    device: str = "cpu"
    oversample: int = 16
    depth: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("auto", "exact", "randomised"):
            raise ValueError(f"method {self.method!r}: say auto, exact or randomised")
        for name, low in (("k", 1), ("oversample", 1), ("depth", 2)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} = {getattr(self, name)}: say {low} or more")
        for name in ("alphas", "energies"):
            if not all(0 < share < 1 for share in getattr(self, name)):
                raise ValueError(f"{name} = {getattr(self, name)}: shares lie between 0 and 1")

    def method_for(self, rows: int, columns: int) -> Literal["exact", "randomised"]:
        """The method that a matrix of this shape is measured with.

        A side no longer than the random block is no case for `randomised`: that would be exact.
        """
        short = min(rows, columns)
        limit = EXACT_SIDE["cpu" if self.device == "cpu" else "cuda"]
        if self.method == "exact" or short <= self.k + self.oversample:
            return "exact"
        return "exact" if self.method == "auto" and short <= limit else "randomised"
