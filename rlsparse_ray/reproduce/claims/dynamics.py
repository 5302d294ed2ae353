"""How the mask grows along the checkpoints of a run."""

from __future__ import annotations

from itertools import pairwise

from rlsparse_ray.reproduce.claims.claim import (
    Claim,
    Measured,
    grade,
    groups,
    mean,
    percent,
    rate,
    untested,
)
from rlsparse_ray.reproduce.evidence import Evidence, Row

FLAT = 0.20
FLAT_IN_PART = 0.50
SOME_BACK = 0.01
FEW_OUTSIDE = 0.10
FEW_OUTSIDE_IN_PART = 0.20

_NONE = "no RL run that learned kept checkpoints"


def curves(evidence: Evidence) -> dict[str, list[Row]]:
    """The checkpoints of each run that learned, in the order of steps."""
    rows = [row for row in evidence.trajectory if evidence.learned(row["trajectory"])]
    return groups(sorted(rows, key=lambda r: (r["trajectory"], r["step"])), "trajectory")


def _is_rl(evidence: Evidence, name: str) -> bool:
    return any(row["name"] == name for row in evidence.main_rl())


def _decays(evidence: Evidence) -> Measured:
    found = {n: rows for n, rows in curves(evidence).items() if _is_rl(evidence, n)}
    falls = {}
    for name, rows in found.items():
        sparsity = [1.0, *(row["sparsity_from_start"] for row in rows)]
        falls[name] = [a - b for a, b in pairwise(sparsity)]
    falls = {name: fell for name, fell in falls.items() if len(fell) >= 2 and fell[0] > 0}
    if not falls:
        return untested(_NONE)
    left = [fell[-1] / fell[0] for fell in falls.values()]
    return Measured(
        grade(-mean(left), -FLAT, -FLAT_IN_PART),
        f"sparsity at the end {percent(found[n][-1]['sparsity_from_start'] for n in falls)}; the "
        f"last interval takes {percent(left)} of what the first took",
        len(falls),
        [
            {
                "run": name,
                "step": row["step"],
                "sparsity from start": percent([row["sparsity_from_start"]]),
                "sparsity of the interval": percent([row["sparsity_consecutive"]]),
                "never touched": percent([row["never_touched_share"]]),
                "touched and back": percent([row["touched_and_back_share"]]),
                "kept": percent([row["kept_share"]]),
            }
            for name, rows in found.items()
            for row in rows
        ],
    )


def _ends(evidence: Evidence) -> list[Row]:
    return [r for r in evidence.trajectory_summary if _is_rl(evidence, r["trajectory"])]


def _some_go_back(evidence: Evidence) -> Measured:
    rows = _ends(evidence)
    if not rows:
        return untested(_NONE)
    return Measured(
        grade(mean(r["touched_and_back_share"] for r in rows), SOME_BACK, SOME_BACK / 10),
        f"never touched {percent(r['never_touched_share'] for r in rows)}, touched and back "
        f"{percent(r['touched_and_back_share'] for r in rows)}, kept "
        f"{percent(r['kept_share'] for r in rows)}",
        len(rows),
    )


def _few_outside(evidence: Evidence) -> Measured:
    rows = _ends(evidence)
    if not rows:
        return untested(_NONE)
    shares = [r["ever_touched_outside_final_share"] for r in rows]
    return Measured(
        grade(-mean(shares), -FEW_OUTSIDE, -FEW_OUTSIDE_IN_PART),
        f"{percent(shares)} of all weights that were ever changed lie outside the final mask",
        len(rows),
    )


CLAIMS = (
    Claim(
        "6a",
        "Sparsity decays with steps to a plateau",
        "to about 80 % (PRIME)",
        f"mean of (fall of sparsity in the last interval / in the first) at most {rate(FLAT)}: "
        f"holds; {rate(FLAT_IN_PART)}: in part",
        _decays,
    ),
    Claim(
        "6b",
        "Some weights change and go back",
        "72 % never touched, 8 % touched and back, 20 % kept",
        f"mean share of touched and back at least {rate(SOME_BACK)}: holds; "
        f"{rate(SOME_BACK / 10)}: in part",
        _some_go_back,
    ),
    Claim(
        "6c",
        "Few changes fall outside the final subnetwork",
        "8.5 % of all ever-updated weights",
        f"mean share at most {rate(FEW_OUTSIDE)}: holds; {rate(FEW_OUTSIDE_IN_PART)}: in part",
        _few_outside,
    ),
)
