"""The pictures of the page, as SVG with nothing in it that differs from one drawing to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlsparse_ray.errors import RlsparseError
from rlsparse_ray.reproduce.claims import dynamics, overlap, precision, subnetwork
from rlsparse_ray.reproduce.claims.claim import groups, mean
from rlsparse_ray.reproduce.evidence import Evidence, Row

BLUE, RED, GREY = "#053061", "#b2182b", "#999999"
_RELATIONS = {
    "seed": "seed",
    "dataset": "data",
    "algorithm": "algorithm",
    "algorithm, dataset, seed": "all three",
}


def draw_all(evidence: Evidence, folder: Path, prefix: str) -> dict[str, Path]:
    """Draw what there are runs for.

    Returns:
        The file of each picture that could be drawn, by what it shows.

    Raises:
        RlsparseError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for what, draw in _PICTURES.items():
        path = folder / f"{prefix}-{what}.svg"
        if draw(evidence, path):
            drawn[what] = path
        else:
            path.unlink(missing_ok=True)
    return drawn


@contextmanager
def _axes(path: Path, height: float) -> Iterator[Any]:
    try:
        import matplotlib as mpl  # noqa: PLC0415 - half a second, and of an extra
    except ImportError as error:
        raise RlsparseError(
            "the page needs matplotlib for its pictures: pip install 'rlsparse-ray[demo]'"
        ) from error
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context({"svg.hashsalt": path.stem, "font.size": 9}):
        figure = Figure(figsize=(7.2, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        yield axes
        figure.savefig(path, metadata={"Date": None})


def _lines(axes: Any, names: list[str]) -> None:
    axes.set_yticks([-n for n in range(len(names))], names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-len(names) + 0.4, 0.6)


def _dots(axes: Any, values: list[float], line: float, colour: str, label: str | None) -> None:
    axes.scatter(values, [-line] * len(values), s=26, c=colour, alpha=0.6, linewidths=0)
    axes.scatter([mean(values)], [-line], s=90, c=colour, marker="|", label=label)


def _sparsity(evidence: Evidence, path: Path) -> bool:
    runs = groups(evidence.main(), "algorithm")
    if not runs:
        return False
    with _axes(path, 0.8 + 0.36 * len(runs)) as axes:
        axes.axvspan(70, 95, color="#e8eef5", zorder=0, label="70 to 95 %: the papers' RL")
        for line, rows in enumerate(runs.values()):
            for offset, column, colour in (
                (-0.14, "sparsity", BLUE),
                (0.14, "sparsity_1e5", RED),
            ):
                label = {"sparsity": "exact", "sparsity_1e5": "at 1e-5"}[column]
                values = [100 * row[column] for row in rows]
                _dots(axes, values, line + offset, colour, None if line else label)
        _lines(axes, list(runs))
        axes.set_xlim(0, 100)
        axes.set_xlabel("sparsity of a run that learned, %; the bar is the mean")
        axes.figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return True


def _overlap(evidence: Evidence, path: Path) -> bool:
    found = {name: overlap.related(evidence, differs) for differs, name in _RELATIONS.items()}
    found = {name: rows for name, rows in found.items() if rows}
    if not found:
        return False
    with _axes(path, 1.0 + 0.42 * len(found)) as axes:
        for line, rows in enumerate(found.values()):
            for offset, baseline, colour in ((-0.14, "uniform", GREY), (0.14, "magnitude", BLUE)):
                values = [100 * row[f"excess_share_{baseline}"] for row in rows]
                _dots(axes, values, line + offset, colour, None if line else f"over {baseline}")
        axes.axvline(0, color="black", linewidth=0.8)
        _lines(axes, [f"another {name}" for name in found])
        axes.set_xlim(right=100)
        axes.set_xlabel("overlap of two runs, % of the way from chance (0) to complete (100)")
        axes.figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return True


def _precision(evidence: Evidence, path: Path) -> bool:
    found = precision.table(evidence)
    if not found:
        return False
    with _axes(path, 0.8 + 0.3 * len(found)) as axes:
        for line, (_, _, rows) in enumerate(found):
            _dots(axes, [100 * row["sparsity"] for row in rows], line, BLUE, None)
        _lines(axes, [f"{algorithm}: {what}" for algorithm, what, _ in found])
        axes.set_xlim(-2, 100)
        axes.set_xlabel("exact sparsity, %")
    return True


def _rewards(evidence: Evidence, path: Path) -> bool:
    runs = groups(subnetwork.counted(evidence), "algorithm")
    if not runs:
        return False
    colours = dict(zip(subnetwork.MASKS, (BLUE, GREY, RED), strict=True))
    with _axes(path, 1.0 + 0.5 * len(runs)) as axes:
        for line, rows in enumerate(runs.values()):
            for offset, (mask, colour) in zip((-0.2, 0, 0.2), colours.items(), strict=True):
                values = [100 * row["gain_share"] for row in rows if row["mask"] == mask]
                if values:
                    _dots(axes, values, line + offset, colour, None if line else mask)
        axes.axvline(100, color="black", linewidth=0.8)
        _lines(axes, list(runs))
        axes.set_xlabel("gain in reward, % of what training all weights gave")
        axes.figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return True


def _dynamics(evidence: Evidence, path: Path) -> bool:
    found = dynamics.curves(evidence)
    if not found:
        return False
    with _axes(path, 3.2) as axes:
        for name, rows in found.items():
            steps = [0, *(row["step"] for row in rows)]
            axes.plot(steps, _percents(rows, "sparsity_from_start"), marker="o", label=name)
        axes.set_ylim(0, 102)
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel("sparsity against the base, %")
        axes.legend(frameon=False)
    return True


def _percents(rows: list[Row], column: str) -> list[float]:
    return [100.0, *(100 * row[column] for row in rows)]


_PICTURES: dict[str, Callable[[Evidence, Path], bool]] = {
    "sparsity": _sparsity,
    "overlap": _overlap,
    "subnetwork": _rewards,
    "dynamics": _dynamics,
    "precision": _precision,
}
