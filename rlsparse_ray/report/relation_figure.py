"""The figure of what the labels of two runs have to do with what they share."""

import math
from collections import Counter
from statistics import fmean
from typing import Any

import pyarrow as pa

from rlsparse_ray.report import marks
from rlsparse_ray.report.figure import Choice, Figure, Spec
from rlsparse_ray.report.overlap_figures import FILLS, comparable, named_apart
from rlsparse_ray.report.thinning import TWO_RUNS


def _lowest(rows: pa.Table, columns: list[str]) -> float:
    """Where the scale begins: a tenth that leaves nothing out, from -1 to 0."""
    low = min((v for c in columns for v in rows[c].to_pylist() if v is not None), default=0.0)
    return max(-1.0, min(0.0, math.floor(10 * low) / 10))


def _labels(rows: pa.Table) -> dict[str, str]:
    """By relation, its name with the number of pairs of runs, the shortest name first."""
    counts = Counter(rows["relation"].to_pylist())
    order = sorted(counts, key=lambda text: (text.count(","), text))
    return {relation: f"{relation}, n = {counts[relation]:,}" for relation in order}


def _relations(rows: pa.Table, _: Choice) -> Spec:
    knows = {
        "excess_share_uniform": "densities only",
        "excess_share_magnitude": "rounding too",
    }
    kept = comparable(rows)
    labels = _labels(kept)
    axis = {"labelExpr": marks.lines(marks.lookup("datum.value", labels), ", ")}
    y: Spec = marks.nominal("relation", list(labels), title=None, axis=axis)
    x = marks.share("x", "way from chance (0\u00a0%) to complete overlap (100\u00a0%)", zero=True)
    x["scale"] = {"domain": [_lowest(kept, list(knows)), 1], "clamp": True}
    colour: Spec = {
        **marks.nominal("knows", list(knows.values())),
        "legend": {"title": "chance knows"},
        "scale": {"domain": list(knows.values())},
    }
    offset = marks.nominal("knows", list(knows.values()))
    binned = [
        {"calculate": "round(100 * datum.share) / 100", "as": "x"},
        {"aggregate": [{"op": "count", "as": "pairs"}], "groupby": ["relation", "knows", "x"]},
    ]
    mean: dict[str, Any] = {
        "aggregate": [
            {"op": "mean", "field": "share", "as": "x"},
            {"op": "count", "as": "pairs"},
        ],
        "groupby": ["relation", "knows"],
    }
    tips = [marks.tip("knows", "chance knows"), marks.tip("pairs", "pairs of runs", ",")]
    dots: Spec = {
        "transform": binned,
        "mark": {"type": "circle", "opacity": 0.45},
        "encoding": {
            "x": x,
            "size": {
                "field": "pairs",
                "type": "quantitative",
                "legend": None,
                "scale": {"range": [16, 260]},
            },
            "tooltip": [*tips, marks.tip("x", "share", ".0%")],
        },
    }
    ticks: Spec = {
        "transform": [mean],
        "mark": {"type": "tick", "thickness": 3, "size": 20},
        "encoding": {"x": x, "tooltip": [*tips, marks.tip("x", "mean", ".1%")]},
    }
    fold = [
        *([marks.valid("excess_share_magnitude")] if kept is not rows else []),
        {"fold": list(knows), "as": ["knows", "share"]},
        marks.valid("share"),
        {"calculate": marks.lookup("datum.knows", knows), "as": "knows"},
    ]
    drawn: Spec = {
        "transform": fold,
        "encoding": {"y": y, "yOffset": offset, "color": colour},
        "layer": [dots, ticks],
    }
    return marks.layers(marks.line_at(0), drawn, height=marks.rows_of(len(labels), 54))


def _say_relations(rows: pa.Table) -> str:
    shares: dict[str, list[float]] = {}
    for row in rows.to_pylist():
        if row["excess_share_magnitude"] is not None:
            shares.setdefault(row["relation"], []).append(row["excess_share_magnitude"])
    if not shares:
        return f"{rows.num_rows:,} pairs of runs; no two of them have the same base."
    means = sorted(((fmean(found), relation) for relation, found in shares.items()), reverse=True)
    said = "; ".join(f"{relation}: {mean:.0%}" for mean, relation in means)
    others = rows.num_rows - sum(map(len, shares.values()))
    left_out = f" {others:,} pairs of runs without that chance are left out." if others else ""
    return f"Mean way from chance that knows rounding to complete overlap: {said}.{left_out}"


def _relation(differs: str) -> str:
    if not differs:
        return "no label differs"
    return differs if differs.startswith("unknown ") else f"another {differs}"


def _related(answer: pa.Table) -> pa.Table:
    found = [_relation(differs) for differs in answer["differs"].to_pylist()]
    return named_apart(answer).append_column("relation", pa.array(found, pa.string()))


RELATIONS = (
    Figure(
        name="relations",
        title="Do runs that share more overlap more?",
        caption=(
            "Pairs of runs on one base, by the labels in which the two differ; a label is unknown "
            "where one of the two does not have it. The scale does not depend on the densities: "
            "0 % is what chance gives, 100 % means that the smaller mask lies in the larger. The "
            "bar is the mean over n pairs of runs, the same ones for both colours; it counts each "
            "once. What lies below -100 % is drawn there."
        ),
        query="overlap_excess",
        columns=("relation", "name_a", "name_b", "excess_share_uniform", "excess_share_magnitude"),
        shape=_related,
        draw=_relations,
        summary=_say_relations,
        fills=FILLS,
        units=TWO_RUNS,
    ),
)
