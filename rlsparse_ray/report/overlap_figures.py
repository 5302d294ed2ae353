"""Figures of what runs have in common, and of what remains of it when chance is taken out."""

import math
from statistics import geometric_mean

import pyarrow as pa
import pyarrow.compute as pc

from rlsparse_ray.console import count
from rlsparse_ray.report import marks
from rlsparse_ray.report.figure import Choice, Figure, Spec, Switch
from rlsparse_ray.report.shift_column import with_shift
from rlsparse_ray.report.thinning import TWO_RUNS

BASELINES = {
    "magnitude": "magnitude: rounding",
    "margins": "margins: busy rows, columns",
    "shift": "shift: one mask moved along",
    "tensor": "tensor: busy tensors",
    "uniform": "uniform: densities only",
}
"""What chance is told; first what explains most of it in bf16."""

FILLS = "rlsparse overlap --store {store}"
_COLUMNS = (
    *("name_a", "name_b", "differs", "changed_a", "changed_b", "shared", "o1", "o2"),
    *(f"lift_{b}" for b in BASELINES),
    *(f"excess_share_{b}" for b in BASELINES),
    "sample_fraction",
)


def named_apart(answer: pa.Table) -> pa.Table:
    """Names that several runs have give way to ids, as two lines of a matrix may not be one."""
    # in Arrow: 1,500 runs are a million rows
    sides = [answer.select([f"name_{s}", f"pair_{s}"]).rename_columns(["name", "id"]) for s in "ab"]
    ids = pa.concat_tables(sides).group_by("name").aggregate([("id", "count_distinct")])
    several = ids.filter(pc.greater(ids["id_count_distinct"], 1))["name"].combine_chunks()
    for side in ("a", "b"):
        names, pairs = answer[f"name_{side}"], answer[f"pair_{side}"]
        labels = pc.if_else(pc.is_in(names, several), pairs, names)
        place = answer.schema.get_field_index(f"name_{side}")
        answer = answer.set_column(place, f"name_{side}", labels)
    return answer


def comparable(rows: pa.Table) -> pa.Table:
    """Pairs of runs with every baseline, as the query `headline` counts them, so that the lines
    of a picture are of the same ones; all pairs of runs if none has."""
    found = rows.filter(pc.is_valid(rows["excess_share_magnitude"]))
    return found if found.num_rows else rows


def _rounding(rows: pa.Table, _: Choice) -> Spec:
    kept = comparable(rows)
    shifted = kept["lift_shift"].null_count == 0
    shown = [b for b in reversed(BASELINES) if b != "shift" or shifted]
    labels = {f"lift_{b}": BASELINES[b] for b in shown}
    order = list(labels)
    y = marks.nominal(
        "baseline",
        order,
        title=None,
        axis={"labelExpr": marks.lines(marks.lookup("datum.value", labels), ": ")},
    )
    some = {"filter": "datum.lift > 0"}
    # 30 bins a decade: more of them are not told apart on the page
    binned = [
        some,
        {"calculate": "pow(10, round(30 * log(datum.lift) / LN10) / 30)", "as": "bin"},
        {"aggregate": [{"op": "count", "as": "pairs"}], "groupby": ["baseline", "bin"]},
    ]
    middle = [
        some,
        {"calculate": "log(datum.lift)", "as": "log"},
        {"aggregate": [{"op": "mean", "field": "log", "as": "log"}], "groupby": ["baseline"]},
        {"calculate": "exp(datum.log)", "as": "lift"},
    ]
    title = "lift: shared changes / shared changes expected by chance"
    lifts = [lift for column in order for lift in kept[column].to_pylist() if lift]
    dots: Spec = {
        "transform": binned,
        "mark": {"type": "circle", "style": "muted", "opacity": 0.55},
        "encoding": {
            "x": marks.ratio("bin", title, lifts),
            "size": {
                "field": "pairs",
                "type": "quantitative",
                "scale": {"range": [18, 420], "zero": True},
                "legend": None,
            },
            "tooltip": [
                marks.tip("pairs", "pairs of runs", ","),
                marks.tip("bin", "lift near", ".3~g"),
            ],
        },
    }
    nothing: Spec = {
        "transform": [
            {"filter": "datum.lift === 0"},
            {"aggregate": [{"op": "count", "as": "pairs"}], "groupby": ["baseline"]},
        ],
        "mark": marks.at_zero(style="muted", size=90),
        "encoding": {
            "x": {"value": 0},
            "tooltip": [marks.tip("pairs", "pairs of runs that share nothing", ",")],
        },
    }
    tick: Spec = {
        "transform": middle,
        "mark": {"type": "tick", "style": "accent", "thickness": 3, "size": 30},
        "encoding": {"x": marks.ratio("lift", title, lifts)},
    }
    words: Spec = {
        "transform": [*middle, {"calculate": "format(datum.lift, '.3g') + '×'", "as": "text"}],
        "mark": {"type": "text", "style": "label", "dy": -23, "fontWeight": "bold"},
        "encoding": {
            "x": marks.ratio("lift", title, lifts),
            "text": {"field": "text", "type": "nominal"},
        },
    }
    fold = [
        *([marks.valid("excess_share_magnitude")] if kept is not rows else []),
        {"fold": order, "as": ["baseline", "lift"]},
        marks.valid("lift"),
    ]
    drawn: Spec = {"transform": fold, "encoding": {"y": y}, "layer": [dots, nothing, tick, words]}
    return marks.layers(marks.line_at(1), drawn, height=300)


