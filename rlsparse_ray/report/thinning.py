"""Whole runs left out, evenly, where an answer is more than a page or a picture can take."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

HELD = 1_500_000
"""Bytes that the rows of a figure may take of a page, which stays under 10 MB with twelve such."""
LINES = 400
"""Lines that a picture has at most, of 18 to 30 pixels each: Chrome leaves a canvas of more than
32,767 pixels empty, and takes seconds to draw one that is nearly as high."""


@dataclass(frozen=True, slots=True)
class Units:
    """What stays whole: the rows of a run, or those of two runs that both stay.

    Attributes:
        noun: several of them, as a reader calls them.
        columns: those with their names; a row is of as many units as there are columns.
    """

    noun: str
    columns: tuple[str, ...]


RUNS = Units("runs", ("run",))
TWO_RUNS = Units("runs", ("name_a", "name_b"))


@dataclass(frozen=True, slots=True)
class Thinned:
    """Some rows of an answer: those of `kept` of `of` units."""

    rows: pa.Table
    units: Units
    kept: int
    of: int

    @property
    def whole(self) -> bool:
        """Whether nothing was left out."""
        return self.kept == self.of

    def names(self) -> dict[str, list[str]]:
        """By column of the units, those that were kept."""
        return {c: self.rows[c].unique().to_pylist() for c in self.units.columns}

    def words(self) -> str:
        """Which were kept, as a part of a sentence."""
        return (
            f"{self.kept:,} of {self.of:,} {self.units.noun}, taken evenly from the sorted list of "
            "their names"
        )


def thinned(rows: pa.Table, units: Units, most: int | None = None, held: int = HELD) -> Thinned:
    """As many units as fit, evenly through the sorted list of their names; one always does.

    Args:
        rows: the answer.
        units: what is kept or left out as a whole.
        most: units at most, any number unless given.
        held: bytes at most, as `weight` counts them.
    """
    names = _names(rows, units)
    keep = len(names) if most is None else min(most, len(names))
    found = _of(rows, units, names, keep)
    while keep > 1 and (heavy := weight(found) / held) > 1:
        # the rows of two runs grow with the square of the runs
        fitting = int(keep * heavy ** (-1 / len(units.columns)))
        keep = max(1, min(keep - 1, fitting))
        found = _of(rows, units, names, keep)
    return Thinned(found, units, keep, len(names))


def weight(rows: pa.Table) -> int:
    """Bytes of the rows in a page, about: nine a number, five a text and each text once."""
    total = 0
    for column in rows.columns:
        if pa.types.is_string(column.type):
            total += 5 * rows.num_rows + (pc.sum(pc.binary_length(column.unique())).as_py() or 0)
        else:
            total += 9 * rows.num_rows
    return total


def _names(rows: pa.Table, units: Units) -> list[str]:
    found = {name for column in units.columns for name in rows[column].unique().to_pylist()}
    return sorted(found, key=str)


def _of(rows: pa.Table, units: Units, names: list[str], keep: int) -> pa.Table:
    if keep == len(names):
        return rows
    places = np.linspace(0, len(names) - 1, keep).round().astype(int)
    kept = pa.array([names[place] for place in places], pa.string())
    for column in units.columns:
        rows = rows.filter(pc.is_in(rows[column], kept))
    return rows
