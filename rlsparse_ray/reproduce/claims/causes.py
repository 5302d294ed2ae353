"""What makes updates sparse, by changing one thing at a time."""

from __future__ import annotations

from collections.abc import Callable

from rlsparse_ray.reproduce.claims.claim import (
    Claim,
    Measured,
    Verdict,
    grade,
    mean,
    percent,
    points,
    rate,
    untested,
)
from rlsparse_ray.reproduce.evidence import Evidence, Row
from rlsparse_ray.reproduce.study import Variant

Compared = tuple[Variant, Row, Row]

LITTLE = 0.05
LITTLE_IN_PART = 0.10
MUCH = 0.20
MUCH_IN_PART = 0.05
KEPT_GAP = 0.50
KEPT_GAP_IN_PART = 0.10
TINY_DENSITY = 0.001
TINY_DENSITY_IN_PART = 0.01


def _by_setting(found: list[Compared]) -> dict[tuple[str, str], list[Compared]]:
    """By algorithm and what was changed."""
    settings: dict[tuple[str, str], list[Compared]] = {}
    for one in found:
        variant, row, _ = one
        what = f"{variant.varies} {variant.usual} -> {variant.value}"
        settings.setdefault((row["algorithm"], what), []).append(one)
    return settings


def _rows(found: list[Compared]) -> list[Row]:
    return [
        {
            "algorithm": algorithm,
            "changed": what,
            "runs": len(some),
            "sparsity, usual": percent(usual["sparsity"] for _, _, usual in some),
            "sparsity, changed": percent(row["sparsity"] for _, row, _ in some),
            "difference": points(row["sparsity"] - usual["sparsity"] for _, row, usual in some),
            "reward, usual": f"{mean(usual['reward_after'] for _, _, usual in some):.3f}",
            "reward, changed": f"{mean(row['reward_after'] for _, row, _ in some):.3f}",
        }
        for (algorithm, what), some in _by_setting(found).items()
    ]


def _matters_little(varies: str) -> Callable[[Evidence], Measured]:
    def test(evidence: Evidence) -> Measured:
        found = evidence.compared(varies)
        if not found:
            return untested(f"no run with another {varies} learned beside its main run")
        moved = {
            setting: mean(row["sparsity"] - usual["sparsity"] for _, row, usual in some)
            for setting, some in _by_setting(found).items()
        }
        (algorithm, what), most = max(moved.items(), key=lambda item: abs(item[1]))
        return Measured(
            grade(-abs(most), -LITTLE, -LITTLE_IN_PART),
            f"largest difference of sparsity {100 * most:+.1f} points ({algorithm}, {what})",
            2 * len(found),
            _rows(found),
        )

    return test


def _data_matters(evidence: Evidence) -> Measured:
    found = evidence.compared("data")
    if not found:
        return untested("no run on the policy's own samples learned beside its main run")
    gained = [row["sparsity"] - usual["sparsity"] for _, row, usual in found]
    return Measured(
        grade(mean(gained), MUCH, MUCH_IN_PART),
        f"sparsity on own samples less that on given answers: {points(gained)}",
        2 * len(found),
        _rows(found),
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
    same = {row["learning_rate"] for _, row, _ in found}
    rl = mean(r["sparsity"] for r in evidence.main_rl() if r["learning_rate"] in same)
    slow = mean(row["sparsity"] for _, row, _ in found)
    usual = mean(row["sparsity"] for _, _, row in found)
    left = (rl - slow) / (rl - usual)
    return Measured(
        grade(left, KEPT_GAP, KEPT_GAP_IN_PART),
        f"sparsity of RL {rate(rl)}, of SFT at its own rate {rate(usual)}, of SFT at RL's rate "
        f"{rate(slow)}: {rate(left)} of the gap is left",
        2 * len(found),
        _rows(evidence.compared("learning_rate")),
    )


def _optimizer(evidence: Evidence) -> Measured:
    found = evidence.compared("optimizer")
    if not found:
        return untested("no run with another optimizer learned beside its main run")
    density = [row["density"] for _, row, _ in found]
    return Measured(
        grade(-mean(density), -TINY_DENSITY, -TINY_DENSITY_IN_PART),
        f"density with SGD {percent(density)}, with AdamW "
        f"{percent(usual['density'] for _, _, usual in found)}",
        2 * len(found),
        _rows(found),
    )


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
    f"holds; {100 * LITTLE_IN_PART:.0f} points: in part"
)

CLAIMS = (
    Claim(
        "5a",
        "A KL penalty hardly matters for sparsity",
        "GRPO with KL 69.8 %, without 68.8 %",
        _LITTLE_RULE,
        _matters_little("kl"),
    ),
    Claim("5b", "Clipping hardly matters", "no figure", _LITTLE_RULE, _matters_little("clipping")),
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
        f"{100 * MUCH_IN_PART:.0f}: in part",
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
        f"SFT has a learning rate of RL: holds; {rate(KEPT_GAP_IN_PART)}: in part",
        _rate_matters_less,
    ),
    Claim(
        "5g",
        "SGD instead of AdamW changes next to nothing",
        "density below 0.02 %",
        f"mean density with SGD at most {rate(TINY_DENSITY)}: holds; "
        f"{rate(TINY_DENSITY_IN_PART)}: in part",
        _optimizer,
    ),
)
