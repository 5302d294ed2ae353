"""From the finished units of a pass to the overlaps of each pair."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rlsparse_ray import tables
from rlsparse_ray.blocks import blocks_of
from rlsparse_ray.compare.sample import sample_size, standard_error
from rlsparse_ray.errors import StoreError
from rlsparse_ray.population.overlap import COUNTED, EXPECTED
from rlsparse_ray.population.overlap_plan import (
    OverlapPlan,
    compared_tensors,
    kept_overlaps,
    overlap_path,
)
from rlsparse_ray.population.overlap_units import (
    ExpectUnit,
    TensorFacts,
    Tile,
    staging_of,
    unit_key,
)
from rlsparse_ray.storage.files import store_errors
from rlsparse_ray.store import Store, write_parquet


@dataclass(frozen=True, slots=True)
class Commit:
    """What becomes the file of one pair_b: the units `keys` hold its rows against `partners`."""

    criterion: str
    fraction: float
    pair_b: str
    partners: tuple[str, ...]
    keys: tuple[str, ...]
    rows: int
    """Of the file under the criterion, at most: those of older partners are in it too."""


def commits(plan: OverlapPlan) -> list[Commit]:
    """The files that a pass writes once its units are done."""
    keys: dict[str, list[str]] = {}
    for unit in plan.units:
        key = unit_key(unit)
        for place in sorted({b for _, b in unit.tile.wanted}):
            keys.setdefault(unit.tile.pairs[place], []).append(key)
    partners: dict[str, list[str]] = {}
    for a, b in plan.wanted:
        partners.setdefault(b, []).append(a)
    tensors = _tensors(plan)
    before = {pair_id: number for number, pair_id in enumerate(sorted(plan.pairs))}
    return [
        Commit(
            plan.criterion,
            plan.fraction,
            b,
            tuple(sorted(partners[b])),
            tuple(keys[b]),
            before[b] * tensors[b],
        )
        for b in sorted(partners)
    ]


def _tensors(plan: OverlapPlan) -> Counter[str]:
    """How many tensors each pair has: in every tile it is in, all of them are expected once."""
    by_tile: dict[Tile, Counter[str]] = defaultdict(Counter)
    for unit in plan.units:
        if isinstance(unit, ExpectUnit):
            here = by_tile[unit.tile]
            for facts in unit.tensors:
                here.update(
                    pair_id
                    for pair_id, found in zip(unit.tile.pairs, facts, strict=True)
                    if found is not None
                )
    most: Counter[str] = Counter()
    for found in by_tile.values():
        most |= found
    return most


@dataclass(frozen=True, slots=True)
class CommitUnit:
    """A unit of work that writes some files: one takes 5 ms, as much as the task around it."""

    commits: tuple[Commit, ...]

    @property
    def nbytes(self) -> int:
        """Bits to read: none."""
        return 0

    @property
    def memory(self) -> int:
        """Bytes that a worker needs; 1,080,000 rows in one file take 620 bytes each."""
        return (400 << 20) + 640 * max(commit.rows for commit in self.commits)


def commit_units(plan: OverlapPlan, size: int = 8) -> list[CommitUnit]:
    """The files that a pass writes, `size` to a unit."""
    every = commits(plan)
    return [CommitUnit(tuple(every[n : n + size])) for n in range(0, len(every), size)]


def commit_overlaps(unit: CommitUnit, store_root: str) -> None:
    """Write the overlaps of each pair_b over its older file, whose other rows stay as they are.

    Raises:
        StoreError: a finished unit is gone, masks lack blocks, or the store cannot be written.
    """
    store = Store.open(store_root)
    with store_errors(store_root):
        for commit in unit.commits:
            _commit(commit, store)


def _commit(commit: Commit, store: Store) -> None:
    tensors = compared_tensors(store, commit.pair_b)
    found = _Sums(commit, tensors)
    for key in commit.keys:
        found.add(_batch(store, commit, key))
    old = kept_overlaps(store, commit.pair_b)
    table = merged(old, found.table(), list(tensors))
    path = overlap_path(commit.pair_b)
    scratch = store.files.scratch(
        f"{staging_of(commit.criterion, commit.fraction)}/{commit.pair_b}"
    )
    write_parquet(table, scratch)
    store.files.publish(scratch, path)


def _batch(store: Store, commit: Commit, key: str) -> pa.RecordBatch | None:
    path = f"{staging_of(commit.criterion, commit.fraction)}/{key}.arrow"
    if store.files.size(path) is None:
        raise StoreError(
            f"store {store.root}: unit {key} is gone before its commit: is something else "
            f"cleaning the store? Run again"
        )
    with store.files.open(path) as source:
        reader = pa.ipc.open_file(source)
        names = json.loads(reader.schema.metadata[b"pair_b"])
        return reader.get_batch(names.index(commit.pair_b)) if commit.pair_b in names else None


class _Sums:
    """[numbers, partners, tensors], summed over the units."""

    def __init__(self, commit: Commit, tensors: dict[str, TensorFacts]) -> None:
        self.commit = commit
        self.tensors = tensors
        self.a = {pair_id: n for n, pair_id in enumerate(commit.partners)}
        self.t = {key: n for n, key in enumerate(tensors)}
        shape = (len(self.a), len(self.t))
        self.counted = np.zeros((len(COUNTED), *shape), np.int64)
        self.expected = np.zeros((len(EXPECTED), *shape))
        self.present = np.zeros(shape, np.bool_)

    def add(self, batch: pa.RecordBatch | None) -> None:
        """Add what one unit found."""
        if batch is None:
            return
        at = (_places(batch["pair_a"], self.a), _places(batch["tensor_key"], self.t))
        if "shared" in batch.schema.names:
            for sums, name in zip(self.counted, COUNTED, strict=True):
                np.add.at(sums, at, batch[name].to_numpy())
        else:
            self.present[at] = True
            for values, name in zip(self.expected, EXPECTED, strict=True):
                values[at] = batch[name].to_numpy()

    def table(self) -> pa.Table:
        """The rows, as `overlaps` wants them."""
        totals = np.array([blocks_of(f.numel) for f in self.tensors.values()], np.int64)
        sizes = np.array([sample_size(n, self.commit.fraction) for n in totals.tolist()], np.int64)
        a, t = np.nonzero(self.present)
        counted = dict(zip(COUNTED, self.counted[:, a, t], strict=True))
        lacking = np.flatnonzero(counted["blocks"] != sizes[t])
        if len(lacking):
            key = list(self.t)[t[lacking[0]]]
            raise StoreError(
                f"masks of {key} lack blocks in {self.commit.partners[a[lacking[0]]]} or "
                f"{self.commit.pair_b}: run rlsparse verify"
            )
        squares = counted.pop("squares")
        error = standard_error(counted["shared"], squares, counted["blocks"], totals[t])
        scale = counted["blocks"] / np.maximum(totals[t], 1)
        scale[totals[t] == 0] = 1.0
        expected = dict(zip(EXPECTED, self.expected[:, a, t] * scale, strict=True))
        columns: dict[str, Any] = {
            "pair_a": pa.array(list(self.a)).take(pa.array(a)),
            "criterion": pa.repeat(self.commit.criterion, len(a)),
            "tensor_key": pa.array(list(self.t)).take(pa.array(t)),
            **counted,
            "blocks_total": totals[t],
            "shared_standard_error": error,
            **{name: pa.array(values, from_pandas=True) for name, values in expected.items()},
            "sample_fraction": np.full(len(a), self.commit.fraction),
        }
        return pa.table({name: columns[name] for name in tables.OVERLAPS.names}).cast(_PLAIN)


_PLAIN = pa.schema(
    [
        pa.field(f.name, pa.string() if pa.types.is_dictionary(f.type) else f.type)
        for f in tables.OVERLAPS
    ]
)
"""The schema with texts in place of dictionaries, whose order would depend on history."""


def merged(old: pa.Table | None, new: pa.Table, keys: Sequence[str]) -> pa.Table:
    """Old rows and new ones, ordered by pair_a, criterion and the tensors of pair_b.

    For a pair_a and criterion that both have, those of the larger sample stay; else the new ones.
    """
    if old is not None:
        old = old.cast(_PLAIN)
        best: dict[Any, float] = {}
        for key, fraction in _samples(new):
            best[key] = fraction
        older = {key for key, fraction in _samples(old) if fraction > best.get(key, 0.0)}
        replaced = best.keys() - older
        new = _without(new, older)
        new = pa.concat_tables([_without(old, replaced), new])
    order = pc.index_in(new["tensor_key"], pa.array(keys, pa.string()))
    by = [(name, "ascending") for name in ("pair_a", "criterion", "order")]
    rows = pc.sort_indices(new.append_column("order", order), by)
    table = new.take(rows).combine_chunks()
    columns = [
        table[f.name].dictionary_encode() if pa.types.is_dictionary(f.type) else table[f.name]
        for f in tables.OVERLAPS
    ]
    return pa.table(columns, schema=tables.OVERLAPS)


def _samples(table: pa.Table) -> Iterator[tuple[tuple[str, str], float]]:
    names = ["pair_a", "criterion", "sample_fraction"]
    for row in table.select(names).group_by(names).aggregate([]).to_pylist():
        yield (row["pair_a"], row["criterion"]), row["sample_fraction"]


def _without(table: pa.Table, keys: Any) -> pa.Table:
    if not keys:
        return table
    joined = pc.binary_join_element_wise(table["pair_a"], table["criterion"], " ")
    return table.filter(pc.invert(pc.is_in(joined, pa.array([" ".join(k) for k in sorted(keys)]))))


def _places(column: pa.DictionaryArray, known: dict[str, int]) -> npt.NDArray[np.int64]:
    codes = np.array([known.get(name, -1) for name in column.dictionary.to_pylist()], np.int64)
    places: npt.NDArray[np.int64] = codes[column.indices.to_numpy()]
    return places
