"""Figures of the geometry of updates: ranks, and overlaps with masks of the base."""

import pyarrow as pa

from rlsparse_ray.console import count
from rlsparse_ray.report import marks
from rlsparse_ray.report.figure import Choice, Figure, Filter, Spec, values_of
from rlsparse_ray.report.thinning import Units

_FILLS = "rlsparse spectra --store {store}"
_PAIRS = Units("pairs", ("name",))
_RANKS = {
    "matrix_rank_share_unweighted": "matrix rank",
    "energy_rank_99_share_unweighted": "99 % of the energy",
    "effective_rank_share_unweighted": "effective rank",
}


def _ranks(rows: pa.Table, _: Choice) -> Spec:
    names = values_of(rows, "name")
    fold = [
        {"fold": list(_RANKS), "as": ["rank", "share"]},
        marks.valid("share"),
        {"calculate": marks.lookup("datum.rank", _RANKS), "as": "rank"},
    ]
    labels = list(_RANKS.values())
    x = marks.share("share", "share of the largest rank there can be", zero=True)
    x["axis"] |= {"orient": "top"}
    return marks.layers(
        {
            "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.9},
            "encoding": {
                "x": x,
                "color": {
                    **marks.nominal("rank", labels),
                    "scale": {"domain": labels},
                    "legend": {"title": None},
                },
                "shape": {
                    **marks.nominal("rank", labels),
                    "scale": {"domain": labels, "range": ["circle", "square", "diamond"]},
                    "legend": {"title": None},
                },
                "tooltip": [
                    marks.tip("name", "pair"),
                    marks.tip("rank", "measure"),
                    marks.tip("share", "share of full rank", ".1%"),
                    marks.tip("measured", "matrices", ","),
                ],
            },
        },
        transform=fold,
        encoding={"y": marks.listed("name", names, title=None, axis={"grid": True})},
        height=marks.rows_of(len(names), 22),
    )


def _share_texts(answer: pa.Table) -> pa.Table:
    """The share alpha as a text, which a list of choices can show."""
    shares = [f"{alpha:.0%}".replace("%", " %") for alpha in answer["alpha"].to_pylist()]
    kinds = [mask.replace("_", "-") for mask in answer["mask"].to_pylist()]
    rows = [f"{n}: {k}" for n, k in zip(answer["name"].to_pylist(), kinds, strict=True)]
    return answer.append_column("share", pa.array(shares, pa.string())).append_column(
        "line", pa.array(rows, pa.string())
    )


def _principal(rows: pa.Table, _: Choice) -> Spec:
    lines = sorted(values_of(rows, "line"), key=lambda text: (text.rpartition(": ")[2], text))
    knows = {"lift_uniform": "densities only", "lift_magnitude": "rounding too"}
    labels = list(knows.values())
    lifts = [v for column in knows for v in rows[column].to_pylist() if v]
    x = marks.ratio(
        "lift", "lift: changed weights within the mask / expected by chance", lifts, "top"
    )
    fold = [
        {"fold": list(knows), "as": ["knows", "lift"]},
        marks.valid("lift"),
        {"calculate": marks.lookup("datum.knows", knows), "as": "knows"},
    ]
    some = {"filter": "datum.lift > 0"}
    channels: Spec = {
        "color": {
            **marks.nominal("knows", labels),
            "scale": {"domain": labels},
            "legend": {"title": "chance knows"},
        },
        "tooltip": [
            marks.tip("name", "pair"),
            marks.tip("mask", "mask"),
            marks.tip("knows", "chance knows"),
            marks.tip("lift", "lift", ".4~g"),
        ],
    }
    points: Spec = {
        "transform": [some],
        "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.9},
        "encoding": {"x": x, **channels},
    }
    avoided: Spec = {
        "transform": [{"filter": "datum.lift === 0"}],
        "mark": marks.at_zero(size=90),
        "encoding": {"x": {"value": 0}, **channels},
    }
    rule: Spec = {
        "transform": [
            some,
            {
                "aggregate": [
                    {"op": "min", "field": "lift", "as": "low"},
                    {"op": "max", "field": "lift", "as": "high"},
                ],
                "groupby": ["line"],
            },
        ],
        "mark": {"type": "rule", "style": "rule", "opacity": 0.5},
        "encoding": {"x": marks.ratio("low", x["title"], lifts, "top"), "x2": {"field": "high"}},
    }
    drawn: Spec = {
        "transform": fold,
        "encoding": {
            "y": marks.listed(
                "line", lines, title=None, axis={"labelExpr": marks.lines("datum.value", ": ")}
            )
        },
        "layer": [rule, points, avoided],
    }
    return marks.layers(marks.line_at(1), drawn, height=marks.rows_of(len(lines), 30))


def _say_principal(rows: pa.Table) -> str:
    said = (
        f"Lifts of {count(len(values_of(rows, 'name')), 'pair')} within masks of the base, over "
        "two baselines."
    )
    # a pair that changed nothing avoids nothing
    sizes = zip(rows["changed"].to_pylist(), rows["shared"].to_pylist(), strict=True)
    avoided = sum(changed > 0 and shared == 0 for changed, shared in sizes)
    if not avoided:
        return said
    verb = "has" if avoided == 1 else "have"
    return f"{said} {count(avoided, 'mask')} {verb} no changed weight at all, a lift of 0."


GEOMETRY = (
    Figure(
        name="ranks",
        title="Rank of the updates",
        caption=(
            "Means over the changed matrices of a pair. Rounding alone gives nearly full matrix "
            "rank, so that one says little by itself: read it beside the other two."
        ),
        query="rank_by_pair",
        columns=("name", "algorithm", "measured", "density", "stable_rank_unweighted", *_RANKS),
        draw=_ranks,
        summary=lambda rows: f"Ranks of {count(rows.num_rows, 'pair')}, as shares of full rank.",
        fills=_FILLS,
        units=_PAIRS,
        lines=_PAIRS,
    ),
    Figure(
        name="principal",
        title="Do updates avoid principal weights and seek small ones?",
        caption=(
            "principal: the largest entries of the rank-k SVD of the base; low-magnitude: its "
            "smallest entries. Read the lift that knows rounding: small weights have small steps "
            "and change more often, whatever the update is. A triangle at the left edge is a mask "
            "in which nothing changed."
        ),
        query="principal_overlap",
        columns=(
            *("line", "name", "mask", "share", "rank_k", "size", "changed", "shared"),
            *("share_of_update", "lift_uniform", "lift_magnitude"),
        ),
        shape=_share_texts,
        draw=_principal,
        summary=_say_principal,
        fills=_FILLS,
        filters=(Filter("share", "Mask holds"),),
        units=_PAIRS,
        lines=Units("lines", ("line",)),
    ),
)
