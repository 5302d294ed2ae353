"""Figures of how many weights changed: by family, run and tolerance."""

from statistics import median

import pyarrow as pa
import pyarrow.compute as pc

from rlsparse_ray.console import count
from rlsparse_ray.report import marks
from rlsparse_ray.report.figure import Choice, Figure, Spec, Switch, values_of
from rlsparse_ray.report.theme import CATEGORIES
from rlsparse_ray.report.thinning import RUNS, Units

_CRITERIA = {
    "exact": "exact",
    "abs:1e-8": "1e-8",
    "abs:1e-7": "1e-7",
    "abs:1e-6": "1e-6",
    "abs:1e-5": "1e-5",
    "abs:1e-4": "1e-4",
    "abs:1e-3": "1e-3",
}
_EXTRACT = "rlsparse extract CORPUS.yaml --store {store}"
_COLUMNS = (
    *("group", "run", "family", "algorithm", "dataset", "seed", "criterion", "numel", "changed"),
    *("sparsity", "reported_sparsity"),
)
"""Of all three figures, so that a page holds one table of them."""


def _grouped(answer: pa.Table) -> pa.Table:
    rows = answer.to_pylist()
    groups = [" · ".join(r[c] for c in ("family", "algorithm") if r[c]) or "unnamed" for r in rows]
    return answer.append_column("group", pa.array(groups, pa.string()))


def _tips() -> list[Spec]:
    return [
        marks.tip("run", "run"),
        marks.tip("algorithm", "algorithm"),
        marks.tip("dataset", "dataset"),
        marks.tip("sparsity", "sparsity", marks.EXACT_PERCENT),
    ]


def _families(rows: pa.Table, choice: Choice) -> Spec:
    groups = values_of(rows, "group")
    x = marks.share("sparsity", f"sparsity of a run ({choice['criterion']})")
    spread = [
        {"op": "q1", "field": "sparsity", "as": "low"},
        {"op": "q3", "field": "sparsity", "as": "high"},
        {"op": "median", "field": "sparsity", "as": "middle"},
        {"op": "count", "as": "runs"},
    ]
    summed = [{"aggregate": spread, "groupby": ["group"]}]
    tips = [
        marks.tip("group", "group"),
        marks.tip("runs", "runs", ","),
        marks.tip("middle", "median", marks.EXACT_PERCENT),
    ]
    return marks.layers(
        {
            "transform": summed,
            "mark": {"type": "bar", "style": "accent", "opacity": 0.22, "height": 14},
            "encoding": {
                "x": marks.share("low", x["title"]),
                "x2": {"field": "high"},
                "tooltip": tips,
            },
        },
        {
            "mark": {"type": "circle", "style": "accent", "opacity": 0.6, "size": 42},
            "encoding": {"x": x, "tooltip": _tips()},
        },
        {
            "transform": summed,
            "mark": {"type": "tick", "style": "ink", "thickness": 2, "size": 18},
            "encoding": {"x": marks.share("middle", x["title"]), "tooltip": tips},
        },
        transform=[{"filter": f"datum.criterion === '{choice['criterion']}'"}],
        encoding={"y": marks.listed("group", groups, title=None)},
        height=marks.rows_of(len(groups), 26),
    )


def _sparsities(rows: pa.Table, criterion: str) -> dict[str, float]:
    kept = rows.filter(pc.equal(rows["criterion"], criterion)).to_pylist()
    return {r["run"]: r["sparsity"] for r in kept if r["sparsity"] is not None}


def _say_sparsity(rows: pa.Table) -> str:
    found = _sparsities(rows, "exact")
    if not found:
        return "No run has counts of exact changes."
    lowest, highest = (pick(found, key=found.__getitem__) for pick in (min, max))
    return (
        f"{count(len(found), 'run')}; the median exact sparsity is {median(found.values()):.1%}, "
        f"from {found[lowest]:.1%} ({lowest}) to {found[highest]:.1%} ({highest})."
    )


def _say_tolerances(rows: pa.Table) -> str:
    exact, tolerant = _sparsities(rows, "exact"), _sparsities(rows, "abs:1e-5")
    gains = {run: tolerant[run] - exact[run] for run in exact if run in tolerant}
    if not gains:
        return "No run has counts of changes both exact and above 1e-5."
    most = max(gains, key=gains.__getitem__)
    return (
        f"Counting only changes above 1e-5 raises the sparsity of the median run by "
        f"{100 * median(gains.values()):.1f} points, and of {most} by {100 * gains[most]:.1f}."
    )


def _say_reported(rows: pa.Table) -> str:
    reported = {r["run"] for r in rows.to_pylist() if r["reported_sparsity"] is not None}
    runs = len(values_of(rows, "run"))
    return f"{count(runs, 'run')}; {len(reported) or 'none'} with a published figure."


