"""The findings for a terminal and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rlsparse_ray.experiments.runs import Run
from rlsparse_ray.reproduce.study import Study

if TYPE_CHECKING:  # a plan needs neither torch nor Ray
    from rlsparse_ray.reproduce.claims import Finding
    from rlsparse_ray.reproduce.phases import Outcome


def findings_table(findings: Sequence[Finding]) -> pa.Table:
    """A row a claim."""
    return pa.Table.from_pylist(
        [
            {
                "no": found.claim.number,
                "claim": found.claim.text,
                "measured": found.measured.text,
                "runs": found.measured.runs,
                "verdict": str(found.measured.verdict),
            }
            for found in findings
        ]
    )


def plan_table(study: Study) -> pa.Table:
    """A row a group of runs: how many, and how many seconds they are expected to train."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for what, run in _grouped(study):
        key = (what, run.base, run.algorithm)
        groups.setdefault(key, []).append(study.seconds(run))
    return pa.Table.from_pylist(
        [
            {
                "what": what,
                "base": base,
                "algorithm": algorithm,
                "runs": len(seconds),
                "seconds": sum(seconds),
            }
            for (what, base, algorithm), seconds in groups.items()
        ]
    )


def _grouped(study: Study) -> Iterator[tuple[str, Run]]:
    variants = {variant.name: variant for variant in study.variants}
    for run in study.full:
        variant = variants.get(run.name)
        yield f"{variant.varies} {variant.value}" if variant else "main", run
    for run in study.masked:
        yield f"{run.mask} only", run


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Everything that was found, as plain values."""
    return {
        "findings": [
            {
                "number": found.claim.number,
                "claim": found.claim.text,
                "published": found.claim.published,
                "rule": found.claim.rule,
                "verdict": str(found.measured.verdict),
                "measured": found.measured.text,
                "runs": found.measured.runs,
                "rows": [dict(row) for row in found.measured.rows],
            }
            for found in outcome.findings
        ],
        "learned_nothing": [row["name"] for row in outcome.evidence.idle()],
        "failed": dict(outcome.failed),
        "session": dict(outcome.session),
    }
