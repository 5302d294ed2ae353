"""Number formats of stored weights, as the kernels need them: bit layouts, not Python dtypes.

IEEE-like formats are sign-magnitude, so `magnitude = bits & magnitude_mask` orders the absolute
values and the signed magnitude (the ordinal) counts ULPs: neighbours differ by 1, +0 and -0 are
both 0.
"""

from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

NEVER = 0xFFFF_FFFF_FFFF


@dataclass(frozen=True, slots=True)
class Format:
    """One number format.

    `inf` is the magnitude of infinity (NEVER if the format has none) and magnitudes from
    `nan_from` on are NaN. `exponents` is how many values the exponent index takes; the index minus
    `bias` is the binary exponent, and index 0 holds subnormals and zero, which share one ULP.
    """

    name: str
    kind: Literal["float", "int", "uint"]
    bits: int
    numpy: npt.DTypeLike
    mantissa_bits: int = 0
    bias: int = 1
    inf: int = NEVER
    nan_from: int = NEVER

    @property
    def magnitude_mask(self) -> int:
        """All bits but the sign."""
        return (1 << (self.bits - 1)) - 1

    @property
    def nonfinite_from(self) -> int:
        """The smallest magnitude that is not a finite number."""
        return min(self.inf, self.nan_from)

    @property
    def exponents(self) -> int:
        """How many values the exponent index takes."""
        if self.kind != "float":
            return self.bits + 1
        return 1 << (self.bits - 1 - self.mantissa_bits)

    @property
    def unsigned(self) -> np.dtype[np.generic]:
        """The numpy dtype of the raw bits."""
        return np.dtype(f"u{self.bits // 8}")


def _float(name: str, dtype: npt.DTypeLike, bits: int, mantissa: int, bias: int) -> Format:
    inf = ((1 << (bits - 1 - mantissa)) - 1) << mantissa
    return Format(name, "float", bits, dtype, mantissa, bias, inf, inf + 1)


FORMATS = {
    f.name: f
    for f in (
        _float("BF16", ml_dtypes.bfloat16, 16, 7, 127),
        _float("F16", np.float16, 16, 10, 15),
        _float("F32", np.float32, 32, 23, 127),
        _float("F64", np.float64, 64, 52, 1023),
        _float("F8_E5M2", ml_dtypes.float8_e5m2, 8, 2, 15),
        # e4m3fn spends the top exponent on numbers: no infinity, one NaN a sign
        Format("F8_E4M3", "float", 8, ml_dtypes.float8_e4m3fn, 3, 7, NEVER, 0x7F),
        Format("I8", "int", 8, np.int8),
        Format("I16", "int", 16, np.int16),
        Format("I32", "int", 32, np.int32),
        Format("I64", "int", 64, np.int64),
        Format("U8", "uint", 8, np.uint8),
        Format("U16", "uint", 16, np.uint16),
        Format("U32", "uint", 32, np.uint32),
        Format("U64", "uint", 64, np.uint64),
        Format("BOOL", "uint", 8, np.uint8),
    )
}
"""Every dtype that can be compared, by its name in safetensors headers."""

MAX_BUCKET = 64
"""Steps are bucketed by powers of two: bucket 0 is 1 ULP, bucket b is 2^(b-1)+1 .. 2^b."""


def bucket_bounds(bucket: int) -> tuple[int, int]:
    """Smallest and largest |step| of a bucket; the last one ends at 2^63 - 1, as int64 does.

    >>> [bucket_bounds(b) for b in (0, 1, 2, 3)]
    [(1, 1), (2, 2), (3, 4), (5, 8)]
    """
    low = 1 if bucket == 0 else (1 << (bucket - 1)) + 1
    return min(low, 2**63 - 1), min(1 << bucket, 2**63 - 1)
