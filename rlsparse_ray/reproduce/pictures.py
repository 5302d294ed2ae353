"""The pictures of the page, as SVG with nothing in it that differs from one drawing to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from rlsparse_ray.report import Chart, marks
from rlsparse_ray.report.catalogue import figure_named
from rlsparse_ray.report.figure import Spec
from rlsparse_ray.reproduce.claims import dynamics, overlap, precision, subnetwork
from rlsparse_ray.reproduce.claims.claim import groups
from rlsparse_ray.reproduce.evidence import Evidence, Row

_PUBLISHED = (0.70, 0.95)
"""Sparsity that the papers report of runs of RL."""
_DIFFERS = ("seed", "dataset", "algorithm", "algorithm, dataset, seed")


def draw_all(evidence: Evidence, folder: Path, prefix: str) -> dict[str, Path]:
    """Draw what there are runs for.

    Returns:
        The file of each picture that could be drawn, by what it shows.
    """
    drawn = {}
    for what, draw in _PICTURES.items():
        path = folder / f"{prefix}-{what}.svg"
        chart = draw(evidence)
        if chart is None:
            path.unlink(missing_ok=True)
        else:
            chart.write(path)
            drawn[what] = path
    return drawn


def _dots(
    rows: list[dict[str, Any]],
    title: str,
    *under: Spec,
    step: int,
    within: tuple[float, float] | None = None,
) -> Chart | None:
    """A dot for each `value` on its `line`, the mean as a bar; side by side what is `of` different
    kinds. None of no rows."""
    if not rows:
        return None
    lines, kinds = (list(dict.fromkeys(row[column] for row in rows)) for column in ("line", "of"))
    scale = {"scale": {"domain": within}} if within else {}
    x = marks.share("value", title, zero=True, **scale)
    x["axis"] |= {"grid": True}
    encoding: Spec = {"y": marks.nominal("line", lines, title=None)}
    if len(kinds) > 1:
        encoding["yOffset"] = marks.nominal("of", kinds)
        encoding["color"] = {
            **marks.nominal("of", kinds),
            "scale": {"domain": kinds},
            "legend": {"title": None},
        }
    dots: Spec = {
        "mark": {"type": "circle", "size": 42, "opacity": 0.5},
        "encoding": {"x": x},
    }
    means: Spec = {
        "transform": [
            {
                "aggregate": [{"op": "mean", "field": "value", "as": "value"}],
                "groupby": ["line", "of"],
            }
        ],
        "mark": {"type": "tick", "thickness": 2.5, "size": 11},
        "encoding": {"x": x},
    }
    drawn: Spec = {"encoding": encoding, "layer": [dots, means]}
    spec = marks.layers(*under, drawn, height=marks.rows_of(len(lines), step))
    return Chart(spec, pa.Table.from_pylist(rows))


def _on(line: str, of: str, values: Sequence[float]) -> list[dict[str, Any]]:
    return [{"line": line, "of": of, "value": value} for value in values]


def _sparsity(evidence: Evidence) -> Chart | None:
    criteria = {"exact": "sparsity", "at 1e-5": "sparsity_1e5"}
    rows = [
        row
        for algorithm, runs in groups(evidence.main(), "algorithm").items()
        for of, column in criteria.items()
        for row in _on(algorithm, of, [run[column] for run in runs])
    ]
    low, high = _PUBLISHED
    band: Spec = {
        "data": {"values": [{}]},
        "mark": {"type": "rect", "style": "muted", "opacity": 0.18},
        "encoding": {"x": {"datum": low}, "x2": {"datum": high}},
    }
    words: Spec = {
        "data": {"values": [{}]},
        "mark": {
            "type": "text",
            "text": "70 to 95\u00a0%: RL in the papers",
            "baseline": "bottom",
            "dy": -3,
        },
        "encoding": {"x": {"datum": (low + high) / 2}, "y": {"value": 0}},
    }
    title = "sparsity of a run that learned; the bar is the mean"
    return _dots(rows, title, band, words, step=30, within=(0, 1))


def _overlap(evidence: Evidence) -> Chart | None:
    rows = [
        {"relation": f"another {differs}"}
        | {name: row[name] for name in ("excess_share_uniform", "excess_share_magnitude")}
        for differs in _DIFFERS
        for row in overlap.related(evidence, differs)
    ]
    if not rows:
        return None
    table = pa.Table.from_pylist(rows)
    return Chart(figure_named("relations").draw(table, {}), table)


def _rewards(evidence: Evidence) -> Chart | None:
    runs = groups(subnetwork.counted(evidence), "algorithm")
    rows = [
        row
        for algorithm, masked in runs.items()
        for mask in subnetwork.MASKS
        for row in _on(
            algorithm, mask, [run["gain_share"] for run in masked if run["mask"] == mask]
        )
    ]
    title = "gain in reward, of what training all weights gave"
    return _dots(rows, title, marks.line_at(1), step=44)


def _precision(evidence: Evidence) -> Chart | None:
    rows = [
        row
        for algorithm, what, runs in precision.table(evidence)
        for row in _on(f"{algorithm}: {what}", "run", [run["sparsity"] for run in runs])
    ]
    return _dots(rows, "exact sparsity; the bar is the mean", step=24, within=(0, 1))


def _dynamics(evidence: Evidence) -> Chart | None:
    rows: list[Row] = []
    for name, checkpoints in dynamics.curves(evidence).items():
        rows.append({"run": name, "step": 0, "sparsity": 1.0})
        rows += [
            {"run": name, "step": row["step"], "sparsity": row["sparsity_from_start"]}
            for row in checkpoints
        ]
    if not rows:
        return None
    line: Spec = {
        "mark": {"type": "line", "point": {"size": 36}, "strokeWidth": 2},
        "encoding": {
            "x": marks.step(),
            "y": marks.share("sparsity", "sparsity against the base", zero=True),
            "color": {
                **marks.nominal("run"),
                "legend": {"title": None, "columns": 1, "labelLimit": 260},
            },
        },
    }
    return Chart(marks.layers(line, height=240), pa.Table.from_pylist(rows))


_PICTURES: dict[str, Callable[[Evidence], Chart | None]] = {
    "sparsity": _sparsity,
    "overlap": _overlap,
    "subnetwork": _rewards,
    "dynamics": _dynamics,
    "precision": _precision,
}
