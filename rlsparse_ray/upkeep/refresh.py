"""Bring a store up to date with a corpus: what is new or has moved on is extracted, and no more.

    summary = refresh("corpus.yaml", "s3://masks/store")
    sys.exit(0 if summary.ok else 1)

Made to be run again and again by a timer: a pair that fails does not stop the others and is tried
again next time; a lease keeps two refreshes of one store apart; every one leaves a row in the
table `refreshes`. Where no commit has moved it costs a request a model.
"""

import os
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlsparse_ray.cluster import Outcome, Resources, extract, overlaps, ray_session
from rlsparse_ray.commit import recommit_pair, relabel_pair
from rlsparse_ray.compare.criteria import parse_criterion
from rlsparse_ray.corpus import load_corpus
from rlsparse_ray.population.overlap_plan import current_pairs, plan_overlaps
from rlsparse_ray.sql import audits, connect
from rlsparse_ray.storage.files import address_of, store_errors
from rlsparse_ray.storage.lease import Lease, hold
from rlsparse_ray.store import Store
from rlsparse_ray.upkeep.checks import Finding, audit
from rlsparse_ray.upkeep.refreshes import RefreshSummary, keep_summary, last_refresh, state_of
from rlsparse_ray.upkeep.survey import Survey, survey


def refresh(
    corpus: str | Path,
    store_root: str,
    *,
    criteria: Sequence[str] = ("exact",),
    sample: float = 1.0,
    resources: Resources | None = None,
    address: str | None = None,
    cache: bool = False,
    wait: float = 0.0,
) -> RefreshSummary:
    """Extract what is new or moved, extend `overlaps`, run the audits, and note it in the store.

    Audits and overlaps are left out where the store is, file by file, what the refresh before
    found in order.

    Args:
        corpus: corpus file, or the name of one that ships.
        store_root: the store; it is made if there is none.
        criteria: whose overlaps to keep up to date, if any pair has masks of them.
        sample: share of the blocks in which overlaps are counted.
        resources: what a slice asks of a node.
        address: Ray cluster to run on; None: this machine.
        cache: keep whole files of the hub in its local cache.
        wait: seconds to wait for another refresh of the store to end.

    Raises:
        LeaseError: the store is in use by another one, or was taken over by it.
        CorpusError, StoreError, RlsparseError: as the parts of it; what is finished is kept, and
            no row is written.
        ValueError: no such criterion, or `sample` is not above 0 and at most 1.
    """
    asked = kept_overlaps(criteria, sample)
    loaded = load_corpus(corpus)
    root = address_of(store_root)
    store = Store.create(root)
    with hold(root, "refresh", wait=wait) as lease, ExitStack() as stack:
        began, started_at = time.monotonic(), datetime.now(UTC)
        found = survey(loaded, root)
        if found.plan.pairs:
            # once for slices and overlaps: starting Ray takes seconds
            stack.enter_context(ray_session(address))
        lease.check()
        _keep_labels(found, store)
        outcome = extract(
            found.plan, root, resources=resources, cache=cache, progress=lease.guard()
        )
        changed = bool(found.relabelled or found.returned or outcome.relabelled)
        checked = _check(store, asked, changed, lease, address)
        lease.check()
        summary = RefreshSummary(
            corpus=str(corpus),
            holder=f"{socket.gethostname()}-{os.getpid()}",
            started_at=started_at,
            seconds=time.monotonic() - began,
            pairs=len(found.plan.pairs) + len(found.plan.kept) + len(found.plan.failed),
            **_outcomes(found, outcome),
            bytes_read=outcome.nbytes,
            overlap_criteria=tuple(asked.criteria),
            sample_fraction=sample,
            overlaps_counted=checked.overlaps,
            audits=checked.audits,
            findings=checked.findings,
            state=checked.state,
        )
        with store_errors(root):
            keep_summary(store, summary)
    return summary


def kept_overlaps(criteria: Sequence[str], sample: float) -> "KeptOverlaps":
    """Which overlaps a refresh keeps up to date.

    Raises:
        ValueError: no such criterion, or `sample` is not above 0 and at most 1.
    """
    if not 0 < sample <= 1:
        raise ValueError(f"sample {sample:g}: give a fraction above 0 and at most 1")
    return KeptOverlaps([str(parse_criterion(text)) for text in criteria], sample)


def _keep_labels(found: Survey, store: Store) -> None:
    for pair in found.relabelled:
        relabel_pair(pair, store.root)
    for pair in found.returned:
        recommit_pair(pair, store)


def _outcomes(found: Survey, outcome: Outcome) -> dict[str, Any]:
    ids = {pair.entry.name: pair.pair_id for pair in found.plan.pairs}
    ids |= {pair.entry.name: pair.pair_id for pair in found.plan.kept}
    moved = [*outcome.committed, *(pair.entry.name for pair in found.returned)]
    relabelled = [*outcome.relabelled, *(pair.entry.name for pair in found.relabelled)]
    return {
        "added": {n: ids[n] for n in outcome.committed if n not in found.superseded},
        "moved": {n: (ids[n], found.superseded[n]) for n in moved if n in found.superseded},
        "relabelled": {n: ids[n] for n in relabelled},
        # another extraction may have committed some of the new ones meanwhile
        "unchanged": len(outcome.unchanged)
        + len(found.plan.kept)
        - len(found.returned)
        - len(found.relabelled),
        "failed": outcome.failed,
        "doubts": outcome.doubts,
    }


@dataclass(frozen=True, slots=True)
class _Checked:
    """What followed the extraction."""

    state: str
    overlaps: int = 0
    audits: int = 0
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class KeptOverlaps:
    """Which overlaps are kept up to date."""

    criteria: Sequence[str]
    sample: float

    def state(self, store: Store) -> str:
        """The state of a store as far as overlaps and audits are concerned."""
        with store_errors(store.root):
            return state_of(store, self.criteria, self.sample)

    def count(self, store: Store, lease: Lease, address: str | None) -> int:
        """Count those that are missing; how many these were."""
        with store_errors(store.root):
            masked = {c for row in current_pairs(store) for c in row["criteria"]}
        counted = 0
        for criterion in self.criteria:
            if criterion in masked:
                lease.check()
                plan = plan_overlaps(store.root, criterion, self.sample)
                overlaps(plan, store.root, address=address, progress=lease.guard())
                counted += len(plan.wanted)
        return counted


def _check(
    store: Store, asked: KeptOverlaps, changed: bool, lease: Lease, address: str | None
) -> _Checked:
    """Overlaps and audits, unless nothing `changed` that they would see."""
    with store_errors(store.root):
        last = last_refresh(store)
    state = asked.state(store)
    if last and not changed and last["state"] == state and not last["findings"]:
        return _Checked(state)
    counted = asked.count(store, lease, address)
    # before the audits: what is committed while they run is for the next ones
    state = asked.state(store)
    if not store.committed():
        return _Checked(state)
    with connect(store.root) as con:
        return _Checked(state, counted, len(audits()), tuple(audit(con)))