def _mean_lift(rows: pa.Table, baseline: str) -> float | None:
    lifts = [lift for lift in rows[f"lift_{baseline}"].to_pylist() if lift]
    return geometric_mean(lifts) if lifts else None


def _say_rounding(rows: pa.Table) -> str:
    kept = comparable(rows)
    uniform, magnitude = (_mean_lift(kept, b) for b in ("uniform", "magnitude"))
    if uniform is None or magnitude is None:
        said = f"{_pairs_of_runs(rows.num_rows)}; no two of them have the same base."
    else:
        said = (
            f"{_pairs_of_runs(kept.num_rows)}: {uniform:.3g} times the overlap that chance gives "
            f"if it knows only the densities, and {magnitude:.3g} times what it gives if it knows "
            "rounding too."
        )
    return said + _say_apart(kept) + _say_sample(rows)


def _say_apart(rows: pa.Table) -> str:
    apart = sum(lift == 0 for lift in rows["lift_uniform"].to_pylist())
    return f" Those means leave out {apart:,} that share nothing." if apart else ""


def _pairs_of_runs(number: int) -> str:
    return f"{count(number, 'pair')} of runs"


def _say_sample(rows: pa.Table) -> str:
    sample = pc.min(rows["sample_fraction"]).as_py()
    if sample is None or sample >= 1:
        return ""
    return (
        f" These are estimates: some overlaps were counted in a sample of {sample:.2%} of the "
        "blocks of weights."
    )


def _names(rows: pa.Table) -> set[str]:
    return {*rows["name_a"].unique().to_pylist(), *rows["name_b"].unique().to_pylist()}


def _order(rows: pa.Table) -> list[str]:
    """Runs with a common base beside one another, which are those with a magnitude baseline."""
    names = _names(rows)
    first = {name: name for name in names}
    same = rows.filter(pc.is_valid(rows["lift_magnitude"]))
    for a, b in zip(same["name_a"].to_pylist(), same["name_b"].to_pylist(), strict=True):
        first[a], first[b] = min(first[a], b), min(first[b], a)
    return sorted(names, key=lambda name: (first[name], name))


_WORDS = 12
"""Runs up to which each cell of the matrix has its number in it."""

_SHOWN = {
    "lift": "lift over chance",
    "excess_share": "way from chance to complete",
    "o1": "share in common (o1)",
}


_REACH = 4
"""Colours tell lifts apart up to 2 to the power of this."""


def _reach(rows: pa.Table, baseline: str) -> int:
    """How far the lifts go from 1, as a power of 2 from 1 to `_REACH`."""
    lifts = [lift for lift in rows[f"lift_{baseline}"].to_pylist() if lift]
    farthest = max((abs(math.log2(lift)) for lift in lifts), default=1.0)
    return min(_REACH, max(1, math.ceil(farthest)))


def _diverging(reach: int) -> Spec:
    """A scale from -reach to reach that is pale at 0."""
    return {
        "domain": [-reach, 0, reach],
        "clamp": True,
        "range": "diverging",
        "type": "linear",
        "interpolate": "lab",
    }


def _matrix_colour(show: str, reach: int) -> Spec:
    if show == "lift":
        ticks = "pow(2, datum.value) < 1 ? '1/' + format(pow(2, -datum.value), '.0f') : "
        ticks += "format(pow(2, datum.value), '.0f') + '×'"
        return {
            "scale": _diverging(reach),
            "legend": {
                "title": "lift",
                "labelExpr": ticks,
                "values": list(range(-reach, reach + 1, 2 if reach == _REACH else 1)),
            },
        }
    if show == "excess_share":
        return {
            "scale": _diverging(1),
            "legend": {"title": "0 % chance, 100 % complete", "format": marks.PERCENT},
        }
    return {
        "scale": {"domain": [0, 1], "range": "ramp", "type": "linear"},
        "legend": {"title": "of the row's changes", "format": marks.PERCENT},
    }


