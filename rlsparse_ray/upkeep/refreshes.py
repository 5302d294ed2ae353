"""What refreshes leave in the store: one row each.

STORE/refreshes/refresh=20261123T040000Z-1f0a2b/refreshes.parquet
"""

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import xxhash

from rlsparse_ray import __version__, tables
from rlsparse_ray.storage.lease import LEASE
from rlsparse_ray.store import Store, write_parquet
from rlsparse_ray.upkeep.checks import Finding

MOST_FINDINGS = 1000
"""Findings that are kept: a damaged table may give one a row."""


@dataclass(frozen=True, slots=True)
class RefreshSummary:
    """What a refresh did; in words in the table `refreshes`."""

    corpus: str
    holder: str
    started_at: datetime
    seconds: float
    pairs: int
    added: dict[str, str]
    """Name of each pair -> its pair_id."""
    moved: dict[str, tuple[str, str]]
    """Name -> its pair_id, and the one that was current until then."""
    relabelled: dict[str, str]
    unchanged: int
    failed: dict[str, str]
    """Name -> why."""
    doubts: dict[str, str]
    bytes_read: int
    overlap_criteria: tuple[str, ...]
    sample_fraction: float
    overlaps_counted: int
    audits: int
    """0: nothing had changed since the refresh before, whose audits had found nothing."""
    findings: tuple[Finding, ...]
    state: str

    @property
    def ok(self) -> bool:
        """Whether no pair failed and no audit found anything."""
        return not self.failed and not self.findings

    def row(self) -> dict[str, Any]:
        """The row of `refreshes`."""
        facts = {
            "added": [{"name": n, "pair_id": i} for n, i in self.added.items()],
            "moved": [
                {"name": n, "pair_id": i, "superseded": old} for n, (i, old) in self.moved.items()
            ],
            "relabelled": [{"name": n, "pair_id": i} for n, i in self.relabelled.items()],
            "failed": [{"name": n, "message": m} for n, m in self.failed.items()],
            "doubts": [{"name": n, "message": m} for n, m in self.doubts.items()],
            "findings": [asdict(finding) for finding in self.findings[:MOST_FINDINGS]],
            "ok": self.ok,
            "schema_version": tables.SCHEMA_VERSION,
            "software_version": __version__,
        }
        return {name: facts.get(name, getattr(self, name, None)) for name in tables.REFRESHES.names}


def keep_summary(store: Store, summary: RefreshSummary) -> None:
    """Write the row of a refresh."""
    started = summary.started_at.astimezone(UTC)
    name = f"refresh={started:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    scratch = store.files.scratch(f"staging/{name}")
    write_parquet(tables.to_table("refreshes", [summary.row()]), scratch)
    store.files.publish(scratch, f"refreshes/{name}/refreshes.parquet")


def last_refresh(store: Store) -> dict[str, Any] | None:
    """The row of the last refresh; None if there was none.

    Raises:
        StoreError: it is damaged, or a newer rlsparse_ray wrote it.
    """
    found = [path for path in store.files.list("refreshes") if path.endswith("/refreshes.parquet")]
    return store.only_row(found[-1], "refresh again") if found else None


def state_of(store: Store, criteria: Sequence[str], fraction: float) -> str:
    """Hash of the names and sizes of the files of a store, and of what is asked of them.

    It tells whether audits and overlaps have anything new to see. What is not committed, and the
    refreshes themselves, do not count.
    """
    apart = ("staging", "refreshes", LEASE)
    files = [
        item for item in store.files.list("").items() if item[0].partition("/")[0] not in apart
    ]
    facts = repr((files, sorted(criteria), fraction, __version__))
    return xxhash.xxh3_64_hexdigest(facts.encode())
