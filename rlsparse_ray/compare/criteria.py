"""The rules that say "changed".

Every criterion is at most as wide as `exact`: two values that are equal are changed under none.
Two values that differ and of which one is NaN or infinite are changed under all of them.
"""

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal


@dataclass(frozen=True, slots=True)
class Criterion:
    """`exact`: the values differ. `abs`: |d| > tolerance. `rel`: |d| > tolerance max(|a|, |b|).

    `d = tuned - base` is one subtraction in fp32 (fp64 for F64 and integers) of the values as they
    are in the comparison dtype, never a difference that was itself rounded to bf16. The tolerance
    is rounded to the same precision.
    """

    kind: Literal["exact", "abs", "rel"]
    tolerance: float = 0.0

    def __str__(self) -> str:
        if self.kind == "exact":
            return "exact"
        digits, exponent = f"{Decimal(repr(self.tolerance)).normalize():e}".split("e")
        return f"{self.kind}:{digits}e{int(exponent)}"


def parse_criterion(text: str) -> Criterion:
    """The criterion that `text` names.

    Raises:
        ValueError: it names none, or its tolerance is 0 or infinite in fp32, under which a change
            to NaN or Inf would not count; the message says what can be written.

    >>> str(parse_criterion("abs:0.00001"))
    'abs:1e-5'
    """
    kind, _, number = text.strip().partition(":")
    if kind == "exact" and not number:
        return Criterion("exact")
    try:
        tolerance = Decimal(number)
    except InvalidOperation:
        tolerance = Decimal(-1)
    if kind not in ("abs", "rel") or not tolerance.is_finite() or tolerance <= 0:
        raise ValueError(
            f"unknown criterion {text!r}: write exact, abs:TOLERANCE or rel:TOLERANCE (abs:1e-5)"
        )
    if not 0 < _in_fp32(tolerance) < math.inf:
        raise ValueError(
            f"criterion {text!r}: the tolerance is {_in_fp32(tolerance):g} in fp32, in which "
            "differences are taken: give one from 1e-45 to 3.4e38"
        )
    return Criterion("abs" if kind == "abs" else "rel", float(tolerance))


def _in_fp32(number: Decimal) -> float:
    try:
        (rounded,) = struct.unpack("f", struct.pack("f", number))
    except OverflowError:
        return math.inf
    return float(rounded)


COUNTED = tuple(
    parse_criterion(text)
    for text in (
        "exact",
        "abs:1e-8",
        "abs:1e-7",
        "abs:1e-6",
        "abs:1e-5",
        "abs:1e-4",
        "abs:1e-3",
        "rel:1e-3",
    )
)
"""Counted for every tensor from the one pass, whatever masks are kept."""


def counted_with(masked: Iterable[Criterion]) -> tuple[Criterion, ...]:
    """The counted criteria: the standard ones, then those of `masked` that are not among them."""
    return (*COUNTED, *(c for c in dict.fromkeys(masked) if c not in COUNTED))
