"""From the finished slices of a pair to its committed row."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from rlsparse_ray import __version__
from rlsparse_ray.align import Aligned
from rlsparse_ray.blocks import BLOCK
from rlsparse_ray.compare.criteria import counted_with, parse_criterion
from rlsparse_ray.corpus import PairEntry
from rlsparse_ray.entries import TrajectoryPair
from rlsparse_ray.errors import StoreError
from rlsparse_ray.plan import KeptPair, PlannedPair
from rlsparse_ray.rows import Rows
from rlsparse_ray.small_tables import write_small_tables
from rlsparse_ray.storage.files import store_errors
from rlsparse_ray.store import Part, SliceResult, Store
from rlsparse_ray.tables import SCHEMA_VERSION

LABELS = tuple(
    name for name in TrajectoryPair.model_fields if name not in ("name", "base", "tuned", "labels")
)
"""Columns of `pairs` that come straight from the corpus file."""


COMMIT_MEMORY = 700 << 20
"""Bytes that a commit needs; a pair of 4,000 matrices of 2048 x 7168 peaks at 400 MiB, and at no
more if it has ten times as many."""


def commit_pair(
    pair: PlannedPair, keys: Sequence[str], store_root: str, lineage_score: float | None
) -> None:
    """Merge the slices named `keys` (in their order) and make the pair visible.

    If another run has committed the pair meanwhile, and so removed its slices, that stays.

    Raises:
        StoreError: a finished slice or a file of the pair is gone, or the store cannot be written.
    """
    store = Store.open(store_root)
    with store_errors(store_root):
        if store.is_whole(pair.pair_id):
            store.drop_staging(pair.pair_id)
            return
        sums = _Sums()
        small = write_small_tables(store, pair.pair_id, _pieces(pair, keys, store, sums))
        facts = _pair_row(pair, sums) | {"lineage_score": lineage_score}
        store.commit(pair.pair_id, facts, small)


def relabel_pair(pair: PlannedPair | KeptPair, store_root: str) -> bool:
    """Bring the labels of a committed pair up to date; True if any had changed."""
    store = Store.open(store_root)
    row = store.pair_row(pair.pair_id)
    stale = stale_labels(pair.entry, row)
    if not stale:
        return False
    with store_errors(store_root):
        store.write_pair(pair.pair_id, row | stale)
        store.confirm(pair.pair_id)
        store.drop_staging(pair.pair_id)
    return True


def stale_labels(entry: PairEntry, row: Mapping[str, Any]) -> dict[str, Any]:
    """The labels that the row of a pair lacks or has otherwise, as the corpus has them now."""
    return {name: value for name, value in _labels(entry).items() if row[name] != value}


def recommit_pair(pair: KeptPair, store: Store) -> None:
    """Make a superseded pair the current one again: its models are back where they were."""
    row = store.pair_row(pair.pair_id) | _labels(pair.entry) | {"created_at": datetime.now(UTC)}
    with store_errors(store.root):
        store.write_pair(pair.pair_id, row)


@dataclass(slots=True)
class _Sums:
    """What is summed over the slices of a pair."""

    statuses: Counter[str] = field(default_factory=Counter)
    bytes_read: int = 0
    seconds: float = 0.0
    masks: list[Part] = field(default_factory=list)


def _pieces(
    pair: PlannedPair, keys: Sequence[str], store: Store, sums: _Sums
) -> Iterator[Mapping[str, pa.Table]]:
    """The small tables of each slice, and last what was not compared; sums up on the way."""
    for key in keys:
        result = _result(store, pair.pair_id, key)
        sums.bytes_read += result.bytes_read
        sums.seconds += result.seconds
        sums.masks.extend(result.masks)
        sums.statuses.update(result.tables["tensors"]["status"].to_pylist())
        yield result.tables
    rest = Rows()
    for row in pair.rows:
        if not row.compared:
            rest.add_uncompared(row)
            sums.statuses[row.status] += 1
    yield rest.tables()


def _result(store: Store, pair_id: str, key: str) -> SliceResult:
    result = store.staged(pair_id, key)
    if result is None:
        raise StoreError(
            f"store {store.root}: slice {key} of {pair_id} is gone before its commit: "
            f"is something else cleaning the store? Run again"
        )
    return result


def _labels(entry: PairEntry) -> dict[str, Any]:
    # only a pair of a trajectory has its steps
    found = {name: getattr(entry, name, None) for name in ("name", *LABELS)}
    return found | {"labels": list(entry.labels.items())}


def _pair_row(pair: PlannedPair, sums: _Sums) -> dict[str, Any]:
    masked = [parse_criterion(text) for text in pair.settings.criteria]
    statuses = sums.statuses
    return {
        **_labels(pair.entry),
        "base_source": pair.base.source,
        "base_revision": pair.base.revision,
        "base_dtype": pair.base.dtype,
        "tuned_source": pair.tuned.source,
        "tuned_revision": pair.tuned.revision,
        "tuned_dtype": pair.tuned.dtype,
        "compare_dtype": pair.settings.compare_dtype,
        "numel": pair.numel,
        "numel_base_only": sum(_only(row, "base") for row in pair.rows),
        "numel_tuned_only": sum(_only(row, "tuned") for row in pair.rows),
        "numel_mismatched": sum(
            row.base.numel for row in pair.rows if row.status == "shape_mismatch" and row.base
        ),
        "tensors_compared": statuses["compared"] + statuses["identical"],
        "tensors_identical": statuses["identical"],
        "tensors_partial": statuses["partial_rows"],
        "tensors_base_only": statuses["base_only"],
        "tensors_tuned_only": statuses["tuned_only"],
        "tensors_mismatched": statuses["shape_mismatch"],
        "tensors_tied": statuses["tied"],
        "criteria": [str(criterion) for criterion in masked],
        "counted_criteria": [str(criterion) for criterion in counted_with(masked)],
        "block": BLOCK,
        "schema_version": SCHEMA_VERSION,
        "software_version": __version__,
        "bytes_read": sums.bytes_read,
        "seconds": sums.seconds,
        "created_at": datetime.now(UTC),
        "parts": [asdict(part) for part in sums.masks],
    }


def _only(row: Aligned, side: str) -> int:
    """Parameters that one side alone has: whole tensors, or the rows beyond the common ones."""
    spec = row.base if side == "base" else row.tuned
    if spec is None or row.status in ("tied", "shape_mismatch"):
        return 0
    return spec.numel - row.numel
