"""Bit layouts of floats as compile-time constants of numba kernels.

A tag is an empty named tuple of a class of its own for each format, so that numba compiles and
caches a kernel once a format. The functions here are what kernels may ask of bits (uint8, uint16
or uint32) and of magnitudes (uint32, the bits without the sign).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from rlsparse_ray.compare.formats import FORMATS, Format


class Bf16(NamedTuple):
    """Tag of BF16."""


class F16(NamedTuple):
    """Tag of F16."""


class F32(NamedTuple):
    """Tag of F32."""


class E4m3(NamedTuple):
    """Tag of F8_E4M3."""


class E5m2(NamedTuple):
    """Tag of F8_E5M2."""


TAGS: dict[str, Any] = {
    "BF16": Bf16(),
    "F16": F16(),
    "F32": F32(),
    "F8_E4M3": E4m3(),
    "F8_E5M2": E5m2(),
}
"""The tag of each format that the kernels take."""

_FORMAT_OF = {type(tag): FORMATS[name] for name, tag in TAGS.items()}


def _in_kernels(build: Callable[[Format], Any]) -> Any:
    """A function for kernels only: `build` gives its code for one format."""

    def stub(bits: Any, tag: Any) -> Any:
        raise NotImplementedError("only numba kernels call this")

    # numba compares signatures with annotations; the lambdas below cannot have any
    @overload(stub, inline="always")
    def _typed(bits, tag):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return build(_FORMAT_OF[tag.instance_class])

    stub.__doc__ = build.__doc__
    return stub


@_in_kernels
def magnitude(fmt: Format) -> Any:
    """The bits without the sign."""
    mask = np.uint32(fmt.magnitude_mask)
    return lambda bits, tag: np.uint32(bits) & mask


@_in_kernels
def exponent(fmt: Format) -> Any:
    """The exponent index of a magnitude."""
    shift = np.uint32(fmt.mantissa_bits)
    return lambda bits, tag: np.uint32(np.uint32(bits) >> shift)


@_in_kernels
def regular(fmt: Format) -> Any:
    """Whether a magnitude is a finite number."""
    first = np.uint32(fmt.nonfinite_from)
    return lambda bits, tag: bits < first


@_in_kernels
def is_nan(fmt: Format) -> Any:
    """Whether a magnitude is NaN."""
    first = np.uint32(fmt.nan_from)
    return lambda bits, tag: bits >= first


@_in_kernels
def is_inf(fmt: Format) -> Any:
    """Whether a magnitude is infinity."""
    if fmt.inf > fmt.magnitude_mask:
        return lambda bits, tag: False
    infinity = np.uint32(fmt.inf)
    return lambda bits, tag: bits == infinity


@_in_kernels
def value(fmt: Format) -> Any:
    """The number as float32. Formats with other exponents are moved by one exact product."""
    shift = np.uint32(23 - fmt.mantissa_bits)
    if fmt.bias == FORMATS["F32"].bias:
        return lambda bits, tag: np.uint32(np.uint32(bits) << shift).view(np.float32)
    mask, sign = np.uint32(fmt.magnitude_mask), np.uint32(1 << (fmt.bits - 1))
    up, scale = np.uint32(32 - fmt.bits), np.float32(2.0 ** (127 - fmt.bias))
    return lambda bits, tag: np.float32(
        np.uint32(
            np.uint32((np.uint32(bits) & mask) << shift) | np.uint32((np.uint32(bits) & sign) << up)
        ).view(np.float32)
        * scale
    )
