"""Masks of a base for training: its principal weights and its weights of low magnitude."""

from torch import Tensor

from rlsparse_ray.compare.spectra.masks import by_magnitude, by_principal, mask_of
from rlsparse_ray.compare.spectra.measure import BaseMatrices
from rlsparse_ray.compare.spectra.options import SpectraOptions


def principal_mask(base: Tensor, k: int, alpha: float, device: str = "cpu") -> Tensor:
    """The largest `alpha` of |rank-k SVD of base|: bool [rows, columns], on `device`.

    The mask that `Spectra.overlaps` counts, all ties at the threshold included.

    Args:
        base: [rows, columns], finite, as `BaseMatrices` takes it.
        k: dimension of the principal subspace, below both sides.
        alpha: size of the mask as a share of the matrix, between 0 and 1.
        device: where to compute.

    Raises:
        ValueError: not a matrix, another dtype, NaN or Inf, k or alpha out of range, or a base
            whose rank is below k.
    """
    options = SpectraOptions(k=k, alphas=(alpha,), device=device)
    subspaces = _checked(base, options).subspaces(0)
    if subspaces is None:
        raise ValueError(
            f"shape {list(base.shape)}: no principal subspace of dimension {k}: a side is no "
            f"longer than that, or the rank of the matrix is below it; choose a smaller k"
        )
    return mask_of(by_principal(base.to(device), subspaces.right), alpha)


def low_magnitude_mask(base: Tensor, alpha: float, device: str = "cpu") -> Tensor:
    """The smallest `alpha` of |base|: bool [rows, columns], on `device`; all ties included.

    In bf16 a tie at the threshold is 0.1 to 1 % of a matrix, so that the mask is larger by that.

    Raises:
        ValueError: as `principal_mask`.
    """
    _checked(base, SpectraOptions(alphas=(alpha,), device=device))
    return mask_of(by_magnitude(base.to(device)), alpha)


def _checked(base: Tensor, options: SpectraOptions) -> BaseMatrices:
    bases = BaseMatrices(base[None], options)
    if not base.numel() or not base.isfinite().all():
        raise ValueError(f"shape {list(base.shape)}: a mask needs entries, none of them NaN or Inf")
    return bases
