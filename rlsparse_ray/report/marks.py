"""Pieces of Vega-Lite specifications that several figures use."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rlsparse_ray.report.figure import Spec

PERCENT = ".0%"
EXACT_PERCENT = ".2%"


def layers(*marks: Spec, height: int | Spec, **more: Any) -> Spec:
    """A chart as wide as its place, of marks one upon the other."""
    return {"width": "container", "height": height, **more, "layer": list(marks)}


def rows_of(count: int, step: int) -> int:
    """The height of so many rows."""
    return max(1, count) * step


def nominal(field: str, order: Sequence[Any] | None = None, **more: Any) -> Spec:
    """An axis or channel of names, in the order given or in that of the rows."""
    return {"field": field, "type": "nominal", "sort": list(order) if order else None, **more}


def listed(field: str, order: Sequence[Any], **more: Any) -> Spec:
    """An axis of any number of names: Vega-Lite makes of `sort` an expression as deep as there are
    names, which a browser gives up between 1,000 and 1,500 of them; a domain it only reads."""
    return nominal(field, scale={"domain": list(order)}, **more)


def share(field: str, title: str, *, zero: bool = False, **more: Any) -> Spec:
    """An axis of a share, in percent."""
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "axis": {"format": PERCENT, "tickCount": 5},
        "scale": {"zero": zero, "nice": True},
        **more,
    }


def step() -> Spec:
    """An axis of optimizer steps."""
    # asked for 6 ticks, Vega makes 4 to 9
    axis = {"tickCount": 6, "grid": False}
    return {"field": "step", "type": "quantitative", "title": "optimizer step", "axis": axis}


def ratio(field: str, title: str, lifts: Iterable[float], orient: str = "bottom") -> Spec:
    """An axis of lifts: 2 is as far from 1 as 1/2 is."""
    found = [1.0, *lifts]
    # at 1, 2, 5, 10, ...; closer together where all are within a factor of five
    steps = (1, 2, 5) if max(found) > 5 * min(found) else (1, 1.2, 1.5, 2, 3, 5, 7)
    ticks = [step * 10.0**power for power in range(-4, 6) for step in steps]
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"type": "log", "nice": False, "padding": 14},
        "axis": {
            "values": ticks,
            "labelExpr": "format(datum.value, '~g') + '×'",
            "orient": orient,
        },
    }


def at_zero(**more: Any) -> Spec:
    """A mark for the left edge of an axis of lifts, on which 0 has no place."""
    return {"type": "point", "shape": "triangle-left", "filled": True, "opacity": 0.9, **more}


def tip(field: str, title: str, form: str | None = None) -> Spec:
    """A line of what is shown under the pointer."""
    kind = "quantitative" if form else "nominal"
    return {"field": field, "title": title, "type": kind, **({"format": form} if form else {})}


def line_at(value: float, channel: str = "x") -> Spec:
    """A line to compare with, such as a lift of 1."""
    return {
        "data": {"values": [{}]},
        "mark": {"type": "rule", "style": "rule", "strokeWidth": 1.2, "tooltip": None},
        "encoding": {channel: {"datum": value}},
    }


def valid(*fields: str) -> Spec:
    """Keep the rows in which these are numbers."""
    return {"filter": " && ".join(f"isValid(datum.{f})" for f in fields)}


def lookup(expression: str, names: dict[str, str]) -> str:
    """A Vega expression that turns names into labels."""
    return f"({json.dumps(names)})[{expression}] || {expression}"


def lines(expression: str, at: str) -> str:
    """A Vega expression that breaks a label into lines, which keeps it whole on a narrow page."""
    return f"split({expression}, {json.dumps(at)})"