def _runs(rows: pa.Table, _: Choice) -> Spec:
    found = _sparsities(rows, "exact")
    order = sorted(found, key=found.__getitem__, reverse=True)
    published = rows["reported_sparsity"].null_count < rows.num_rows
    names = {"exact": "exact", "abs:1e-5": "at 1e-5"}
    names |= {"reported": "reported"} if published else {}
    labelled = marks.lookup("datum.criterion", names)
    scale = {"domain": list(names.values())}
    x = marks.share("sparsity", "sparsity")
    x["axis"] |= {"orient": "top"}
    legend = {"title": None}
    reported = [
        {"filter": "datum.criterion === 'exact' && isValid(datum.reported_sparsity)"},
        {"calculate": "datum.reported_sparsity", "as": "sparsity"},
        {"calculate": "'reported'", "as": "what"},
    ]
    measured = [
        {"filter": "datum.criterion === 'exact' || datum.criterion === 'abs:1e-5'"},
        {"calculate": labelled, "as": "what"},
    ]
    shapes = {**scale, "range": ["circle", "triangle-right", "diamond"][: len(names)]}
    point: Spec = {
        "mark": {"type": "point", "filled": True, "size": 46, "opacity": 0.9},
        "encoding": {
            "x": x,
            "color": {
                **marks.nominal("what", list(names.values())),
                "scale": scale,
                "legend": legend,
            },
            "shape": {**marks.nominal("what"), "scale": shapes, "legend": legend},
            "tooltip": [*_tips(), marks.tip("what", "criterion")],
        },
    }
    return marks.layers(
        {"transform": measured, **point},
        *([{"transform": reported, **point}] if published else []),
        encoding={"y": marks.listed("run", order, title=None, axis={"grid": True})},
        height=marks.rows_of(len(order), 18),
    )


def _trained(rows: pa.Table) -> Spec:
    """Colours of algorithms, and dashes for those to which the palette has to go round again."""
    names = sorted(values_of(rows, "algorithm"))
    names += ["unnamed"] if rows["algorithm"].null_count else []
    solid = len(CATEGORIES["light"])
    dashes = [[1, 0] if n < solid else [4, 3] for n in range(len(names))]
    legend = {
        "title": None,
        "symbolType": "stroke",
        "symbolSize": 250,
        "symbolStrokeWidth": 2,
        "columns": {"expr": "max(2, floor(width / 84))"},
    }
    channel = {**marks.nominal("trained"), "legend": legend}
    return {
        "color": {**channel, "scale": {"domain": names}},
        "strokeDash": {**channel, "scale": {"domain": names, "range": dashes}},
    }


def _tolerances(rows: pa.Table, _: Choice) -> Spec:
    title = "|difference| above which a weight counts as changed"
    kept = [c for c in _CRITERIA if c in values_of(rows, "criterion")]
    return marks.layers(
        {
            "mark": {"type": "line", "opacity": 0.55, "strokeWidth": 1.5, "point": {"size": 22}},
            "encoding": {
                "x": {
                    "field": "criterion",
                    "type": "ordinal",
                    "sort": kept,
                    "title": title,
                    "axis": {
                        "labelAngle": 0,
                        "grid": False,
                        "labelExpr": marks.lookup("datum.value", _CRITERIA),
                    },
                    "scale": {"domain": kept},
                },
                "y": marks.share("sparsity", "sparsity"),
                **_trained(rows),
                "detail": {"field": "run"},
                "tooltip": [*_tips(), marks.tip("criterion", "criterion")],
            },
        },
        transform=[
            {"filter": {"field": "criterion", "oneOf": kept}},
            {
                "calculate": "isValid(datum.algorithm) ? datum.algorithm : 'unnamed'",
                "as": "trained",
            },
        ],
        height=320,
    )


SPARSITY = (
    Figure(
        name="sparsity",
        title="Sparsity by model family and algorithm",
        caption=(
            "Each dot is a run; the line is the median of the group, the band its middle half. "
            "Sparsity is the share of compared weights that did not change, under the criterion "
            "chosen. Of a trajectory only the last checkpoint is a run."
        ),
        query="runs_by_tolerance",
        columns=_COLUMNS,
        shape=_grouped,
        draw=_families,
        summary=_say_sparsity,
        fills=_EXTRACT,
        lines=Units("groups", ("group",)),
        switches=(
            Switch(
                "criterion",
                "Changed means",
                {
                    "exact": "exact",
                    "abs:1e-6": "> 1e-6",
                    "abs:1e-5": "> 1e-5",
                    "abs:1e-4": "> 1e-4",
                },
            ),
        ),
    ),
    Figure(
        name="runs",
        title="Sparsity run by run, measured and reported",
        caption=(
            "The same weights under two criteria, and what was published, where the corpus has "
            "it. A figure without its tolerance means little: the two measured ones are one model."
        ),
        query="runs_by_tolerance",
        columns=_COLUMNS,
        shape=_grouped,
        draw=_runs,
        summary=_say_reported,
        fills=_EXTRACT,
        lines=RUNS,
    ),
    Figure(
        name="tolerances",
        title="How much of the sparsity is the tolerance",
        caption=(
            "One line a run. What rises between exact and 1e-5 are weights that did change, by "
            "less than the tolerance."
        ),
        query="runs_by_tolerance",
        columns=_COLUMNS,
        shape=_grouped,
        draw=_tolerances,
        summary=_say_tolerances,
        fills=_EXTRACT,
    ),
)
