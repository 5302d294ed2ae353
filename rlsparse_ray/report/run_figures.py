"""Figures of where in a run the changes are: by layer, size of step and checkpoint."""

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from rlsparse_ray import sql
from rlsparse_ray.compare.formats import bucket_bounds
from rlsparse_ray.console import count
from rlsparse_ray.report import marks
from rlsparse_ray.report.figure import Choice, Figure, Filter, Spec, values_of
from rlsparse_ray.report.thinning import Units

_EXTRACT = "rlsparse extract CORPUS.yaml --store {store}"


def _layers(rows: pa.Table, _: Choice) -> Spec:
    deepest = max((v for v in rows["layer"].to_pylist() if v is not None), default=0)
    modules = values_of(rows, "module")
    order = ["outside", *range(deepest + 1)]
    return marks.layers(
        {
            "mark": {"type": "rect"},
            "encoding": {
                "x": marks.nominal(
                    "module",
                    sorted(modules),
                    title=None,
                    # upright: at an angle the first name leaves the frame
                    axis={"labelAngle": -90, "domain": False, "ticks": False, "labelLimit": 150},
                ),
                "y": marks.nominal("place", order, title="layer"),
                "color": {
                    "field": "density",
                    "type": "quantitative",
                    "scale": {"domainMin": 0, "range": "ramp"},
                    "legend": {
                        "title": "density (changed / all)",
                        "format": ".3~p",
                        "gradientLength": 180,
                        "gradientThickness": 10,
                    },
                },
                "tooltip": [
                    marks.tip("place", "layer"),
                    marks.tip("module", "module"),
                    marks.tip("density", "density", ".3%"),
                    marks.tip("numel", "weights", ","),
                ],
            },
        },
        transform=[{"calculate": "isValid(datum.layer) ? datum.layer : 'outside'", "as": "place"}],
        height=marks.rows_of(len(order), 14),
    )


def _bucket(low: int | None, high: int | None) -> str:
    if low is None or high is None:
        return "NaN, Inf"
    sign = "−" if high < 0 else "+"
    small, large = sorted((abs(low), abs(high)))
    if large >= 2**40:
        return f"{sign}{small:,} …"
    return f"{sign}{small:,}" if small == large else f"{sign}{small:,}–{large:,}"


def _labelled_steps(answer: pa.Table) -> pa.Table:
    """Buckets as words, without that of the weights that stayed."""
    moved = answer.filter(pc.is_valid(answer["share_of_changed"]))
    rows = moved.to_pylist()
    counts: dict[str, set[str]] = {}
    for r in rows:
        counts.setdefault(r["name"], set()).add(r["pair_id"])
    runs = [r["name"] if len(counts[r["name"]]) == 1 else r["pair_id"] for r in rows]
    labels = [_bucket(r["ulp_low"], r["ulp_high"]) for r in rows]
    return moved.append_column("steps", pa.array(labels, pa.string())).append_column(
        "run", pa.array(runs, pa.string())
    )


def _all_buckets(rows: pa.Table) -> list[str]:
    """Every bucket as far as any weight moved, as far down as up, also those that none is in."""
    lows, highs = rows["ulp_low"].to_pylist(), rows["ulp_high"].to_pylist()
    farthest = max(
        (
            max(abs(low), abs(high))
            for low, high in zip(lows, highs, strict=True)
            if low is not None and high is not None
        ),
        default=1,
    )
    up = [bucket_bounds(bucket) for bucket in range((farthest - 1).bit_length() + 1)]
    steps = [*((-high, -low) for low, high in reversed(up)), *up]
    return [_bucket(*step) for step in steps] + [_bucket(None, None)] * (None in lows)


def _steps(rows: pa.Table, _: Choice) -> Spec:
    return marks.layers(
        {
            "mark": {"type": "bar", "style": "accent"},
            "encoding": {
                "x": marks.listed(
                    "steps",
                    _all_buckets(rows),
                    title="signed step, in ULPs of the comparison dtype",
                    axis={"labelAngle": -90, "grid": False, "labelOverlap": True},
                ),
                "y": marks.share("share_of_changed", "share of the changed weights", zero=True),
                "tooltip": [
                    marks.tip("steps", "ULPs"),
                    marks.tip("share_of_changed", "share", marks.EXACT_PERCENT),
                    marks.tip("numel", "weights", ","),
                ],
            },
        },
        height=260,
    )


