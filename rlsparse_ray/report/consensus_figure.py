"""The figure of consensus: in how many of N runs did each weight change, against chance?"""

import duckdb
import pyarrow as pa

from rlsparse_ray.console import count
from rlsparse_ray.population.consensus import histogram_of
from rlsparse_ray.population.groups import group_of
from rlsparse_ray.report import marks
from rlsparse_ray.report.figure import Choice, Figure, Filter, Spec, values_of
from rlsparse_ray.report.thinning import Units
from rlsparse_ray.store import Store

_BITS = 4_000_000_000
"""Mask bits that are read for a page, the smallest groups first: about two seconds on one core."""
_COLUMNS = ("group", "changed_in", "parameters", "share", "share_uniform", "share_magnitude")
_EMPTY = pa.schema(
    [
        ("group", pa.string()),
        ("changed_in", pa.int32()),
        ("parameters", pa.int64()),
        *((name, pa.float64()) for name in _COLUMNS[3:]),
    ]
)


def _count(groups: pa.Table, con: duckdb.DuckDBPyConnection, store: str) -> pa.Table:
    """The histogram of every group whose masks are small enough together."""
    found: list[pa.Table] = []
    left = _BITS
    for row in groups.to_pylist():
        left -= row["bits"]
        if left < 0:
            break
        ids = ", ".join("'" + i.replace("'", "''") + "'" for i in row["members"])
        group = group_of(con, f"pair_id IN ({ids})", "exact")
        table = histogram_of(Store.open(store), con, group)
        total = float(group.numel)
        columns = {
            "group": pa.array([row["name"]] * table.num_rows, pa.string()),
            "changed_in": table["changed_in"],
            "parameters": table["parameters"],
            "share": table["share"],
        }
        for baseline in ("uniform", "magnitude"):
            expected = table[f"expected_{baseline}"].to_pylist()
            shares = [None if e is None else e / total for e in expected]
            columns[f"share_{baseline}"] = pa.array(shares, pa.float64())
        found.append(pa.table(columns).cast(_EMPTY))
    # the group of the most runs is what a reader sees first
    return pa.concat_tables([*reversed(found), _EMPTY.empty_table()])


def _draw(rows: pa.Table, _: Choice) -> Spec:
    knows = {
        "share_uniform": "chance: densities only",
        "share_magnitude": "chance: rounding too",
    }
    x: Spec = {
        "field": "changed_in",
        "type": "ordinal",
        "title": "runs in which a weight changed",
        "axis": {"labelAngle": 0, "grid": False},
    }
    bars: Spec = {
        "mark": {"type": "bar", "style": "muted", "opacity": 0.5},
        "encoding": {
            "x": x,
            "y": marks.share("share", "share of all weights", zero=True),
            "tooltip": [
                marks.tip("changed_in", "changed in"),
                marks.tip("share", "share", marks.EXACT_PERCENT),
                marks.tip("parameters", "weights", ","),
            ],
        },
    }
    ticks: Spec = {
        "transform": [
            {"fold": list(knows), "as": ["knows", "chance"]},
            marks.valid("chance"),
            {"calculate": marks.lookup("datum.knows", knows), "as": "knows"},
        ],
        "mark": {"type": "line", "strokeWidth": 1.5, "point": {"size": 34}},
        "encoding": {
            "x": x,
            "y": marks.share("chance", "share of all weights", zero=True),
            "color": {
                **marks.nominal("knows", list(knows.values())),
                "scale": {"domain": list(knows.values())},
                "legend": {"title": None, "columns": 1, "labelLimit": 200},
            },
            "tooltip": [
                marks.tip("knows", "expected"),
                marks.tip("chance", "share", marks.EXACT_PERCENT),
            ],
        },
    }
    return marks.layers(bars, ticks, height=280)


CONSENSUS = (
    Figure(
        name="consensus",
        title="In how many runs does a weight change?",
        caption=(
            "Bars: the weights that changed in none, one, ... or all runs of a group, which "
            "are the runs of one algorithm on one base. Lines: what independent runs of the "
            "same densities would give. Large groups of large models are left out here: "
            "rlsparse consensus counts those."
        ),
        query="consensus_groups",
        columns=_COLUMNS,
        draw=_draw,
        summary=lambda rows: (
            f"Histograms of {count(len(values_of(rows, 'group')), 'group')} of runs."
        ),
        fills="there is no group of three runs of one algorithm on one base that is small enough",
        filters=(Filter("group", "Group"),),
        units=Units("groups", ("group",)),
        count=_count,
    ),
)
