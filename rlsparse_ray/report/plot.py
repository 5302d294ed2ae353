"""Figures for papers: those of the page, drawn without a browser."""

import shlex
from collections.abc import Mapping
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from rlsparse_ray import sql
from rlsparse_ray.errors import QueryError
from rlsparse_ray.report.answers import Answers
from rlsparse_ray.report.catalogue import figure_named
from rlsparse_ray.report.drawing import Chart, check_suffix
from rlsparse_ray.report.figure import Figure, values_of


def write_plot(
    store: str | Path, name: str, path: Path, choices: Mapping[str, str] | None = None
) -> None:
    """Draw one figure of a store into a file.

    Args:
        store: the store.
        name: one of `FIGURES`.
        path: where to; its suffix says the format: .pdf, .svg or .png.
        choices: by the name of a switch or the column of a filter, what to choose; else the first.

    Raises:
        QueryError: no such figure or choice, or there is nothing to draw yet.
        RlsparseError: another suffix.
    """
    figure_named(name)
    check_suffix(path)
    with sql.connect(store) as con:
        chart = chart_of(con, str(store), name, choices or {})
    chart.write(path)


def chart_of(
    con: duckdb.DuckDBPyConnection, store: str, name: str, choices: Mapping[str, str]
) -> Chart:
    """One figure of a store in an open session; arguments and errors as of `write_plot`."""
    figure = figure_named(name)
    return complete(figure, Answers(con, store).rows(figure), choices, store)


def complete(figure: Figure, rows: pa.Table, choices: Mapping[str, str], store: str) -> Chart:
    """The chart of a figure with the rows of a choice.

    Raises:
        QueryError: a choice that the figure does not have, or no rows.
    """
    if not rows.num_rows:
        raise QueryError(
            f"figure {figure.name!r} has no data yet: "
            f"{figure.fills.format(store=shlex.quote(store))}"
        )
    figure = figure.offered(rows)
    switches = figure.default()
    known = {s.name: list(s.options) for s in figure.switches}
    known |= {f.column: values_of(rows, f.column) for f in figure.filters}
    for name, value in choices.items():
        _check_choice(figure, name, value, known)
        if name in switches:
            switches[name] = value
    said = figure.shown(switches)
    for column, label in ((f.column, f.label) for f in figure.filters):
        value = choices.get(column, known[column][0])
        rows = rows.filter(pc.equal(rows[column], value))
        said.append(f"{label}: {value}")
    drawn = figure.drawn(rows)
    said += [] if drawn.whole else [f"Drawn: {drawn.words()}"]
    title = {"title": {"text": said, "anchor": "start"}} if said else {}
    return Chart({**title, **figure.draw(drawn.rows, switches)}, drawn.rows)


def _check_choice(figure: Figure, name: str, value: str, known: Mapping[str, list[str]]) -> None:
    if name not in known:
        has = ", ".join(known) or "none"
        raise QueryError(f"figure {figure.name!r} has no choice {name!r}; it has: {has}")
    if value not in known[name]:
        some = ", ".join(known[name][:20])
        raise QueryError(f"figure {figure.name!r}: no {name} {value!r}; there are: {some}")
