"""Whether runs change the same weights, against every baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rlsparse_ray.reproduce.claims.claim import (
    Claim,
    Measured,
    Verdict,
    interval,
    mean,
    percent,
    rate,
    untested,
)
from rlsparse_ray.reproduce.evidence import Evidence, Row

FAR = 0.20
"""Half of the smallest figure of the papers, which are 0.38 to 0.48 over the uniform baseline."""
FEW_ALGORITHMS = 4
"""Runs of one algorithm differ in little but the seed, so an interval is over algorithms; with
fewer than these it says nothing of others."""
BASELINES = ("uniform", "tensor", "margins", "magnitude")


def related(evidence: Evidence, differs: str) -> list[Row]:
    """The overlaps of main RL runs that learned and differ in just this."""
    names = {row["name"] for row in evidence.main_rl()}
    return [
        row
        for row in evidence.overlap_excess
        if row["differs"] == differs
        and row["excess_share_magnitude"] is not None
        and {row["name_a"], row["name_b"]} <= names
    ]


def _overlaps(differs: str) -> Callable[[Evidence], Measured]:
    def test(evidence: Evidence) -> Measured:
        rows = related(evidence, differs)
        if not rows:
            return untested(f"no two RL runs that learned differ in {differs} alone")
        return _judged(rows, {row["name"]: row["algorithm"] for row in evidence.main_rl()})

    return test


def _judged(rows: list[Row], algorithms: Mapping[str, str]) -> Measured:
    excess = [row["excess_share_magnitude"] for row in rows]
    sides = [(row["name_a"], row["name_b"]) for row in rows]
    known = {algorithms[name] for pair in sides for name in pair}
    if len(known) >= FEW_ALGORITHMS:
        what = f"over {len(known)} algorithms"
        between = interval(excess, [(algorithms[a], algorithms[b]) for a, b in sides])
    else:
        what = f"over runs, for {' and '.join(sorted(known))} alone"
        between = interval(excess, sides)
    if between is None:
        return untested("the runs that learned are too few for a spread")
    low, high = between
    verdict = Verdict.in_part if low > 0 else Verdict.fails
    if verdict is Verdict.in_part and mean(excess) >= FAR:
        verdict = Verdict.holds
    return Measured(
        verdict,
        f"over magnitude: lift {mean(r['lift_magnitude'] for r in rows):.3f}, "
        f"{rate(mean(excess))} of the way from chance to complete (95 % interval "
        f"{what}: {rate(low)} to {rate(high)}); over uniform: lift "
        f"{mean(r['lift_uniform'] for r in rows):.3f}, "
        f"{rate(mean(r['excess_share_uniform'] for r in rows))}",
        len({name for pair in sides for name in pair}),
        [_row(baseline, rows) for baseline in reversed(BASELINES)],
    )


def _row(baseline: str, rows: list[Row]) -> Row:
    lifts = [row[f"lift_{baseline}"] for row in rows]
    return {
        "baseline": baseline,
        "pairs of runs": len(rows),
        "o1": percent(row["o1"] for row in rows),
        "o2": percent(row["o2"] for row in rows),
        "lift": f"{mean(lifts):.3f} ({min(lifts):.3f} to {max(lifts):.3f})",
        "from chance to complete": percent(row[f"excess_share_{baseline}"] for row in rows),
    }


_RULE = (
    "mean excess over the magnitude baseline (0: chance, 1: the smaller mask lies in the larger) "
    f"at least {rate(FAR)}: holds; its 95 % interval above 0: in part. The interval is over "
    "algorithms, since runs of one differ in little but the seed"
)

CLAIMS = (
    Claim(
        "3a",
        "Runs of different seeds change the same weights far more than chance",
        "o1 60.5, o2 60.6 % (chance 36.7): 38 % of the way from uniform chance to complete",
        _RULE,
        _overlaps("seed"),
    ),
    Claim(
        "3b",
        "So do runs on different data",
        "o1 26.7, o2 67.1 % (chance 14.6, 36.7): 48 % of the way",
        _RULE,
        _overlaps("dataset"),
    ),
    Claim("3c", "So do runs of different algorithms", "-", _RULE, _overlaps("algorithm")),
    Claim(
        "3d",
        "So do runs that differ in seed, data and algorithm",
        "o1 59.1, o2 33.2 % (chance 23.0, 12.9): 47 % of the way",
        _RULE,
        _overlaps("algorithm, dataset, seed"),
    ),
)
