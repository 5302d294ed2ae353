"""Remove what nothing in a store refers to, and superseded revisions on request.

Only files that rlsparse itself puts into stores are ever removed, and only those that no committed
row names. What it does not know is listed and left. Files of a pair or a named mask of which any
has been written lately are left too, and those of the pairs that a living extraction has announced:
extractions take no lease. All that is looked at once more, pair by pair, right before it goes.

Rows in which other pairs overlap with a removed one stay in the files of those: no view shows them,
and they are right again if the revision comes back. Parts of uploads that were broken off are not
files yet and cannot be listed: a rule of the bucket removes them (AbortIncompleteMultipartUpload).
"""

import re
import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlsparse_ray.population.named_masks import named_mask_row, named_masks
from rlsparse_ray.population.overlap_plan import each, newest_of
from rlsparse_ray.storage.files import address_of, store_errors
from rlsparse_ray.storage.lease import LEASE, hold
from rlsparse_ray.storage.local_files import PARTIAL, Entry
from rlsparse_ray.store import MARKER, SMALL_TABLES, Store, table_path
from rlsparse_ray.upkeep.watch import runs_of, work_of

HOURS = 24.0
"""Age below which nothing is removed that an extraction might be writing."""

_PART = r"part-\d{5,}\.parquet"
_LAYOUT = {
    "masks": rf"pair_id=([^/]+)/criterion=[^/]+/{_PART}",
    **{name: rf"pair_id=([^/]+)/{name}\.parquet" for name in ("pairs", *SMALL_TABLES)},
    "overlaps": r"pair_b=([^/]+)/overlaps\.parquet",
    "spectra": r"pair_id=([^/]+)/spectra\.parquet",
    "named_masks": r"mask=([^/]+)/named_masks\.parquet",
    "named_mask_bits": rf"mask=([^/]+)/{_PART}",
    "refreshes": r"refresh=([^/]+)/refreshes\.parquet",
    "staging": r"([^/]+)(?:/.+)?",
}
"""What rlsparse writes below each folder of a store; the group names what a file belongs to."""

_KINDS = {"named_masks": "mask", "named_mask_bits": "mask", "refreshes": "refresh"}
"""What the files of a folder belong to; all others to pairs."""

_PASSES = ("overlaps", "spectra")
"""Tables with a file for each pair that its row does not list: passes write them later."""

_SCRATCH = re.compile(rf"\.[0-9a-f]{{32}}{re.escape(PARTIAL)}\Z")

_UNKNOWN = "not written by rlsparse"
_UNNAMED = "no committed row names it"
_UNFINISHED = "staged by a run that did not end"
_SCRATCHED = "was being written when its process died"
_SUPERSEDED = "of a superseded revision"


@dataclass(frozen=True, slots=True)
class Item:
    """A file that can go, or that nobody knows."""

    path: str
    nbytes: int
    why: str
    owner: str
    """What it belongs to: pair_id=ID, mask=NAME, or itself."""


@dataclass(slots=True)
class Garbage:
    """What a store holds that nothing refers to."""

    removable: list[Item] = field(default_factory=list)
    young: list[Item] = field(default_factory=list)
    """The same, but too young, or of what a living run has announced: it may be at work on it."""
    unknown: list[Item] = field(default_factory=list)
    """Files that rlsparse did not write there: they are left."""

    @property
    def nbytes(self) -> int:
        """Bytes that can go."""
        return sum(item.nbytes for item in self.removable)


def find_garbage(store_root: str, *, superseded: bool = False, hours: float = HOURS) -> Garbage:
    """What `collect` would remove; writes nothing.

    Args:
        store_root: the store.
        superseded: also the pairs that are not current any more, with their own overlaps and
            spectra.
        hours: what is not committed and younger than this stays.

    Raises:
        StoreError: there is no store, or a row of it is damaged: nothing may be removed then.
    """
    store = Store.open(store_root)
    with store_errors(store_root):
        # files first: what is committed after this is in the rows
        entries = store.files.entries("")
        return _sort(entries, _Sorter(store, superseded), _before(hours), _busy(store, entries))


def collect(store_root: str, *, superseded: bool = False, hours: float = HOURS) -> Garbage:
    """Remove what `find_garbage` finds, while no refresh, overlap pass or other `collect` runs.

    Of a superseded pair the row goes first, so that no reader sees half of it. What has become
    somebody's work since it was found stays, and is among `young`.

    Raises:
        LeaseError: the store is in use.
        StoreError: as `find_garbage`, or a file cannot be removed.
    """
    root = address_of(store_root)
    store = Store.open(root)
    with hold(root, "gc") as lease, store_errors(root):
        found = find_garbage(root, superseded=superseded, hours=hours)
        sorter, removed = _Sorter(store, superseded), set()
        for owner in dict.fromkeys(item.owner for item in found.removable):
            again = _look_again(store, sorter, owner, _before(hours))
            for item in sorted(again.removable, key=lambda item: item.path[:6] != "pairs/"):
                lease.check()
                store.files.remove(item.path)
                removed.add(item.path)
    left = [item for item in found.removable if item.path not in removed]
    removable = [item for item in found.removable if item.path in removed]
    return Garbage(removable, found.young + left, found.unknown)


