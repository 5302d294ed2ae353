"""Stored bytes to bits of the comparison dtype, rounding to nearest even.

Both backends use this, so they cannot round differently. F64 goes to narrower formats through F32.
"""

import numba as nb
import numpy as np
import numpy.typing as npt

from rlsparse_ray.compare.formats import FORMATS, Format

Bits = npt.NDArray[np.unsignedinteger]


def cast_bits(raw: npt.NDArray[np.uint8], stored: str, target: Format) -> Bits:
    """The numbers in `raw` (uint8, n items of dtype `stored`) as bits of `target`, shape [n].

    A view where the dtypes agree. Narrowing rounds to nearest even; what overflows becomes what
    the target has for it (infinity, or NaN in F8_E4M3).
    """
    source = FORMATS[stored]
    if source == target:
        return raw.view(target.unsigned)
    if (source.name, target.name) == ("F32", "BF16"):
        narrowed: Bits = _f32_to_bf16(raw.view(np.uint32))
        return narrowed
    values = raw.view(source.numpy)
    with np.errstate(over="ignore", invalid="ignore"):
        if source.name == "F64":
            values = values.astype(np.float32)
        return values.astype(target.numpy).view(target.unsigned)


@nb.njit(nogil=True, cache=True)
def _f32_to_bf16(bits: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint16]:
    """4x faster than ml_dtypes' cast: 8 GB/s of input a core against 2."""
    out = np.empty(bits.size, np.uint16)
    for i in range(bits.size):
        x = bits[i]
        rounded = (x + np.uint32(0x7FFF) + ((x >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        quiet = (x >> np.uint32(16)) | np.uint32(0x40)
        is_nan = (x & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        out[i] = np.uint16(quiet if is_nan else rounded)
    return out
