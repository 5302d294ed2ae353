"""How many weights change, and where."""

from __future__ import annotations

from rlsparse_ray.reproduce.claims.claim import (
    Claim,
    Measured,
    Verdict,
    grade,
    groups,
    mean,
    percent,
    rate,
    untested,
)
from rlsparse_ray.reproduce.evidence import Evidence, Row

SPARSE = 0.70
DENSE = 0.15
DENSE_IN_PART = 0.50
SPREAD = 0.95
EVEN = 2.0
NORMS = 0.99
NORMS_IN_PART = 0.90
FULL_RANK = 0.95
EFFECTIVE_RANK = 0.50


def _rl_is_sparse(evidence: Evidence) -> Measured:
    by_algorithm = groups(evidence.main_rl(), "algorithm")
    if not by_algorithm:
        return untested("no RL run learned")
    means = {name: mean(r["sparsity_1e5"] for r in rows) for name, rows in by_algorithm.items()}
    sparse = sum(value >= SPARSE for value in means.values())
    verdict = Verdict.in_part if sparse else Verdict.fails
    each = ", ".join(f"{name} {rate(value)}" for name, value in means.items())
    return Measured(
        Verdict.holds if sparse == len(means) else verdict,
        f"{sparse} of {len(means)} algorithms; mean at 1e-5: {each}",
        len(evidence.main_rl()),
        [_sparsity_row(name, rows) for name, rows in by_algorithm.items()],
    )


def _sft_is_dense(evidence: Evidence) -> Measured:
    rows = evidence.main("SFT")
    if not rows:
        return untested("no SFT run learned")
    sparsity = mean(r["sparsity_1e5"] for r in rows)
    return Measured(
        grade(-sparsity, -DENSE, -DENSE_IN_PART),
        f"sparsity at 1e-5 {percent(r['sparsity_1e5'] for r in rows)}, "
        f"exact {percent(r['sparsity'] for r in rows)}",
        len(rows),
        [_sparsity_row("SFT", rows)],
    )


def _sparsity_row(algorithm: str, rows: list[Row]) -> Row:
    return {
        "algorithm": algorithm,
        "runs": len(rows),
        "learning rate": ", ".join(sorted({f"{r['learning_rate']:g}" for r in rows})),
        "reward before": f"{mean(r['reward_before'] for r in rows):.3f}",
        "reward after": f"{mean(r['reward_after'] for r in rows):.3f}",
        "sparsity, exact": percent(r["sparsity"] for r in rows),
        "sparsity, 1e-5": percent(r["sparsity_1e5"] for r in rows),
        "sparsity, 1e-4": percent(r["sparsity_1e4"] for r in rows),
    }


def _is_spread(evidence: Evidence) -> Measured:
    names = {row["name"] for row in evidence.main_rl()}
    rows = [row for row in evidence.update_spread if row["name"] in names]
    if not rows:
        return untested("no RL run learned")
    reached = mean(row["matrices_changed_share"] for row in rows)
    even = mean(
        row["busiest_layer_ratio"] <= EVEN and row["quietest_layer_ratio"] >= 1 / EVEN
        for row in rows
    )
    verdict = Verdict.in_part if reached >= SPREAD else Verdict.fails
    return Measured(
        Verdict.holds if verdict is Verdict.in_part and even == 1 else verdict,
        f"{percent(r['matrices_changed_share'] for r in rows)} of the matrices change; the busiest "
        f"layer has up to {max(r['busiest_layer_ratio'] for r in rows):.2f} and the quietest at "
        f"least {min(r['quietest_layer_ratio'] for r in rows):.2f} of its share of the changes",
        len(rows),
    )


