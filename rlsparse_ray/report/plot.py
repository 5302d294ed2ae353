"""Figures for papers: the specification of the page, drawn as PDF, SVG or PNG without a browser."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import vl_convert

from rlsparse_ray import sql
from rlsparse_ray.errors import QueryError, RlsparseError
from rlsparse_ray.report.answers import Answers
from rlsparse_ray.report.catalogue import figure_named
from rlsparse_ray.report.figure import Figure, Spec, values_of
from rlsparse_ray.report.packed import records
from rlsparse_ray.report.theme import config

WIDTH = 420
"""Pixels of the plotted area, without labels: about two columns of a journal at 96 a inch."""
_FONT = "Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif"
_PNG_SCALE = 300 / 96
"""Pixels of a PNG for one of the drawing: 300 a inch."""


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
    figure = figure_named(name)
    if path.suffix not in _DRAW:
        raise RlsparseError(
            f"{path}: a figure is {', '.join(_DRAW)}, not {path.suffix or 'a folder'!r}"
        )
    with sql.connect(store) as con:
        rows = Answers(con, str(store)).rows(figure)
    spec = complete(figure, rows, dict(choices or {}), str(store))
    data = _DRAW[path.suffix](spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def complete(figure: Figure, rows: pa.Table, choices: dict[str, str], store: str) -> Spec:
    """The specification with its data, in the style of a paper.

    Raises:
        QueryError: a choice that the figure does not have, or no rows.
    """
    if not rows.num_rows:
        raise QueryError(
            f"figure {figure.name!r} has no data yet: {figure.fills.format(store=store)}"
        )
    switches = figure.default()
    known = {s.name: list(s.options) for s in figure.switches}
    known |= {f.column: values_of(rows, f.column) for f in figure.filters}
    for name, value in choices.items():
        _check_choice(figure, name, value, known)
        if name in switches:
            switches[name] = value
    for column in (f.column for f in figure.filters):
        value = choices.get(column, known[column][0])
        rows = rows.filter(pc.equal(rows[column], value))
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        **figure.draw(rows, switches),
        "width": WIDTH,
        "data": {"values": records(rows)},
        "config": {**config("light", _FONT, 11), "background": "white"},
    }


def _check_choice(figure: Figure, name: str, value: str, known: Mapping[str, list[str]]) -> None:
    if name not in known:
        has = ", ".join(known) or "none"
        raise QueryError(f"figure {figure.name!r} has no choice {name!r}; it has: {has}")
    if value not in known[name]:
        some = ", ".join(known[name][:20])
        raise QueryError(f"figure {figure.name!r}: no {name} {value!r}; there are: {some}")


def _pdf(spec: Spec) -> bytes:
    return bytes(vl_convert.vegalite_to_pdf(spec))


def _png(spec: Spec) -> bytes:
    return bytes(vl_convert.vegalite_to_png(spec, scale=_PNG_SCALE))


def _svg(spec: Spec) -> bytes:
    return str(vl_convert.vegalite_to_svg(spec)).encode()


_DRAW = {".pdf": _pdf, ".svg": _svg, ".png": _png}
