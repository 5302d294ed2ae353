"""The geometry of an update: ranks, spectra, angles and masks of base and tuned matrices."""

from rlsparse_ray.compare.spectra.base_masks import low_magnitude_mask, principal_mask
from rlsparse_ray.compare.spectra.cost import flops, working_bytes
from rlsparse_ray.compare.spectra.measure import BaseMatrices, spectra, spectra_batch
from rlsparse_ray.compare.spectra.options import Method, SpectraOptions
from rlsparse_ray.compare.spectra.results import MaskOverlap, Spectra

__all__ = [
    "BaseMatrices",
    "MaskOverlap",
    "Method",
    "Spectra",
    "SpectraOptions",
    "flops",
    "low_magnitude_mask",
    "principal_mask",
    "spectra",
    "spectra_batch",
    "working_bytes",
]