def _norms_stay(evidence: Evidence) -> Measured:
    rows = [row for row in evidence.main_rl() if row["sparsity_norms"] is not None]
    if not rows:
        return untested("no RL run learned")
    return Measured(
        grade(mean(r["sparsity_norms"] for r in rows), NORMS, NORMS_IN_PART),
        f"sparsity of the norms {percent(r['sparsity_norms'] for r in rows)}",
        len(rows),
        [
            {"algorithm": name, "sparsity of norms": percent(r["sparsity_norms"] for r in some)}
            for name, some in groups(rows, "algorithm").items()
        ],
    )


def _full_rank(evidence: Evidence) -> Measured:
    names = {row["name"] for row in evidence.main_rl()}
    rows = [r for r in evidence.rank_by_pair if r["name"] in names and r["measured"]]
    if not rows:
        return untested("no RL run learned, or none has a row in `spectra`")
    ranks = mean(r["matrix_rank_share_unweighted"] for r in rows)
    effective = mean(r["effective_rank_share_unweighted"] for r in rows)
    verdict = Verdict.in_part if ranks >= FULL_RANK else Verdict.fails
    return Measured(
        Verdict.holds if verdict is Verdict.in_part and effective >= EFFECTIVE_RANK else verdict,
        f"matrix_rank {percent(r['matrix_rank_share_unweighted'] for r in rows)} of full rank, "
        f"effective rank {percent(r['effective_rank_share_unweighted'] for r in rows)}, 99 % "
        f"energy rank {percent(r['energy_rank_99_share_unweighted'] for r in rows)}, stable rank "
        f"{mean(r['stable_rank_unweighted'] for r in rows):.1f}",
        len(rows),
        [_rank_row(name, some) for name, some in groups(rows, "algorithm").items()],
    )


def _rank_row(algorithm: str, rows: list[Row]) -> Row:
    shares = {
        "matrix_rank": "matrix_rank_share_unweighted",
        "rank at 1e-6": "rank_1e6_share_unweighted",
        "effective rank": "effective_rank_share_unweighted",
        "99 % energy": "energy_rank_99_share_unweighted",
        "90 % energy": "energy_rank_90_share_unweighted",
    }
    stable = mean(r["stable_rank_unweighted"] for r in rows)
    return (
        {"algorithm": algorithm, "runs": len(rows)}
        | {title: percent(r[column] for r in rows) for title, column in shares.items()}
        | {"stable rank": f"{stable:.1f}"}
    )


CLAIMS = (
    Claim(
        "1a",
        "RL changes only 5 to 30 % of the weights (sparsity 70 to 95 %), whatever the algorithm",
        "53 to 96 % at 1e-5; 50 to 88 % at 1e-8",
        f"mean sparsity of an algorithm's runs at abs:1e-5 at least {rate(SPARSE)}: holds for all "
        "algorithms, in part for some",
        _rl_is_sparse,
    ),
    Claim(
        "1b",
        "SFT changes almost all weights",
        "sparsity 6 to 15 %",
        f"mean sparsity at abs:1e-5 at most {rate(DENSE)}: holds; at most "
        f"{rate(DENSE_IN_PART)}: in part",
        _sft_is_dense,
    ),
    Claim(
        "2a",
        "The changes are spread over nearly all layers and matrices",
        "nearly all",
        f"at least {rate(SPREAD)} of the matrices changed: in part; holds if also no layer of any "
        f"run has more than {EVEN:g} times its share of the changes, or less than 1/{EVEN:g}",
        _is_spread,
    ),
    Claim(
        "2b",
        "Layer norms almost never change",
        "almost never",
        f"mean sparsity of the norms at least {rate(NORMS)}: holds; {rate(NORMS_IN_PART)}: in part",
        _norms_stay,
    ),
    Claim(
        "2c",
        "The update matrices are nearly full rank",
        "matrix_rank 99.2 to 99.8 % of the largest possible",
        f"mean matrix_rank at least {rate(FULL_RANK)} of full rank: in part, since rounding alone "
        f"gives that; holds if the mean effective rank is at least {rate(EFFECTIVE_RANK)} too",
        _full_rank,
    ),
)
