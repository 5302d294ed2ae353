"""Training only the weights that the full run changed, against controls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import stdev

from rlsparse_ray.reproduce.claims.claim import (
    Claim,
    Measured,
    Verdict,
    grade,
    groups,
    mean,
    percent,
    points,
    rate,
    untested,
)
from rlsparse_ray.reproduce.evidence import Evidence, Row

RECOVERS = 0.90
RECOVERS_IN_PART = 0.50
BETTER = 0.05
EQUAL_1E5 = 0.90
EQUAL_1E4 = 0.995
MASKS = ("subnetwork", "random", "complement")


def counted(evidence: Evidence) -> list[Row]:
    """The masked runs whose full run learned."""
    return [row for row in evidence.masked_runs if evidence.learned(row["name_full"])]


def _of(rows: list[Row], mask: str) -> list[Row]:
    return [row for row in rows if row["mask"] == mask]


def _recovers(evidence: Evidence) -> Measured:
    rows = counted(evidence)
    own = _of(rows, "subnetwork")
    if not own:
        return untested("no full run that learned has a subnetwork run")
    each = {mask: _of(rows, mask) for mask in MASKS}
    said = [
        f"{mask} {percent(r['gain_share'] for r in some)}" for mask, some in each.items() if some
    ]
    return Measured(
        grade(mean(r["gain_share"] for r in own), RECOVERS, RECOVERS_IN_PART),
        f"share of the full run's gain: {'; '.join(said)}; the subnetworks are "
        f"{percent(_trained_share(evidence, row) for row in own)} of all weights",
        len(own),
        [
            _reward_row(evidence, algorithm, mask, some)
            for (algorithm, mask), some in groups(rows, "algorithm", "mask").items()
        ],
    )


def _trained_share(evidence: Evidence, row: Row) -> float:
    """Trained weights of a masked run / all: the density of its full run, or 1 less that."""
    full = evidence.result(row["name_full"])
    density: float = full["density"] if full else math.nan
    return 1 - density if row["mask"] == "complement" else density


def _reward_row(evidence: Evidence, algorithm: str, mask: str, rows: list[Row]) -> Row:
    return {
        "algorithm": algorithm,
        "trained": mask,
        "weights trained": percent(_trained_share(evidence, r) for r in rows),
        "runs": len(rows),
        "reward before": f"{mean(r['reward_before'] for r in rows):.3f}",
        "reward, all weights": f"{mean(r['reward_after_full'] for r in rows):.3f}",
        "reward, these": f"{mean(r['reward_after'] for r in rows):.3f}",
        "share of the gain": percent(r["gain_share"] for r in rows),
    }


@dataclass(frozen=True, slots=True)
class _Lead:
    """By how much the subnetwork runs of an algorithm are ahead of the random ones."""

    algorithm: str
    more: list[float]
    """Shares of the gain, subnetwork less random; one for each full run."""
    density: float
    """Mean density of the masks."""

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return _standard_error(self.more)

    @property
    def clear(self) -> bool:
        """Whether the mean is far enough from nothing, in itself and in standard errors."""
        return mean(self.more) >= max(BETTER, 2 * self.error)

    def said(self) -> str:
        return f"{self.algorithm} {points([mean(self.more)])} (mask of {rate(self.density)})"

    def row(self) -> Row:
        return {
            "algorithm": self.algorithm,
            "runs": len(self.more),
            "weights in the mask": rate(self.density),
            "subnetwork less random": points(self.more),
            "standard error": f"{100 * self.error:.1f}",
        }


def _standard_error(values: list[float]) -> float:
    return stdev(values) / math.sqrt(len(values))


def _leads(evidence: Evidence) -> list[_Lead]:
    """By algorithm, where two runs or more have both: one has no spread."""
    rows = counted(evidence)
    random = {row["name_full"]: row["gain_share"] for row in _of(rows, "random")}
    both = [row for row in _of(rows, "subnetwork") if row["name_full"] in random]
    return [
        _Lead(
            algorithm,
            [row["gain_share"] - random[row["name_full"]] for row in some],
            mean(_trained_share(evidence, row) for row in some),
        )
        for algorithm, some in groups(both, "algorithm").items()
        if len(some) > 1
    ]


def _beats_random(evidence: Evidence) -> Measured:
    leads = _leads(evidence)
    if not leads:
        return untested("no algorithm has two full runs that learned and have both masked runs")
    clear = sum(lead.clear for lead in leads)
    text = f"{clear} of {len(leads)} algorithms: {', '.join(lead.said() for lead in leads)}"
    if len(leads) > 1:
        means = [mean(lead.more) for lead in leads]
        error = 100 * _standard_error(means)
        text += f"; mean of the algorithms {points([mean(means)])}, standard error {error:.1f}"
    verdict = Verdict.in_part if clear else Verdict.fails
    return Measured(
        Verdict.holds if clear == len(leads) else verdict,
        f"share of the gain, subnetwork less random, clear for {text}",
        sum(len(lead.more) for lead in leads),
        [lead.row() for lead in leads],
    )


def _same_weights(evidence: Evidence) -> Measured:
    rows = [row for row in counted(evidence) if row["equal_share_1e5"] is not None]
    own, random = _of(rows, "subnetwork"), _of(rows, "random")
    if not own:
        return untested("no full run that learned has a subnetwork run")
    fine, coarse = (mean(r[c] for r in own) for c in ("equal_share_1e5", "equal_share_1e4"))
    text = (
        f"equal at 1e-5 {percent(r['equal_share_1e5'] for r in own)}, at 1e-4 "
        f"{percent(r['equal_share_1e4'] for r in own)}"
    )
    if random:
        text += f"; random masks at 1e-5 {percent(r['equal_share_1e5'] for r in random)}"
    close = fine >= EQUAL_1E5 and coarse >= EQUAL_1E4
    nearer = bool(random) and fine > mean(r["equal_share_1e5"] for r in random)
    return Measured(
        Verdict.holds
        if close and nearer
        else Verdict.in_part
        if close or nearer
        else Verdict.fails,
        text if random else f"{text}; no random masks to compare them with",
        len(own),
        [
            _equal_row(algorithm, mask, some)
            for (algorithm, mask), some in groups(rows, "algorithm", "mask").items()
        ],
    )


def _equal_row(algorithm: str, mask: str, rows: list[Row]) -> Row:
    return {
        "algorithm": algorithm,
        "trained": mask,
        "runs": len(rows),
        "equal, exact": percent(r["equal_share_exact"] for r in rows),
        "equal, 1e-5": percent(r["equal_share_1e5"] for r in rows),
        "equal, 1e-4": percent(r["equal_share_1e4"] for r in rows),
        "changed where frozen": "-"
        if rows[0]["leaked"] is None
        else f"{sum(r['leaked'] for r in rows):,}",
    }


CLAIMS = (
    Claim(
        "4a",
        "Training only the subnetwork recovers the performance of full fine-tuning",
        "DPO average 40.3 full, 41.9 subnetwork; PRIME on MATH500 69.8, 72.2",
        f"mean share of the full run's gain in reward at least {rate(RECOVERS)}: holds; "
        f"{rate(RECOVERS_IN_PART)}: in part",
        _recovers,
    ),
    Claim(
        "4b",
        "and that is due to this subnetwork: as many random weights of each tensor do worse",
        "no control; others find that random masks train as well",
        f"mean of an algorithm's (subnetwork less random), in shares of the gain, at least "
        f"{rate(BETTER)} and two standard errors: holds for all algorithms, in part for some. "
        "Runs of one algorithm differ in little but the seed, so none are pooled; a mask of nearly "
        "all weights has a control that is nearly itself",
        _beats_random,
    ),
    Claim(
        "4c",
        "and it gives nearly the same weights",
        "equal at 1e-5: DPO 94.0 %, PRIME 90.5 %; at 1e-4: 100 %",
        f"mean share of equal weights at least {rate(EQUAL_1E5)} at 1e-5 and {rate(EQUAL_1E4)} at "
        "1e-4 and more than with random masks: holds; one of the two: in part",
        _same_weights,
    ),
)
