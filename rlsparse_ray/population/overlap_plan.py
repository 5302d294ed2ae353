"""Which overlaps the store lacks, and the units that count them. Reads footers, but no bits."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rlsparse_ray.compare.criteria import parse_criterion
from rlsparse_ray.errors import StoreError
from rlsparse_ray.population.overlap_units import (
    Pair,
    PartIndex,
    TensorFacts,
    Unit,
    cut,
    staging_of,
    tiles,
)
from rlsparse_ray.storage.files import store_errors
from rlsparse_ray.store import Store, table_path
from rlsparse_ray.tables import check_file

T = TypeVar("T")

_AT_ONCE = 8
"""Pairs whose small files are read at the same time."""

_COMPARED = pa.array(["compared", "identical", "partial_rows"])


@dataclass(frozen=True, slots=True)
class OverlapPlan:
    """What a pass over all pairs will do.

    `wanted` are the pairs of pairs to count, `known` how many the store has already, and
    `incomparable` those that have no tensor of the same name and shape.
    """

    criterion: str
    fraction: float
    pairs: tuple[str, ...]
    wanted: tuple[Pair, ...]
    known: int
    incomparable: tuple[Pair, ...]
    units: tuple[Unit, ...]

    @property
    def nbytes(self) -> int:
        """Bits to read, decompressed."""
        return sum(unit.nbytes for unit in self.units)

    def summary(self) -> str:
        """What was done, and what was left out and why."""
        one = len(self.wanted) == 1
        parts = [f"{len(self.wanted)} overlap{'' if one else 's'} counted"]
        if self.known:
            parts.append(f"{self.known} already there")
        if self.incomparable:
            parts.append(f"{len(self.incomparable)} left out: no tensor of the same name and shape")
        how = "" if self.fraction == 1 else f", in {self.fraction:.3g} of the blocks"
        return f"{self.criterion}: {len(self.pairs)} masks{how}; {', '.join(parts)}"

    @property
    def staging(self) -> str:
        """The folder of finished units."""
        return staging_of(self.criterion, self.fraction)


def overlap_path(pair_b: str) -> str:
    """Where the overlaps of a pair with those before it lie, relative to the store."""
    return f"overlaps/pair_b={pair_b}/overlaps.parquet"


def plan_overlaps(store_root: str, criterion: str = "exact", fraction: float = 1.0) -> OverlapPlan:
    """Find the overlaps that the store lacks; kept ones of a larger sample do as well.

    Raises:
        StoreError: no store, no pair with masks of the criterion, or a damaged file.
        ValueError: `fraction` is not above 0 and at most 1, or there is no such criterion.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"sample {fraction:g}: give a fraction above 0 and at most 1")
    criterion = str(parse_criterion(criterion))
    store = Store.open(store_root)
    with store_errors(store_root):
        rows = {row["pair_id"]: row for row in current_pairs(store, ["criteria", "parts"])}
        ids = tuple(sorted(i for i, row in rows.items() if criterion in row["criteria"]))
        if not ids:
            raise StoreError(
                f"store {store_root}: no pair keeps masks of criterion {criterion}: name it in "
                f"`settings: criteria:` of the corpus and extract again"
            )
        tensors = each(partial(compared_tensors, store), ids)
        wanted, incomparable, known = _wanted(store, tensors, criterion, fraction)
        units: list[Unit] = []
        if wanted:
            needed = sorted({i for pair in wanted for i in pair})
            parts = each(lambda i: PartIndex(store, rows[i], criterion), needed)
            for tile in tiles(wanted):
                units += cut(tile, criterion, fraction, tensors, parts)
    return OverlapPlan(criterion, fraction, ids, wanted, known, incomparable, tuple(units))