def _matrix(rows: pa.Table, choice: Choice) -> Spec:
    show, baseline = choice["show"], choice["baseline"]
    order = _order(rows)
    few = len(order) <= 60
    value = "datum.row_is_a ? datum.o1 : datum.o2" if show == "o1" else f"datum.{show}_{baseline}"
    shown = f"log({value}) / LN2" if show == "lift" else value
    reach = _reach(rows, baseline)
    colour = _matrix_colour(show, reach)
    legend = {**colour["legend"], "gradientLength": 180, "gradientThickness": 10}
    axis = {"title": None, "labels": few, "ticks": False, "domain": False, "grid": False}
    form = ".4~g" if show == "lift" else marks.EXACT_PERCENT
    brief = ".3g" if show == "lift" else marks.PERCENT
    place: Spec = {
        "y": marks.listed("row", order, axis=axis),
        "x": marks.listed("column", order, axis={**axis, "labelAngle": -90}),
    }
    cells: Spec = {
        "mark": {"type": "rect"},
        "encoding": {
            "color": {
                "field": "colour",
                "type": "quantitative",
                "scale": colour["scale"],
                "legend": legend,
            },
            "tooltip": [
                marks.tip("row", "run"),
                marks.tip("column", "and"),
                marks.tip("value", _SHOWN[show], form),
                marks.tip("lift_uniform", "lift over uniform", ".4~g"),
                marks.tip("lift_magnitude", "lift over magnitude", ".4~g"),
                marks.tip("differs", "differs in"),
            ],
        },
    }
    # where the colours of both modes begin to ask for the other ink
    dark = f"abs(datum.colour) > {0.55 * (reach if show == 'lift' else 1)}"
    words: list[Spec] = [
        {
            "transform": [{"filter": condition}],
            "mark": {"type": "text", "style": style, "fontSize": 10},
            "encoding": {"text": {"field": "value", "type": "quantitative", "format": brief}},
        }
        for style, condition in (("number", f"!({dark})"), ("number-on-dark", dark))
    ]
    return marks.layers(
        cells,
        *(words if len(order) <= _WORDS else []),
        transform=[
            {"calculate": "[true, false]", "as": "row_is_a"},
            {"flatten": ["row_is_a"]},
            {"calculate": "datum.row_is_a ? datum.name_a : datum.name_b", "as": "row"},
            {"calculate": "datum.row_is_a ? datum.name_b : datum.name_a", "as": "column"},
            {"calculate": value, "as": "value"},
            {"filter": "isValid(datum.value)"},
            {"calculate": shown, "as": "colour"},
        ],
        encoding=place,
        height=min(640, marks.rows_of(len(order), 30)),
    )


def _say_matrix(rows: pa.Table) -> str:
    return f"A matrix of {len(_names(rows))} runs by themselves. {_say_rounding(rows)}"


OVERLAP = (
    Figure(
        name="rounding",
        title="What remains of the overlap when rounding is taken out",
        caption=(
            "Each dot is a group of pairs of runs with nearly the same lift, as large as there are "
            "pairs; the bar is the geometric mean. A triangle at the left edge, which is in no "
            "mean, is pairs that share nothing. Each line tells chance something else: how "
            "dense the two masks are, how dense in each tensor, in its rows and columns, or where "
            "the base weights are small. Small weights have small steps, in bf16 for example, so "
            "they change in every run: what stands at 1× under magnitude is explained by that "
            "alone. No line knows both magnitude and margins, so a lift above 1× in both may still "
            "be the two together. All lines are of the same pairs of runs; shift has one if it was "
            "counted for every one of them. Shift is of whole blocks of tensors of at least "
            "131,072 weights, the other lines of all weights."
        ),
        query="overlap_excess",
        columns=_COLUMNS,
        count=with_shift,
        shape=named_apart,
        draw=_rounding,
        summary=_say_rounding,
        fills=FILLS,
        units=TWO_RUNS,
    ),
    Figure(
        name="overlap-matrix",
        title="Overlap of every two runs",
        caption=(
            "Rows and columns are runs. A lift of 1× is what chance gives; orange is more, blue is "
            "less, as strongly as the farthest lift asks, at least 2× and at most 16×. The share "
            "in common, o1, is that of the row's changes that the column made too. Blank: no "
            "tensor in common, or a baseline that is not defined, as magnitude is not unless all "
            "common tensors have the same base, and shift not without a tensor of 131,072 weights. "
            "Shift is of whole blocks of such tensors only; it is counted from the masks while a "
            "page is written, small models first and for seconds only, and is no choice where none "
            "was; rlsparse query overlap_lifts -p shift=yes counts all."
        ),
        query="overlap_excess",
        columns=_COLUMNS,
        count=with_shift,
        shape=named_apart,
        draw=_matrix,
        summary=_say_matrix,
        fills=FILLS,
        units=TWO_RUNS,
        switches=(
            Switch("baseline", "Chance knows", BASELINES, idle=("o1",), column="lift_{}"),
            Switch("show", "Show", _SHOWN),
        ),
    ),
)
