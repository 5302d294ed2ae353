"""Values of tensors that are not stored as they are compared: codes and scales, low-rank updates.

Every function gives what the official conversion of the format gives, bit for bit.
"""

import ml_dtypes
import numba as nb
import numpy as np
import numpy.typing as npt

from rlsparse_ray.compare.cast import cast_bits
from rlsparse_ray.compare.formats import FORMATS

F32 = npt.NDArray[np.float32]
Raw = npt.NDArray[np.uint8]

_SCALES = {"F8_E8M0": ml_dtypes.float8_e8m0fnu}
"""Scale dtypes that are not compared themselves."""

_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The values of the 16 codes of E2M1."""


def as_float32(raw: Raw, dtype: str) -> F32:
    """The numbers in `raw`, exactly: narrower floats widened, F32 as a view. Shape [n]."""
    numpy = _SCALES.get(dtype) or FORMATS[dtype].numpy
    return raw.view(numpy).astype(np.float32, copy=False)


def fp8_to_bf16(codes: Raw, dtype: str, scales: F32, block: tuple[int, int]) -> Raw:
    """Dequantise fp8: float32 product of code and scale, rounded once to nearest even.

    This is what DeepSeek's fp8_cast_bf16.py and transformers do for a bf16 model.

    Args:
        codes: [rows, columns] uint8.
        dtype: F8_E4M3 or F8_E5M2.
        scales: [ceil(rows / block[0]), ceil(columns / block[1])].
        block: rows and columns that share a scale; the last ones may be short.

    Returns:
        Bytes of the bf16 values in C order.
    """
    table = as_float32(np.arange(256, dtype=np.uint8), dtype)
    products = np.empty(codes.shape, np.float32)
    _scale(codes, table, scales, block, products)
    return cast_bits(products.reshape(-1).view(np.uint8), "F32", FORMATS["BF16"]).view(np.uint8)


@nb.njit(nogil=True, cache=True)
def _scale(
    codes: Raw, table: F32, scales: F32, block: tuple[int, int], products: F32
) -> None:  # pragma: no cover (compiled)
    rows, columns = codes.shape
    for i in range(rows):
        for k in range(scales.shape[1]):
            scale = scales[i // block[0], k]
            for j in range(k * block[1], min(columns, (k + 1) * block[1])):
                products[i, j] = table[codes[i, j]] * scale


def mxfp4_to_bf16(blocks: Raw, scales: Raw) -> Raw:
    """Dequantise one expert and transpose it, as transformers' convert_moe_packed_tensors does.

    Args:
        blocks: [rows, groups, 16]: two codes a byte, the low half first.
        scales: [rows, groups]: exponents of two, 127 more than they mean.

    Returns:
        Bytes of the bf16 values [groups * 32, rows] in C order.
    """
    rows, groups, _ = blocks.shape
    values = np.empty((groups * 32, rows), np.uint16)
    _unpack(blocks, scales, _mxfp4_table(), values)
    return values.reshape(-1).view(np.uint8)


def _mxfp4_table() -> npt.NDArray[np.uint16]:
    """The bf16 bits of every scale and code: [256, 16]; what is too large becomes infinity."""
    products = np.ldexp(np.array(_FP4), np.arange(-127, 129)[:, None])
    with np.errstate(over="ignore"):
        raw = products.astype(np.float32).reshape(-1).view(np.uint8)
    return np.asarray(cast_bits(raw, "F32", FORMATS["BF16"]), np.uint16).reshape(256, 16)


@nb.njit(nogil=True, cache=True)
def _unpack(
    blocks: Raw, scales: Raw, table: npt.NDArray[np.uint16], values: npt.NDArray[np.uint16]
) -> None:  # pragma: no cover (compiled)
    rows, groups, width = blocks.shape
    # 64 rows at a time, so that a line of the transposed result is written while it is in cache
    for first in range(0, rows, 64):
        for g in range(groups):
            for i in range(first, min(rows, first + 64)):
                scaled = table[scales[i, g]]
                for j in range(width):
                    pair = blocks[i, g, j]
                    values[g * 32 + 2 * j, i] = scaled[pair & 15]
                    values[g * 32 + 2 * j + 1, i] = scaled[pair >> 4]


def low_rank(left: F32, right: F32, scaling: float) -> F32:
    """`scaling * left @ right` in float32: [rows, rank] by [rank, columns] to [rows, columns].

    At least two rows are multiplied: BLAS adds up a single one in another order, and so to other
    bits than peft gets from the whole matrix.
    """
    rows = left.shape[0]
    if rows == 1:
        left = np.repeat(left, 2, axis=0)
    product = (left @ right)[:rows]
    np.multiply(product, np.float32(scaling), out=product)
    return product


def add_update(base: Raw, dtype: str, update: F32) -> Raw:
    """Base values plus an update [n], added in float32 and rounded once to the base's dtype."""
    total = as_float32(base, dtype) + update
    return cast_bits(total.view(np.uint8), "F32", FORMATS[dtype]).view(np.uint8)
