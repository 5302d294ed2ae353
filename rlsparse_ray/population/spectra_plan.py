"""Which matrices a pass over the geometry of updates has to measure, and what that will cost."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import xxhash

from rlsparse_ray.compare.spectra.options import SpectraOptions
from rlsparse_ray.errors import QueryError
from rlsparse_ray.plan import PlannedPair
from rlsparse_ray.population.overlap_plan import current_pairs, each
from rlsparse_ray.population.reopen import reopen_pairs
from rlsparse_ray.population.spectra_files import kept_rows, staged_rows
from rlsparse_ray.population.spectra_rows import row_sets, satisfies, told_row
from rlsparse_ray.population.spectra_units import Matrices, SpectraUnit, Tuned, cut_units
from rlsparse_ray.population.whole_tensors import Side
from rlsparse_ray.sql import connect
from rlsparse_ray.storage.files import store_errors
from rlsparse_ray.store import Store

Row = dict[str, Any]

_TENSORS = """
SELECT
    t.pair_id, t.tensor, t.tensor_key, t.layer, t.kind, t.shape, t.numel, t.compare_dtype,
    t.base_l2, t.base_xxh3, t.tuned_xxh3,
    t.base_nan + t.base_inf + t.tuned_nan + t.tuned_inf AS nonfinite,
    c.changed
