"""The claims of the papers in their order, and what the runs say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlsparse_ray.reproduce.claims import causes, dynamics, overlap, precision, sparsity, subnetwork
from rlsparse_ray.reproduce.claims.claim import Claim, Measured, heeding_runs
from rlsparse_ray.reproduce.evidence import Evidence

CLAIMS: tuple[Claim, ...] = (
    *sparsity.CLAIMS,
    *overlap.CLAIMS,
    *subnetwork.CLAIMS,
    *causes.CLAIMS,
    *dynamics.CLAIMS,
    *precision.CLAIMS,
)


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim and what was found about it."""

    claim: Claim
    measured: Measured


def judge(evidence: Evidence) -> Sequence[Finding]:
    """Test every claim."""
    return [Finding(claim, heeding_runs(claim.test(evidence))) for claim in CLAIMS]
