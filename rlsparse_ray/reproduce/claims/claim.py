"""What a claim is, and how its verdict comes from numbers and thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from rlsparse_ray.reproduce.evidence import Evidence, Row

RESAMPLES = 2000
FEW = 3
"""A verdict from fewer runs is in part at most."""


class Verdict(StrEnum):
    """How a claim stands."""

    holds = "holds"
    in_part = "holds in part"
    fails = "does not hold"
    untested = "not tested"


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found about a claim."""

    verdict: Verdict
    text: str
    """The numbers; for an untested claim, why it is not tested."""
    runs: int
    """Training runs that went in."""
    rows: Sequence[Row] = ()
    """The numbers in detail."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the papers and how it is tested."""

    number: str
    text: str
    published: str
    """The papers' numbers."""
    rule: str
    """The thresholds of the verdict, in words."""
    test: Callable[[Evidence], Measured]


def untested(why: str, rows: Sequence[Row] = ()) -> Measured:
    """There is nothing to judge by; `rows` show what there is."""
    return Measured(Verdict.untested, why, 0, rows)


def in_part_at_most(measured: Measured, why: str) -> Measured:
    """A verdict that is no better than in part, and says why; an untested claim stays as it is."""
    if measured.verdict is Verdict.untested:
        return measured
    verdict = Verdict.in_part if measured.verdict is Verdict.holds else measured.verdict
    return replace(measured, verdict=verdict, text=f"{measured.text}; {why}")


def heeding_runs(measured: Measured) -> Measured:
    """The verdict, in part at most where it rests on fewer than FEW runs."""
    if measured.runs >= FEW:
        return measured
    runs = "1 run" if measured.runs == 1 else f"{measured.runs} runs"
    return in_part_at_most(measured, f"from {runs} only")


def grade(value: float, holds: float, in_part: float) -> Verdict:
    """At least `holds`, at least `in_part`, or less.

    >>> grade(0.8, holds=0.7, in_part=0.5), grade(0.6, 0.7, 0.5), grade(0.1, 0.7, 0.5)
    (<Verdict.holds: 'holds'>, <Verdict.in_part: 'holds in part'>, <Verdict.fails: 'does not hold'>)
    """
    if value >= holds:
        return Verdict.holds
    return Verdict.in_part if value >= in_part else Verdict.fails


def mean(values: Iterable[float]) -> float:
    """The mean; NaN of nothing."""
    found = list(values)
    return math.fsum(found) / len(found) if found else math.nan


def rate(value: float) -> str:
    """One share in percent, three digits of it.

    >>> rate(0.7), rate(0.995), rate(0.0002)
    ('70 %', '99.5 %', '0.02 %')
    """
    return f"{100 * value:.3g} %"


def percent(values: Iterable[float]) -> str:
    """Shares as their mean and range.

    >>> percent([0.5, 0.75]), percent([0.5])
    ('62.5 % (50.0 to 75.0)', '50.0 %')
    """
    found = [100 * value for value in values]
    if not found:
        return "-"
    text = f"{mean(found):.1f} %"
    return text if len(found) == 1 else f"{text} ({min(found):.1f} to {max(found):.1f})"


def points(values: Iterable[float]) -> str:
    """Differences of shares in percentage points, with their sign.

    >>> points([-0.01, 0.03])
    '+1.0 points (-1.0 to +3.0)'
    """
    found = [100 * value for value in values]
    text = f"{mean(found):+.1f} points"
    return text if len(found) == 1 else f"{text} ({min(found):+.1f} to {max(found):+.1f})"


def groups(rows: Iterable[Row], *keys: str) -> dict[Any, list[Row]]:
    """Rows by the values of some columns, in the order in which these come."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        key = row[keys[0]] if len(keys) == 1 else tuple(row[k] for k in keys)
        found.setdefault(key, []).append(row)
    return found


def interval(
    values: Sequence[float], sides: Sequence[tuple[str, str]]
) -> tuple[float, float] | None:
    """95 % bootstrap interval of a mean over pairs of runs, drawing runs and not pairs.

    A run is in many pairs, so these are not independent: runs are drawn with replacement and a
    pair counts as often as both of its runs came up. None for fewer than three runs.
    """
    names = sorted({name for pair in sides for name in pair})
    if len(names) < 3:
        return None
    place = {name: n for n, name in enumerate(names)}
    left, right = (np.array([place[pair[k]] for pair in sides]) for k in (0, 1))
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(names), [1 / len(names)] * len(names), RESAMPLES)
    weights = drawn[:, left] * drawn[:, right]
    used = weights.sum(axis=1) > 0
    means = (weights[used] @ np.asarray(values)) / weights[used].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