FROM (SELECT * FROM tensors WHERE {where}) AS t
JOIN counts AS c ON c.pair_id = t.pair_id AND c.tensor_key = t.tensor_key
WHERE c.criterion = 'exact' AND t.pair_id IN (SELECT unnest($1))
ORDER BY t.pair_id, t.tensor_key
"""


FLOPS = {"cpu": 6e9, "cuda": 1e12}
"""Operations a second in float64 on a whole pass. Of one core measured: 4 to 7e9 where other work
shares it (576 x 1,536 to 2,048 x 5,632), 7 to 28e9 on a quiet machine (benchmarks/spectra.py, half
of two threads). Of one GPU an assumption."""


@dataclass(frozen=True, slots=True)
class SpectraPlan:
    """What a pass will do; nothing of a weight has been read.

    `told` are rows that tables alone tell, by pair_id: tensors that are no matrices, or unchanged.
    `known` tensors have a row already, committed or staged; `left_out` were not drawn by a sample.
    `failed` maps names of pairs to why their models cannot be opened.
    """

    options: SpectraOptions
    names: Mapping[str, str]
    """Of the selected pairs, by pair_id."""
    units: tuple[SpectraUnit, ...]
    told: Mapping[str, tuple[Row, ...]]
    known: int
    left_out: int
    failed: Mapping[str, str]

    @property
    def matrices(self) -> int:
        """Matrices to read and measure."""
        return sum(m.count * len(m.tuned) for unit in self.units for m in unit.matrices)

    @property
    def flops(self) -> float:
        """Floating-point operations, about."""
        return sum(unit.flops for unit in self.units)

    @property
    def nbytes(self) -> int:
        """Bytes of weights to read."""
        return sum(unit.nbytes for unit in self.units)

    def shapes(self, devices: Sequence[str]) -> list[Row]:
        """A row for every shape: how many matrices, by which method, and what they cost.

        Args:
            devices: cpu, cuda, or both: where tasks may run. A method that depends on it is named
                for each; hours are those of its method on it, None for a device not in question.
        """
        options = {device: replace(self.options, device=device) for device in devices}
        found: dict[tuple[int, int], Row] = {}
        for some in (m for unit in self.units for m in unit.matrices):
            shape = (some.rows, some.columns)
            methods = {device: one.method_for(*shape) for device, one in options.items()}
            row: Row = {"shape": f"{shape[0]} x {shape[1]}", "method": _told_method(methods)}
            row |= {f"hours_{device}": 0.0 if device in devices else None for device in FLOPS}
            row = found.setdefault(shape, row | {"matrices": 0, "flops": 0.0})
            row["matrices"] += some.count * len(some.tuned)
            row["flops"] += some.flops(self.options)
            for device, one in options.items():
                row[f"hours_{device}"] += some.flops(one) / FLOPS[device] / 3600
        return sorted(found.values(), key=lambda row: -row["flops"])


def _told_method(methods: Mapping[str, str]) -> str:
    """By device; in words where they differ."""
    if len(set(methods.values())) == 1:
        return next(iter(methods.values()))
    return ", ".join(f"{method} on {device}" for device, method in methods.items())


def plan_spectra(
    store_root: str,
    options: SpectraOptions,
    *,
    pairs: str = "true",
    where: str = "true",
    per_layer: int | None = None,
) -> SpectraPlan:
    """Find the matrices that the store lacks, and open the models that hold them.

    Args:
        store_root: the store.
        options: how they are measured; a row of the same k does, and an exact one for any method.
        pairs: name or id of a pair, or an SQL condition over `pairs`, run as it stands.
        where: SQL condition over `tensors`, run as it stands.
        per_layer: measure so many matrices of each layer only, drawn by their names: the same in
            every pair and every run.

    Raises:
        QueryError: DuckDB refuses a condition, or no pair or no compared tensor meets it.
        StoreError: no store, nothing committed in it, or a damaged file.
    """
    store = Store.open(store_root)
    with connect(store_root) as con:
        names = pairs_named(con, pairs)
        selected = selected_tensors(con, list(names), where)
    wanted, left_out = _drawn(selected, per_layer)
    with store_errors(store_root):
        kept = each(lambda pair_id: kept_rows(store, pair_id), names)
        missing = _without(wanted, _done(kept, options))
        staged = _done(staged_rows(store), options)
        told: dict[str, list[Row]] = defaultdict(list)
        to_read: dict[str, list[Row]] = defaultdict(list)
        for row in missing:
            found = told_row(row, options)
            if found is None:
                to_read[row["pair_id"]].append(row)
            else:
                told[row["pair_id"]].append(found)
        opened, failed = reopen_pairs(r for r in current_pairs(store) if r["pair_id"] in to_read)
    every, unknown = _matrices(opened, to_read)
    # cut before finished units are left out: the same command cuts the same units, so that what a
    # matrix is measured together with, which the last digits depend on, is the same too
    units = [unit for unit in cut_units(every, options) if not unit.keys <= staged]
    measured = sum(len(unit.keys) for unit in units) + sum(map(len, told.values()))
    lacking = sum(len(to_read[pair_id]) for pair_id in failed | unknown)
    return SpectraPlan(
        options,
        names,
        tuple(units),
        {pair_id: tuple(some) for pair_id, some in told.items()},
        len(wanted) - measured - lacking,
        left_out,
        {names[pair_id]: message for pair_id, message in (failed | unknown).items()},
    )


def _done(rows: Mapping[str, Sequence[Row]], options: SpectraOptions) -> set[tuple[str, str]]:
    """Pair and tensor of the rows that are what the options ask for."""
    return {
        (pair_id, one[0]["tensor_key"])
        for pair_id, some in rows.items()
        for one in row_sets(some)
        if satisfies(one, options)
    }


def _without(wanted: Sequence[Row], done: set[tuple[str, str]]) -> list[Row]:
    return [row for row in wanted if (row["pair_id"], row["tensor_key"]) not in done]


def pairs_named(con: duckdb.DuckDBPyConnection, pairs: str) -> dict[str, str]:
    """Names by pair_id of the pairs of that name or id, else of those that meet a condition.

    Raises:
        QueryError: it is neither, or no pair meets it.
    """
    named = con.execute(
        "SELECT pair_id, name FROM pairs WHERE $1 IN (name, pair_id)", [pairs]
    ).fetchall()
    try:
        chosen = named or con.sql(f"SELECT pair_id, name FROM pairs WHERE {pairs}").fetchall()
    except duckdb.Error as error:
        raise QueryError(
            f"{pairs!r} is no name or id of a pair, and as a condition over pairs: {error}"
        ) from error
    if not chosen:
        raise QueryError(f"no pair meets the condition ({pairs})")
    return dict(sorted(chosen))


def selected_tensors(
    con: duckdb.DuckDBPyConnection, pair_ids: Sequence[str], where: str
) -> list[Row]:
    """Compared tensors that meet a condition over `tensors`, as `told_row` takes them.

    Raises:
        QueryError: DuckDB refuses the condition, or none meets it.
    """
    try:
        found = con.sql(_TENSORS.format(where=where), params=[pair_ids]).to_arrow_table()
    except duckdb.Error as error:
        raise QueryError(f"the condition over tensors: {error}") from error
    if not found.num_rows:
        raise QueryError(f"no compared tensor of these pairs meets the condition ({where})")
    rows: list[Row] = found.to_pylist()
    return rows


def _drawn(selected: Sequence[Row], per_layer: int | None) -> tuple[list[Row], int]:
    """What is wanted, and how many matrices are left out: of each layer some, drawn by a hash."""
    if per_layer is None:
        return list(selected), 0
    drawn: list[Row] = []
    taken: Counter[tuple[str, int | None]] = Counter()
    left_out = 0
    for row in sorted(
        selected, key=lambda row: xxhash.xxh3_64_intdigest(row["tensor_key"].encode())
    ):
        if len(row["shape"]) >= 2:
            taken[row["pair_id"], row["layer"]] += 1
            if taken[row["pair_id"], row["layer"]] > per_layer:
                left_out += 1
                continue
        drawn.append(row)
    return drawn, left_out


def _matrices(
    opened: Mapping[str, PlannedPair], to_read: Mapping[str, Sequence[Row]]
) -> tuple[list[Matrices], dict[str, str]]:
    """The matrices by base tensor, in the order of its bytes, and why pairs lack one."""
    found: dict[Any, tuple[Row, Side, list[Tuned]]] = {}
    failed: dict[str, str] = {}
    for pair_id, pair in opened.items():
        place = {row.tensor_key: n for n, row in enumerate(pair.rows)}
        lacking = [r["tensor_key"] for r in to_read[pair_id] if r["tensor_key"] not in place]
        if lacking:
            failed[pair_id] = f"tensor {lacking[0]}: not compared by this version under that name"
            continue
        for row in sorted(to_read[pair_id], key=lambda row: place[row["tensor_key"]]):
            aligned = pair.rows[place[row["tensor_key"]]]
            if aligned.base is None or aligned.tuned is None:
                continue
            same = (aligned.base.content, row["tensor_key"], row["compare_dtype"], row["base_xxh3"])
            base = Side(aligned.base, row["base_xxh3"], pair.base.source)
            side = Side(aligned.tuned, row["tuned_xxh3"], pair.tuned.source)
            entry = found.setdefault(same, (row, base, []))
            entry[2].append(Tuned(pair_id, side, row["changed"]))
    return list(_made(found.values())), failed


def _made(found: Any) -> Iterator[Matrices]:
    for row, base, tuned in found:
        shape = tuple(row["shape"])
        yield Matrices(
            row["tensor"], row["tensor_key"], shape, row["compare_dtype"], base, tuple(tuned)
        )