def _before(hours: float) -> float:
    return time.time() - hours * 3600


def _busy(store: Store, entries: Mapping[str, Entry]) -> set[str]:
    """The pairs that living extractions have announced, as owners."""
    runs = [run for run in runs_of(entries) if run.lives]
    return {f"pair_id={pair_id}" for pair_id in work_of(store, runs)}


def _look_again(store: Store, sorter: "_Sorter", owner: str, before: float) -> Garbage:
    """What can go of an owner as it is now."""
    busy = _busy(store, store.files.entries("staging"))
    found = {p: e for place in _places(owner) for p, e in store.files.entries(place).items()}
    mine = {path: entry for path, entry in found.items() if sorter.verdict(path)[0] == owner}
    # files first, as above
    sorter.look_again(owner)
    return _sort(mine, sorter, before, busy)


def _places(owner: str) -> list[str]:
    """Folders with all that an owner has, and perhaps more."""
    kind, _, name = owner.partition("=")
    if kind == "mask":
        return [f"{table}/{owner}" for table in ("named_masks", "named_mask_bits", "staging")]
    if kind == "pair_id" and not name.endswith(".json"):
        tables = ("pairs", "masks", *SMALL_TABLES, "spectra")
        own = [f"{table}/{owner}" for table in tables]
        return [*own, f"overlaps/pair_b={name}", f"staging/{name}"]
    # announcements of runs, and what is not below a folder
    return ["staging"] if kind == "pair_id" else [""]


class _Sorter:
    """Tells the files of a store apart by what its rows say."""

    def __init__(self, store: Store, superseded: bool) -> None:
        self._store = store
        self.rows = each(store.pair_row, sorted(store.committed()))
        current = {row["pair_id"] for row in newest_of(self.rows)}
        self.old = self.rows.keys() - current if superseded else set()
        rows: list[Mapping[str, Any] | None] = list(self.rows.values())
        rows += [named_mask_row(store, name) for name in named_masks(store)]
        self.listed = {part["path"] for row in rows if row for part in row["parts"]}

    def look_again(self, owner: str) -> None:
        """Read the row of a pair or a named mask as it is now."""
        kind, _, name = owner.partition("=")
        row = None
        if kind == "mask":
            row = named_mask_row(self._store, name)
        elif kind == "pair_id":
            row = self._store.only_row(table_path("pairs", name), "extract again")
            self.rows.pop(name, None)
            self.rows |= {name: row} if row else {}
        self.listed |= {part["path"] for part in (row["parts"] if row else ())}

    def verdict(self, path: str) -> tuple[str, str]:
        """What a file belongs to, and why it can go; no reason: it has to stay."""
        target = _SCRATCH.sub("", path)
        if target in (MARKER, LEASE):
            return path, _SCRATCHED if path != target else ""
        table, _, rest = target.partition("/")
        found = re.fullmatch(_LAYOUT[table], rest) if table in _LAYOUT else None
        if found is None:
            return path, _UNKNOWN
        name: str = found[1]
        # below staging/ only what is of no pair says what it is of: mask=NAME
        owner = name if "=" in name else f"{_KINDS.get(table, 'pair_id')}={name}"
        if path != target:
            return owner, _SCRATCHED
        if table == "staging":
            return owner, _UNFINISHED
        return owner, self._why(table, name, path)

    def _why(self, table: str, name: str, path: str) -> str:
        old = name in self.old and table not in _KINDS
        if old and (table in ("pairs", *_PASSES) or path in self.listed):
            return _SUPERSEDED
        if table in ("masks", *SMALL_TABLES, "named_mask_bits"):
            return "" if path in self.listed else _UNNAMED
        return _UNNAMED if table in _PASSES and name not in self.rows else ""


def _sort(
    entries: Mapping[str, Entry], sorter: _Sorter, before: float, busy: Collection[str]
) -> Garbage:
    found = Garbage()
    newest: dict[str, float] = defaultdict(float)
    verdicts = {path: sorter.verdict(path) for path in entries}
    for path, (owner, _) in verdicts.items():
        newest[owner] = max(newest[owner], entries[path].modified)
    for path, (owner, why) in verdicts.items():
        item = Item(path, entries[path].nbytes, why, owner)
        if why == _UNKNOWN:
            found.unknown.append(item)
        elif why == _SUPERSEDED or (why and newest[owner] <= before and owner not in busy):
            found.removable.append(item)
        elif why:
            found.young.append(item)
    return found
