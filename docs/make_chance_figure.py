"""Measure the synthetic settings of tests/science/chance.py and draw docs/img/chance-baselines.svg.

    .venv/bin/python docs/make_chance_figure.py

Takes about 10 s on one core; prints the numbers that docs/chance-baselines.md quotes.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "chance"
mpl.rcParams["font.size"] = 9

from matplotlib import pyplot as plt  # noqa: E402 (after the backend is chosen)
from matplotlib.ticker import NullFormatter, ScalarFormatter  # noqa: E402

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from tests.science.chance import measure_all  # noqa: E402

MARKS = {
    "uniform": ("o", "#b2182b"),
    "tensor": ("v", "#ef8a62"),
    "shift": ("s", "#999999"),
    "margins": ("D", "#67a9cf"),
    "magnitude": ("*", "#053061"),
}
GROUPS = {
    "independent updates,\nrounded to bf16 (9 pairs)": "updates",
    "30 % of the updates\nin common, rounded": "planted",
    "busy rows and columns,\nno rounding": "busy",
    "busy rows and columns,\nrounded": "busy and rounded",
}


def members(measured: dict[str, Any], group: str) -> list[dict[str, Any]]:
    """The settings of a line of the picture."""
    return [rows for name, rows in measured.items() if name == group or name.endswith(f" {group}")]


def draw(measured: dict[str, Any], path: Path) -> None:
    """Lift under each baseline, on a log scale, with the line at 1."""
    figure, axes = plt.subplots(figsize=(7.2, 4.0), layout="constrained")
    axes.axvline(1, color="black", linewidth=0.8)
    for line, group in enumerate(GROUPS.values()):
        for place, (baseline, (mark, colour)) in enumerate(MARKS.items()):
            lifts = [rows[baseline]["lift"] for rows in members(measured, group)]
            heights = [-line + 0.28 - 0.14 * place] * len(lifts)
            size = 70 if mark == "*" else 26
            label = baseline if line == 0 else None
            look: dict[str, Any] = {"s": size, "c": colour, "marker": mark, "linewidths": 0}
            axes.scatter(lifts, heights, alpha=0.75, label=label, zorder=3, **look)
        if line:
            axes.axhline(0.5 - line, color="#dddddd", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks([1, 1.2, 1.5, 2, 3, 4, 5])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks([-line for line in range(len(GROUPS))], list(GROUPS))
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("lift: observed overlap / overlap expected by chance (log scale)")
    figure.legend(loc="outside upper center", ncols=len(MARKS), frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, draw, print."""
    with tempfile.TemporaryDirectory() as folder:
        measured = measure_all(Path(folder))
    draw(measured, DOCS / "img" / "chance-baselines.svg")
    print("setting", "density a", "density b", "o1", *MARKS, sep=" | ")
    for name, rows in measured.items():
        whole = rows["uniform"]
        densities = [f"{whole[c] / whole['numel']:.1%}" for c in ("changed_a", "changed_b")]
        lifts = [f"{rows[b]['lift']:.3f} ± {rows[b]['standard_error']:.3f}" for b in MARKS]
        print(name, *densities, f"{whole['o1']:.1%}", *lifts, sep=" | ")


if __name__ == "__main__":
    main()
