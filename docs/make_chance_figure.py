"""Measure the synthetic settings of tests/science/chance.py and draw docs/img/chance-baselines.svg.

    .venv/bin/python docs/make_chance_figure.py

Takes about 10 s on one core; prints the numbers that docs/chance-baselines.md quotes.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from rlsparse_ray.report import Chart, marks  # noqa: E402 (after the path is set)
from rlsparse_ray.report.theme import CATEGORIES  # noqa: E402
from tests.science.chance import measure_all  # noqa: E402

FIRST, SECOND, *OTHERS = CATEGORIES["light"]
BASELINES = {
    "uniform": ("circle", FIRST),
    "tensor": ("triangle-down", OTHERS[0]),
    "shift": ("square", OTHERS[1]),
    "margins": ("diamond", OTHERS[2]),
    "magnitude": ("cross", SECOND),
}
"""How each looks; uniform and magnitude have the colours that they have in the report."""
GROUPS = {
    "updates": "independent updates,\nrounded to bf16 (9 pairs)",
    "planted": "30 % of the updates\nin common, rounded",
    "busy": "busy rows and columns,\nno rounding",
    "busy and rounded": "busy rows and columns,\nrounded",
}


def rows_of(measured: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each lift, with the line of the picture that it is on."""
    for group, line in GROUPS.items():
        for name, rows in measured.items():
            if name == group or name.endswith(f" {group}"):
                for baseline in BASELINES:
                    yield {"line": line, "baseline": baseline, "lift": rows[baseline]["lift"]}


def chart_of(rows: list[dict[str, Any]]) -> Chart:
    """Lift under each baseline, on a log scale, with the line at 1."""
    names, lines = list(BASELINES), list(GROUPS.values())
    shapes, colours = (list(looks) for looks in zip(*BASELINES.values(), strict=True))
    kind = {**marks.nominal("baseline", names), "legend": {"title": None}}
    # lines between the groups, of which the first has no name
    label = f"datum.value ? {marks.lines('datum.value', chr(10))} : ''"
    axis = {"labelExpr": label, "grid": True, "tickBand": "extent"}
    points = {
        "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.75},
        "encoding": {
            "y": marks.nominal("line", lines, title=None, axis=axis, scale={"domain": lines}),
            "yOffset": marks.nominal("baseline", names),
            "x": marks.ratio(
                "lift",
                "lift: observed overlap / overlap expected by chance",
                [row["lift"] for row in rows],
            ),
            "color": {**kind, "scale": {"domain": names, "range": colours}},
            "shape": {**kind, "scale": {"domain": names, "range": shapes}},
        },
    }
    spec = marks.layers(marks.line_at(1), points, height=marks.rows_of(len(GROUPS), 72))
    return Chart(spec, pa.Table.from_pylist(rows))


def main() -> None:
    """Measure, draw, print."""
    with tempfile.TemporaryDirectory() as folder:
        measured = measure_all(Path(folder))
    chart_of(list(rows_of(measured))).write(DOCS / "img" / "chance-baselines.svg")
    print("setting", "density a", "density b", "o1", *BASELINES, sep=" | ")
    for name, rows in measured.items():
        whole = rows["uniform"]
        densities = [f"{whole[c] / whole['numel']:.1%}" for c in ("changed_a", "changed_b")]
        lifts = [f"{rows[b]['lift']:.3f} ± {rows[b]['standard_error']:.3f}" for b in BASELINES]
        print(name, *densities, f"{whole['o1']:.1%}", *lifts, sep=" | ")


if __name__ == "__main__":
    main()
