"""How much of the sparsity is rounding."""

from __future__ import annotations

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
from rlsparse_ray.reproduce.layout import IN_FP32

REAL = 0.70
REAL_IN_PART = 0.20

STORED = {
    "bf16": "all in bf16",
    "bf16-compute": "bf16, fp32 master weights",
    "fp32-master": "fp32, stored as bf16",
    "fp32": "fp32, cast to bf16 afterwards",
}
"""What is compared with the bf16 base, by the precision of a run."""


def table(evidence: Evidence) -> list[tuple[str, str, list[Row]]]:
    """(algorithm, what was compared, the runs), also of runs that learned nothing."""
    variants = evidence.tried("precision")
    usual = {row["name"]: row for _, _, row in variants}.values()
    runs = groups([*(row for _, row, _ in variants), *usual], "algorithm", "precision")
    found = []
    for algorithm in dict.fromkeys(algorithm for algorithm, _ in runs):
        for precision, what in STORED.items():
            if some := runs.get((algorithm, precision)):
                found.append((algorithm, what, some))
        if wide := _in_fp32(evidence, runs.get((algorithm, "fp32"), [])):
            found.append((algorithm, "fp32, compared in fp32", wide))
    return found


def _in_fp32(evidence: Evidence, runs: list[Row]) -> list[Row]:
    rows = (evidence.result(f"{run['name']}{IN_FP32}") for run in runs)
    return [row for row in rows if row is not None]


def _not_rounding(evidence: Evidence) -> Measured:
    rl = [row for _, row, _ in evidence.compared("precision") if row["algorithm"] != "SFT"]
    cast = [row for row in rl if row["precision"] == "fp32"]
    wide = _in_fp32(evidence, cast)
    if not wide:
        return untested("no RL run in fp32 learned beside its main run")
    real, seen = mean(r["sparsity"] for r in wide), mean(r["sparsity"] for r in cast)
    rounding = f": {rate((seen - real) / seen)} of the sparsity is rounding" if seen else ""
    return Measured(
        grade(real, REAL, REAL_IN_PART),
        f"exact sparsity of fp32 runs {percent(r['sparsity'] for r in wide)}; the same weights "
        f"cast to bf16 {percent(r['sparsity'] for r in cast)}{rounding}",
        len(wide),
        [
            {
                "algorithm": algorithm,
                "weights": what,
                "runs": len(some),
                "that learned": sum(row["learned"] for row in some),
                "sparsity, exact": percent(r["sparsity"] for r in some),
                "sparsity, 1e-5": percent(r["sparsity_1e5"] for r in some),
                "reward before": f"{mean(r['reward_before'] for r in some):.3f}",
                "reward after": f"{mean(r['reward_after'] for r in some):.3f}",
            }
            for algorithm, what, some in table(evidence)
        ],
    )


CLAIMS = (
    Claim(
        "7",
        "The sparsity is more than bf16 rounding: training in fp32 is sparse too",
        "disputed: the same performance with no sparsity in fp32",
        f"mean exact sparsity of RL runs trained, stored and compared in fp32 at least "
        f"{rate(REAL)}: holds; {rate(REAL_IN_PART)}: in part",
        _not_rounding,
    ),
)