def _trajectory(rows: pa.Table, _: Choice) -> Spec:
    names = {
        "sparsity_from_start": "against the start",
        "sparsity_consecutive": "against the checkpoint before",
        "never_touched_share": "never touched so far",
    }
    return marks.layers(
        {
            "mark": {"type": "line", "point": {"size": 36}, "strokeWidth": 2},
            "encoding": {
                "x": marks.step(),
                "y": marks.share("share", "share of unchanged weights"),
                "color": {
                    **marks.nominal("what", list(names.values())),
                    "scale": {"domain": list(names.values())},
                    "legend": {"title": None, "columns": 1, "labelLimit": 260},
                },
                "tooltip": [
                    marks.tip("step", "step"),
                    marks.tip("what", "unchanged"),
                    marks.tip("share", "share", marks.EXACT_PERCENT),
                ],
            },
        },
        transform=[
            {"fold": list(names), "as": ["what", "share"]},
            marks.valid("share"),
            {"calculate": marks.lookup("datum.what", names), "as": "what"},
        ],
        height=300,
    )


_BITS = 4_000_000_000
"""Mask bits that are read for a page, as for the other figures that count in masks."""
_SIZES = """
    SELECT
        coalesce(sum(numel) FILTER (list_contains(criteria, 'exact')), 0)::BIGINT AS bits,
        t.trajectory
    FROM trajectory_pairs AS t
    JOIN pairs USING (pair_id)
    WHERE t.from_start OR t.consecutive
    GROUP BY ALL
    ORDER BY ALL
"""


_TRAJECTORY = (
    *("trajectory", "step", "numel", "sparsity_from_start", "sparsity_consecutive"),
    *("never_touched_share", "touched_and_back_share", "kept_share"),
)
_NO_TRAJECTORY = pa.table({name: pa.nulls(0) for name in _TRAJECTORY})


def _affordable(con: duckdb.DuckDBPyConnection) -> pa.Table:
    """The query `trajectory` of every trajectory whose masks are small enough together."""
    sizes = sql.run_sql(con, _SIZES)
    read = pc.cumulative_sum(sizes["bits"])
    names = sizes.filter(pc.less_equal(read, _BITS))["trajectory"].to_pylist()
    if len(names) == sizes.num_rows:
        return sql.run_query(con, "trajectory")
    found = [sql.run_query(con, "trajectory", {"trajectory": name}) for name in sorted(names)]
    return pa.concat_tables([*found, _NO_TRAJECTORY], promote_options="permissive")


WITHIN_RUNS = (
    Figure(
        name="layers",
        title="Where the changes are: layer by module",
        caption=(
            "Density, which is 1 - sparsity, of every module in every layer of one run. The "
            "colours begin at 0 and end at the densest cell of the run chosen."
        ),
        query="layer_by_module",
        columns=("run", "layer", "module", "numel", "density"),
        draw=_layers,
        summary=lambda rows: (
            f"Heat maps of {count(len(values_of(rows, 'run')), 'run')}, "
            f"{count(len(values_of(rows, 'module')), 'module')} wide."
        ),
        fills=_EXTRACT,
        filters=(Filter("run", "Run"),),
    ),
    Figure(
        name="steps",
        title="How far a changed weight moves",
        caption=(
            "Steps from one representable number to the next (ULPs) of the dtype in which both "
            "sides were compared. Weights that did not change are left out. Bars far out, past "
            "steps that hardly any weight made, are mostly base weights of 0: no update of theirs "
            "is rounded away, and the numbers next to 0 are so dense that any is thousands of "
            "steps. A base made from quantised weights has many."
        ),
        query="step_sizes",
        columns=("run", "steps", "ulp_low", "ulp_high", "numel", "share_of_changed"),
        shape=_labelled_steps,
        draw=_steps,
        summary=lambda rows: f"Histograms of {count(len(values_of(rows, 'run')), 'pair')}.",
        fills=_EXTRACT,
        filters=(Filter("run", "Pair"),),
        units=Units("pairs", ("run",)),
    ),
    Figure(
        name="trajectories",
        title="Sparsity from checkpoint to checkpoint",
        caption=(
            "Sparsity against the start falls while that of each interval may stay: never compare "
            "the two. Where the first line lies above the third, weights changed and came back. "
            "Trajectories of large models are left out here: rlsparse query trajectory has those."
        ),
        query="trajectory",
        columns=_TRAJECTORY,
        draw=_trajectory,
        summary=lambda rows: f"Trajectories: {len(values_of(rows, 'trajectory'))}.",
        fills=(
            "there is no trajectory that is small enough: list checkpoints under `trajectories:` "
            "and extract again, or ask for a large one with rlsparse query trajectory"
        ),
        filters=(Filter("trajectory", "Trajectory"),),
        units=Units("trajectories", ("trajectory",)),
        ask=_affordable,
    ),
)
