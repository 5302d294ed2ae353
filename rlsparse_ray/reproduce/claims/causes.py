"""What makes updates sparse, by changing one thing at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rlsparse_ray.reproduce.claims.claim import (
    Claim,
    Measured,
    Verdict,
    grade,
    in_part_at_most,
    mean,
    percent,
    points,
    rate,
    untested,
)
from rlsparse_ray.reproduce.claims.compared import (
    ALIKE,
    Compared,
    alike,
    alike_gains,
    answers_differ,
    by_setting,
    gain,
    judged,
    ratio_clips,
    table,
)
from rlsparse_ray.reproduce.evidence import Evidence, Row

LITTLE = 0.05
LITTLE_IN_PART = 0.10
MUCH = 0.20
MUCH_IN_PART = 0.05
KEPT_GAP = 0.50
KEPT_GAP_IN_PART = 0.10
TINY_DENSITY = 0.001
TINY_DENSITY_IN_PART = 0.01

_NOT_ALIKE = (
    f"sparsity is compared only where gains are within {rate(ALIKE)} of each other, since who "
    "learns more changes more"
)


def _matters_little(varies: str) -> Callable[[Evidence], Measured]:
    def test(evidence: Evidence) -> Measured:
        found = evidence.compared(varies)
        if not found:
            return untested(f"no run with another {varies} learned beside its main run")
        rows = table(evidence, found)
        acted = [one for one in found if one[0].name not in evidence.unmoved]
        never = _never_acted([one for one in found if one not in acted])
        if not acted:
            return untested(never, rows)
        moved = {
            setting: mean(row["sparsity"] - usual["sparsity"] for _, row, usual in some)
            for setting, some in by_setting(acted).items()
        }
        (algorithm, what), most = max(moved.items(), key=lambda item: abs(item[1]))
        said = f"largest difference of sparsity {100 * most:+.1f} points ({algorithm}, {what})"
        return judged(
            grade(-abs(most), -LITTLE, -LITTLE_IN_PART),
            f"{said}; {never}" if never else said,
            acted,
            rows,
        )

    return test


def _never_acted(found: list[Compared]) -> str:
    """Who is left out, since the weights are those of the main run; empty of nobody."""
    each = Counter(row["algorithm"] for _, row, _ in found)
    said = ", ".join(f"{count} {algorithm}" for algorithm, count in each.items())
    return f"never acted: {said} (every bit as in the main run, left out)" if each else ""


def _clipping(evidence: Evidence) -> Measured:
    measured = _matters_little("clipping")(evidence)
    acted = (one for one in evidence.compared("clipping") if one[0].name not in evidence.unmoved)
    if any(ratio_clips(evidence, one) for one in acted):
        return measured
    return in_part_at_most(
        measured,
        "only clipping of the gradient's norm was tested: at one update a sample the ratio of "
        "probabilities is 1, so its clipping cannot act",
    )


def _data_matters(evidence: Evidence) -> Measured:
    found = evidence.compared("data")
    if not found:
        return untested("no run on the policy's own samples learned beside its main run")
    differ = [one for one in found if answers_differ(evidence, one)]
    if not differ:
        return untested(
            "each question has one right answer, and samples are kept if they are right: SFT reads "
            "the same answers, sampled or given, and preferences have the same chosen ones, so no "
            "run was out of distribution",
            table(evidence, found),
        )
    same = [one for one in differ if alike(one)]
    if not same:
        said = _gains(differ, "on own samples", "on given answers")
        return untested(f"{said}; {_NOT_ALIKE}", table(evidence, found))
    more = [row["sparsity"] - usual["sparsity"] for _, row, usual in same]
    return judged(
        grade(mean(more), MUCH, MUCH_IN_PART),
        f"sparsity on own samples less that on given answers: {points(more)}",
        same,
        table(evidence, found),
    )


def _rate_matters_less(evidence: Evidence) -> Measured:
    """SFT at a learning rate of RL: how much of the gap between the two is left?"""
    rates = {row["learning_rate"] for row in evidence.main_rl()}
    found = [
        one
        for one in evidence.compared("learning_rate")
        if one[1]["algorithm"] == "SFT" and one[1]["learning_rate"] in rates
    ]
    if not found:
        return untested("no SFT run at a learning rate of RL learned")
    rows = table(evidence, evidence.compared("learning_rate"))
    beside = {_condition(row) for _, row, _ in found}
    rl = [row for row in evidence.main_rl() if _condition(row) in beside]
    slow = [row for _, row, _ in found]
    gained = mean(map(gain, slow))
    like = [row for row in rl if alike_gains(gain(row), gained)]
    if not like:
        said = f"gain in reward of RL {mean(map(gain, rl)):.3f}, of SFT at RL's rate {gained:.3f}"
        return untested(f"{said}; {_NOT_ALIKE}", rows)
    return _gap_left(like, found, rows)


def _condition(row: Row) -> tuple[Any, ...]:
    return row["base_source"], row["dataset"], row["learning_rate"]


def _gap_left(like: list[Row], found: list[Compared], rows: list[Row]) -> Measured:
    """The verdict from RL runs that learned as much as slow SFT, if they are sparser than SFT."""
    rl = mean(row["sparsity"] for row in like)
    slow = mean(row["sparsity"] for _, row, _ in found)
    usual = mean(row["sparsity"] for _, _, row in found)
    algorithms = ", ".join(dict.fromkeys(row["algorithm"] for row in like))
    said = (
        f"sparsity of RL that learned as much ({algorithms}) {rate(rl)}, of SFT at its own rate "
        f"{rate(usual)}, of SFT at RL's rate {rate(slow)}"
    )
    if rl - usual < LITTLE:
        return untested(f"{said}: RL is not the sparser one, so there is no gap", rows)
    left = (rl - slow) / (rl - usual)
    text = f"{said}: {rate(left)} of the gap is left"
    measured = judged(grade(left, KEPT_GAP, KEPT_GAP_IN_PART), text, found, rows)
    return replace(measured, runs=measured.runs + len(like))


def _optimizer(evidence: Evidence) -> Measured:
    found = evidence.compared("optimizer")
    if not found:
        return untested("no run with another optimizer learned beside its main run")
    rows, same = table(evidence, found), [one for one in found if alike(one)]
    if not same:
        return untested(f"{_gains(found, 'with SGD', 'with AdamW')}; {_NOT_ALIKE}", rows)
    density = [row["density"] for _, row, _ in same]
    return judged(
        grade(-mean(density), -TINY_DENSITY, -TINY_DENSITY_IN_PART),
        f"density with SGD {percent(density)}, with AdamW "
        f"{percent(usual['density'] for _, _, usual in same)}",
        same,
        rows,
    )


def _gains(found: list[Compared], changed: str, usual: str) -> str:
    one, other = mean(gain(row) for _, row, _ in found), mean(gain(row) for _, _, row in found)
    return f"gain in reward {changed} {one:.3f}, {usual} {other:.3f}"


def _steps_matter(evidence: Evidence) -> Measured:
    last: dict[str, float] = {}
    first: dict[str, float] = {}
    for row in sorted(evidence.trajectory, key=lambda row: row["step"]):
        if evidence.learned(row["trajectory"]):
            first.setdefault(row["trajectory"], row["sparsity_from_start"])
            last[row["trajectory"]] = row["sparsity_from_start"]
    if not first:
        return untested("no run that learned kept checkpoints")
    fell = [first[name] - last[name] for name in first]
    return Measured(
        Verdict.holds if mean(fell) >= LITTLE else Verdict.fails,
        f"from the first checkpoint to the last, sparsity falls from {percent(first.values())} "
        f"to {percent(last.values())}",
        len(fell),
    )


_LITTLE_RULE = (
    f"largest mean difference of exact sparsity of an algorithm at most {100 * LITTLE:.0f} points: "
    f"holds; {100 * LITTLE_IN_PART:.0f} points: in part; of runs that differ in any bit from their "
    "main run"
)

CLAIMS = (
    Claim(
        "5a",
        "A KL penalty hardly matters for sparsity",
        "GRPO with KL 69.8 %, without 68.8 %",
        _LITTLE_RULE,
        _matters_little("kl"),
    ),
    Claim(
        "5b",
        "Clipping hardly matters",
        "no figure",
        f"{_LITTLE_RULE}, and at most in part if the ratio could not be clipped",
        _clipping,
    ),
    Claim(
        "5c",
        "On-policy sampling hardly matters",
        "no figure",
        _LITTLE_RULE,
        _matters_little("updates_per_sample"),
    ),
    Claim(
        "5d",
        "Data near the policy's own distribution makes updates sparse",
        "SFT on own samples 91.2 %, SFT 6 to 15 %; DPO on others' data 6.8 to 7.7 %",
        f"mean difference of exact sparsity at least {100 * MUCH:.0f} points: holds; "
        f"{100 * MUCH_IN_PART:.0f}: in part; where a question has several right answers, and "
        f"between runs whose gains are within {rate(ALIKE)} of each other",
        _data_matters,
    ),
    Claim(
        "5e",
        "The more steps, the less sparse",
        "falls to a plateau",
        f"mean fall from the first checkpoint to the last at least {100 * LITTLE:.0f} points",
        _steps_matter,
    ),
    Claim(
        "5f",
        "What parts SFT from RL is not just its learning rate",
        "disputed: SFT at 5e-7 is about 60 % sparse",
        f"of the gap in exact sparsity between RL and SFT, at least {rate(KEPT_GAP)} is left when "
        f"SFT has a learning rate of RL: holds; {rate(KEPT_GAP_IN_PART)}: in part; of RL runs on "
        f"the same base and data whose gain is within {rate(ALIKE)} of that of SFT at their rate, "
        f"and only if RL is sparser than SFT by {100 * LITTLE:.0f} points",
        _rate_matters_less,
    ),
    Claim(
        "5g",
        "SGD instead of AdamW changes next to nothing",
        "density below 0.02 %",
        f"mean density with SGD at most {rate(TINY_DENSITY)}: holds; "
        f"{rate(TINY_DENSITY_IN_PART)}: in part; of runs whose gain is within {rate(ALIKE)} of "
        "that with AdamW",
        _optimizer,
    ),
)
