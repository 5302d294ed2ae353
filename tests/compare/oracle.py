"""The slow, obvious comparison: one value at a time, in exact fractions, from raw bits."""

import math
from fractions import Fraction

import numpy as np

from rlsparse_ray.blocks import BLOCK
from rlsparse_ray.compare import Criterion, Format


def decode(bits, fmt):
    """A Fraction, or 'nan', 'inf', '-inf', by the textbook definition of the format."""
    bits = int(bits)
    if fmt.kind == "uint":
        return Fraction(bits)
    if fmt.kind == "int":
        return Fraction(bits - (1 << fmt.bits) if bits >> (fmt.bits - 1) else bits)
    sign = -1 if bits >> (fmt.bits - 1) else 1
    magnitude = bits & fmt.magnitude_mask
    if magnitude >= fmt.nan_from:
        return "nan"
    if magnitude == fmt.inf:
        return "inf" if sign > 0 else "-inf"
    field, fraction = divmod(magnitude, 1 << fmt.mantissa_bits)
    if field == 0:
        value = Fraction(fraction, 1 << fmt.mantissa_bits) * Fraction(2) ** (1 - fmt.bias)
    else:
        value = (1 + Fraction(fraction, 1 << fmt.mantissa_bits)) * Fraction(2) ** (field - fmt.bias)
    return sign * value


def difference_dtype(fmt):
    """The precision in which differences are computed."""
    return np.float32 if fmt.kind == "float" and fmt.bits <= 32 else np.float64


def exponent(bits, fmt):
    if fmt.kind == "float":
        return ((int(bits) & fmt.magnitude_mask) >> fmt.mantissa_bits) - fmt.bias
    return abs(int(decode(bits, fmt))).bit_length() - 1


def ordinal(bits, fmt):
    if fmt.kind != "float":
        return int(decode(bits, fmt))
    magnitude = int(bits) & fmt.magnitude_mask
    return -magnitude if int(bits) >> (fmt.bits - 1) else magnitude


def differ(x, y, fmt):
    a, b = decode(x, fmt), decode(y, fmt)
    if a == "nan" and b == "nan":
        return int(x) != int(y)
    return a != b


def _round(value, dtype):
    """A Fraction rounded once to nearest even in `dtype`."""
    if dtype is np.float64:
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    with np.errstate(over="ignore"):
        down = np.float32(float(value))  # may be double-rounded: look at the neighbours too
        near = [np.nextafter(down, np.float32(s)) for s in (-np.inf, np.inf)] + [down]
    finite = [v for v in near if np.isfinite(v)]
    if not np.isfinite(down):
        return down
    return min(finite, key=lambda v: (abs(Fraction(float(v)) - value), int(v.view(np.uint32)) & 1))


def distance(x, y, fmt):
    """|d| in the precision of differences, infinite where a side is not finite."""
    a, b = decode(x, fmt), decode(y, fmt)
    if isinstance(a, str) or isinstance(b, str):
        return math.inf
    return abs(float(_round(b - a, difference_dtype(fmt))))


def changed(x, y, fmt, criterion: Criterion):
    if not differ(x, y, fmt):
        return False
    size = distance(x, y, fmt)
    if criterion.kind == "exact" or math.isinf(size):
        return True
    real = difference_dtype(fmt)
    tolerance = real(criterion.tolerance)
    if criterion.kind == "rel":
        scale = max(abs(decode(x, fmt)), abs(decode(y, fmt)))
        tolerance = tolerance * real(_round(scale, real))
    return size > float(tolerance)


def bucket(step):
    """(low, high) of the power-of-two bucket of a signed step, by searching."""
    low, high = 1, 1
    while abs(step) > high:
        low, high = high + 1, 2 * high
    low, high = min(low, 2**63 - 1), min(high, 2**63 - 1)
    return (low, high) if step > 0 else (-high, -low)


def compare(base, tuned, fmt: Format, masked, counted, shape):
    """Every fact that the kernels report, as plain Python."""
    n = len(base)
    flags = {c: [changed(x, y, fmt, c) for x, y in zip(base, tuned, strict=True)] for c in counted}
    differing = [differ(x, y, fmt) for x, y in zip(base, tuned, strict=True)]
    finite = [
        not isinstance(decode(x, fmt), str) and not isinstance(decode(y, fmt), str)
        for x, y in zip(base, tuned, strict=True)
    ]
    steps, strata = {}, {c: {} for c in masked}
    for i in range(n):
        if not differing[i]:
            key = (0, 0)
        elif finite[i]:
            key = bucket(ordinal(tuned[i], fmt) - ordinal(base[i], fmt))
        else:
            key = (None, None)
        steps[key] = steps.get(key, 0) + 1
        for c in masked:
            total, hit = strata[c].get(exponent(base[i], fmt), (0, 0))
            strata[c][exponent(base[i], fmt)] = (total + 1, hit + flags[c][i])
    sizes = [
        distance(x, y, fmt) if d else 0.0 for x, y, d in zip(base, tuned, differing, strict=True)
    ]
    sizes = [s for s in sizes if math.isfinite(s)]
    margins = None
    if len(shape) >= 2 and n:
        tables = {c: np.array(flags[c]).reshape(-1, shape[-1]) for c in masked}
        margins = {c: (t.sum(axis=1).tolist(), t.sum(axis=0).tolist()) for c, t in tables.items()}
    return {
        "changed": {c: sum(flags[c]) for c in counted},
        "bits": {
            c: np.packbits(np.array(flags[c], bool), bitorder="little").tobytes() for c in masked
        },
        "block_changed": {
            c: [sum(flags[c][i : i + BLOCK]) for i in range(0, n, BLOCK)] for c in masked
        },
        "strata": {c: dict(sorted(strata[c].items())) for c in masked},
        "steps": steps,
        "largest": max(sizes, default=0.0),
        "update_l2": math.sqrt(math.fsum(s * s for s in sizes)),
        "nan": sum(decode(y, fmt) == "nan" for y in tuned),
        "inf": sum(decode(y, fmt) in ("inf", "-inf") for y in tuned),
        "margins": margins,
    }
