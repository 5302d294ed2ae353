"""Variants beside their main runs: what a comparison may be judged by, and its table."""

from __future__ import annotations

from rlsparse_ray.demo.smollm import task_of
from rlsparse_ray.experiments.runs import RL
from rlsparse_ray.reproduce.claims.claim import Measured, Verdict, mean, percent, points
from rlsparse_ray.reproduce.evidence import Evidence, Row
from rlsparse_ray.reproduce.study import Variant

Compared = tuple[Variant, Row, Row]
"""A variant, its row, and the row of its main run."""

ALIKE = 0.20
"""Two gains in reward are alike if neither is larger than the other by more than this share."""


def gain(row: Row) -> float:
    """What a run gained in reward."""
    gained: float = row["reward_after"] - row["reward_before"]
    return gained


def alike(one: Compared) -> bool:
    """Whether variant and main run learned about as much, so that their densities compare."""
    _, row, usual = one
    return alike_gains(gain(row), gain(usual))


def alike_gains(one: float, other: float) -> bool:
    """Whether two gains in reward are alike."""
    low, high = sorted((one, other))
    return high <= (1 + ALIKE) * low


def ratio_clips(evidence: Evidence, one: Compared) -> bool:
    """Whether the clipping of ratios can act in the runs of a comparison.

    At one update a sample the new probability is the old one, so the ratio is 1 and not clipped.
    """
    run = evidence.run(one[0].name)
    return run.algorithm in RL and run.updates_per_sample > 1


def answers_differ(evidence: Evidence, one: Compared) -> bool:
    """Whether sampled right answers can be other texts than the given ones."""
    return task_of(evidence.run(one[0].name).base).several_answers


def by_setting(found: list[Compared]) -> dict[tuple[str, str], list[Compared]]:
    """By algorithm and what was changed."""
    settings: dict[tuple[str, str], list[Compared]] = {}
    for one in found:
        variant, row, _ = one
        what = f"{variant.varies} {variant.usual} -> {variant.value}"
        settings.setdefault((row["algorithm"], what), []).append(one)
    return settings


def judged(verdict: Verdict, text: str, found: list[Compared], rows: list[Row]) -> Measured:
    """What comparisons say; a main run beside several variants is one run, and one comparison of
    each setting."""
    runs = {row["name"] for _, *both in found for row in both}
    fewest = min(len({v.reference for v, _, _ in some}) for some in by_setting(found).values())
    return Measured(verdict, text, len(runs), rows, fewest)


def table(evidence: Evidence, found: list[Compared]) -> list[Row]:
    """A row an algorithm and setting, also for what no verdict rests on."""
    return [
        {
            "algorithm": algorithm,
            "changed": what,
            "runs": len(some),
            "equal in every bit": sum(v.name in evidence.unmoved for v, _, _ in some),
            "sparsity, usual": percent(usual["sparsity"] for _, _, usual in some),
            "sparsity, changed": percent(row["sparsity"] for _, row, _ in some),
            "difference": points(row["sparsity"] - usual["sparsity"] for _, row, usual in some),
            "reward, usual": f"{mean(usual['reward_after'] for _, _, usual in some):.3f}",
            "reward, changed": f"{mean(row['reward_after'] for _, row, _ in some):.3f}",
            "gain, of the usual": f"{mean(gain(r) / gain(usual) for _, r, usual in some):.2f}",
        }
        for (algorithm, what), some in by_setting(found).items()
    ]