def current_pairs(store: Store, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Rows of the current pairs, with their pair_id; of all columns, or of these among others."""
    wanted = None if columns is None else [*_IDENTITY, *columns]
    return newest_of(each(partial(store.pair_row, columns=wanted), sorted(store.committed())))


_IDENTITY = ("name", "base_source", "tuned_source", "created_at")


def newest_of(rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of the same name, base and tuned source the row committed last; `rows` by pair_id, sorted."""
    newest: dict[tuple[str, ...], dict[str, Any]] = {}
    for pair_id, found in rows.items():
        row = {**found, "pair_id": pair_id}
        key = tuple(row[name] for name in _IDENTITY[:3])
        if key not in newest or newest[key]["created_at"] <= row["created_at"]:
            newest[key] = row
    return list(newest.values())


def each(function: Callable[[str], T], pair_ids: Iterable[str]) -> dict[str, T]:
    """What a function reads of each pair, several at once: each is a wait for disk or network."""
    ids = list(pair_ids)
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="rlsparse-plan") as pool:
        return dict(zip(ids, pool.map(function, ids), strict=True))


def compared_tensors(store: Store, pair_id: str) -> dict[str, TensorFacts]:
    """The compared tensors of a pair, in its own order."""
    columns = ["tensor_key", "numel", "shape", "status", "base_xxh3"]
    table = read_small(store, "tensors", pair_id, columns)
    table = table.filter(pc.is_in(table["status"], _COMPARED))
    found = {}
    for row in table.to_pylist():
        *rows, columns_ = row["shape"] if len(row["shape"]) > 1 else (0, 0)
        key = row["tensor_key"]
        found[key] = TensorFacts(key, row["numel"], math.prod(rows), columns_, row["base_xxh3"])
    return found


def read_small(store: Store, name: str, pair_id: str, columns: Sequence[str]) -> pa.Table:
    """Columns of the one file that a pair has in a small table.

    Raises:
        StoreError: it is gone or damaged.
    """
    path = table_path(name, pair_id)
    try:
        with store.files.open(path) as source:
            return pq.ParquetFile(source).read(list(columns), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{store.root}/{path}: {error}: run rlsparse verify") from error


def kept_overlaps(store: Store, pair_b: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The overlaps that the store holds of a pair with those before it; None if there are none."""
    path = overlap_path(pair_b)
    raw = store.files.read(path)
    if raw is None:
        return None
    try:
        file = pq.ParquetFile(pa.BufferReader(raw))
        table = file.read(None if columns is None else list(columns), use_threads=False)
    except pa.ArrowException as error:
        raise StoreError(
            f"{store.root}/{path}: damaged ({error}): remove it and run rlsparse overlap again"
        ) from error
    check_file(file.schema_arrow, path)
    return table


def _wanted(
    store: Store, tensors: Mapping[str, Mapping[str, Any]], criterion: str, fraction: float
) -> tuple[tuple[Pair, ...], tuple[Pair, ...], int]:
    keys = {i: frozenset(found) for i, found in tensors.items()}
    disjoint = cache(lambda one, other: one.isdisjoint(other))
    every = list(combinations(sorted(keys), 2))
    incomparable = tuple((a, b) for a, b in every if disjoint(keys[a], keys[b]))
    left_out = set(incomparable) | set(_known(store, keys, criterion, fraction))
    wanted = tuple(pair for pair in every if pair not in left_out)
    begun = _begun(store, criterion, fraction)
    if wanted and set(wanted) <= begun <= set(every) - set(incomparable):
        # a run that was killed while it wrote its last files: the same units again, all finished
        wanted = tuple(sorted(begun))
    return wanted, incomparable, len(every) - len(wanted) - len(incomparable)


def _known(
    store: Store, pair_ids: Iterable[str], criterion: str, fraction: float
) -> Iterator[Pair]:
    for pair_b in pair_ids:
        kept = kept_overlaps(store, pair_b, ["pair_a", "criterion", "sample_fraction"])
        if kept is not None:
            for row in kept.group_by(kept.column_names).aggregate([]).to_pylist():
                if row["criterion"] == criterion and row["sample_fraction"] >= fraction:
                    yield row["pair_a"], pair_b


def _begun(store: Store, criterion: str, fraction: float) -> set[Pair]:
    raw = store.files.read(f"{staging_of(criterion, fraction)}/wanted.json")
    return set() if raw is None else {(a, b) for a, b in json.loads(raw)}


def begin(plan: OverlapPlan, store: Store) -> None:
    """Note what a pass is about to do, so that a later one can go on where it stops."""
    store.files.write(f"{plan.staging}/wanted.json", json.dumps(plan.wanted).encode())
