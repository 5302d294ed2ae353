"""Principal angles between subspaces, and how much of an update lies in one."""

import math

import torch
from torch import Tensor

from rlsparse_ray.compare.spectra.findings import Findings
from rlsparse_ray.compare.spectra.spectrum import Subspaces


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Angles [k] in radians, ascending, between the spans of two [n, k] of orthonormal columns.

    The cosines are the singular values of first^T second, but a cosine near 1 does not know its
    angle: below 1.5e-8 rad in float64 and 3e-4 rad in float32 it rounds to 1. So angles below 45
    degrees come from the sines, the singular values of second - first first^T second (Bjorck and
    Golub, 1973).
    """
    product = first.mT @ second
    cosines = torch.linalg.svdvals(product).clamp(max=1)
    sines = torch.linalg.svdvals(second - first @ product).clamp(max=1).flip(-1)
    return torch.where(cosines > 0.5**0.5, sines.asin(), cosines.acos())


def keep_angles(found: Findings, base: Subspaces, tuned: Subspaces) -> None:
    """Keep the angles of both sides, and how far each may be off."""
    found.precision["angles"] = "float64"
    for name, first, second in (
        ("angles_left", base.left, tuned.left),
        ("angles_right", base.right, tuned.right),
    ):
        found.fields[name] = tuple(principal_angles(first, second).tolist())
        off = math.asin(base.drift) + math.asin(tuned.drift)
        found.errors[name] = min(math.pi / 2, off)


def keep_shares(
    found: Findings, left: Tensor, right: Tensor, base: Subspaces, squares: float
) -> None:
    """Keep how much of an update D lies in the principal subspace of its base.

    Args:
        found: where it is kept.
        left: D^T U [columns, k].
        right: D V [rows, k].
        base: U and V.
        squares: ||D||_F^2 > 0.
    """
    found.precision["shares"] = "float64"
    for name, part, off in (
        ("inside_left", left, base.drift),
        ("inside_right", right, base.drift),
        ("outside", base.left.mT @ right, 2 * base.drift),
    ):
        inside = min(1.0, float(part.square().sum()) / squares)
        # a projector is off by the sine of the angle, and so is the share, at most
        found.keep(name, 1 - inside if name == "outside" else inside, min(1.0, off))
