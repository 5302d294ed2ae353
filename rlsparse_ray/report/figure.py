"""What a figure is: a question, the query that answers it, and how the answer is drawn."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import duckdb
import pyarrow as pa

from rlsparse_ray.report.thinning import LINES, RUNS, Thinned, Units, thinned

Spec = dict[str, Any]
Choice = Mapping[str, str]
"""By the name of a switch, the option that is chosen."""
Ask = Callable[[duckdb.DuckDBPyConnection], pa.Table]
"""From a session over a store to as much of the answer of a query as a page can wait for."""
Count = Callable[[pa.Table, duckdb.DuckDBPyConnection, str], pa.Table]
"""From the answer of a query, a session over a store and its place, to the rows of a figure."""


@dataclass(frozen=True, slots=True)
class Switch:
    """A choice between a few ways to draw the same rows.

    `options` are labels by name, the first one being what is drawn unless told otherwise. `idle`
    names options of other switches under which this one changes nothing. `column` is the column
    that an option draws, with {} for its name; those without any value are not offered.
    """

    name: str
    label: str
    options: Mapping[str, str]
    idle: tuple[str, ...] = ()
    column: str = ""

    def offered(self, rows: pa.Table) -> Self:
        """With the options that these rows have a value for; with all if they have none."""
        if not self.column:
            return self
        kept = {o: t for o, t in self.options.items() if values_of(rows, self.column.format(o))}
        return replace(self, options=kept or self.options)


@dataclass(frozen=True, slots=True)
class Filter:
    """A choice between the values of a column: only rows that have the chosen one are drawn."""

    column: str
    label: str


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of the page.

    Attributes:
        name: what `rlsparse plot` calls it.
        title: what it shows, in a few words.
        caption: how to read it, and what it does not say.
        query: the query of `queries/` behind it; its parameters are the defaults.
        columns: those of the answer that are drawn or downloaded.
        draw: the Vega-Lite specification for the rows and a choice of switches, without its data.
        summary: one sentence that says what there is to see, for those who do not see it.
        fills: the command that makes its rows, if there are none, or why there are none.
        units: what a page or a picture leaves out as a whole where there is too much of it.
        lines: those of which each has a line of its own; a picture has `LINES` of them at most.
        shape: makes the columns of the answer of the query.
        ask: asks the query itself, where all of its answer would read too much for a page.
        count: adds to the answer of the query what has to be counted in the masks of the store.
        height: the largest height in pixels on a page; higher ones scroll.
    """

    name: str
    title: str
    caption: str
    query: str
    columns: tuple[str, ...]
    draw: Callable[[pa.Table, Choice], Spec]
    summary: Callable[[pa.Table], str]
    fills: str
    switches: tuple[Switch, ...] = ()
    filters: tuple[Filter, ...] = ()
    units: Units = RUNS
    lines: Units | None = None
    shape: Callable[[pa.Table], pa.Table] = lambda answer: answer
    ask: Ask | None = None
    count: Count | None = None
    height: int = 720

    def drawn(self, rows: pa.Table) -> Thinned:
        """Those rows that a picture shows of what a page holds."""
        return thinned(rows, self.lines or self.units, LINES if self.lines else None)

    def offered(self, rows: pa.Table) -> Self:
        """With the options that these rows have a value for."""
        return replace(self, switches=tuple(s.offered(rows) for s in self.switches))

    def default(self) -> dict[str, str]:
        """The first option of every switch."""
        return {s.name: next(iter(s.options)) for s in self.switches}

    def shown(self, choice: Choice) -> list[str]:
        """What is chosen, in words, switch by switch; none of those that change nothing."""
        told = (s for s in self.switches if not set(s.idle) & set(choice.values()))
        return [f"{s.label}: {s.options[choice[s.name]]}" for s in told]

    def choices(self) -> Iterator[dict[str, str]]:
        """Every combination of options, the default first."""
        names = [s.name for s in self.switches]
        for options in itertools.product(*(s.options for s in self.switches)):
            yield dict(zip(names, options, strict=True))


def values_of(rows: pa.Table, column: str) -> list[Any]:
    """The values of a column in the order in which they first come, null left out."""
    return list(dict.fromkeys(v for v in rows[column].to_pylist() if v is not None))
