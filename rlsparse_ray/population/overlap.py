"""All pairs of masks: units of work, and the tables they become. Knows nothing of Ray.

    STORE/overlaps/pair_b=ID/overlaps.parquet            against every pair_a before it
    STORE/staging/overlaps/exact@1.0/count-HASH.arrow    finished units of a pass not yet over

Like extraction, a pass that was killed anywhere is repeated by running it again. What a file holds
follows from the masks and the largest sample asked for, not from the order in which pairs came.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rlsparse_ray.blocks import BLOCK_BYTES
from rlsparse_ray.compare.expected import (
    Reals,
    Stratum,
    expected_magnitude,
    expected_margins,
    expected_tensor,
)
from rlsparse_ray.compare.popcount import shared_bits
from rlsparse_ray.compare.sample import sampled_blocks
from rlsparse_ray.errors import StoreError
from rlsparse_ray.population.mask_parts import MaskStream, batches_of
from rlsparse_ray.population.overlap_plan import read_small
from rlsparse_ray.population.overlap_units import (
    CountUnit,
    ExpectUnit,
    TensorFacts,
    Tile,
    Unit,
    staging_of,
    unit_key,
)
from rlsparse_ray.storage.files import store_errors
from rlsparse_ray.store import Store

Integers = npt.NDArray[np.int64]

COUNTED = ("numel", "blocks", "changed_a", "changed_b", "shared", "squares")
EXPECTED = ("expected_tensor", "expected_magnitude", "expected_margins")


def overlap_unit(unit: Unit, store_root: str, device: str = "cpu") -> int:
    """Do a unit if it is not finished; its result waits in the staging folder.

    Returns:
        Bytes read, decompressed: 0 if it was finished.

    Raises:
        StoreError: the store cannot be read or written.
    """
    store = Store.open(store_root)
    path = f"{staging_of(unit.criterion, unit.fraction)}/{unit_key(unit)}.arrow"
    with store_errors(store_root):
        if store.files.size(path) is not None:
            return 0
        if isinstance(unit, CountUnit):
            rows = _Rows(unit.tile, COUNTED, pa.int64())
            _count(unit, store, device, rows)
        else:
            rows = _Rows(unit.tile, EXPECTED, pa.float64())
            _expect(unit, store, rows)
        store.files.write(path, rows.to_ipc())
    return unit.nbytes


class _Rows:
    """Numbers of the wanted pairs of a tile, tensor by tensor; a record batch for each pair_b."""

    def __init__(self, tile: Tile, columns: Sequence[str], kind: pa.DataType) -> None:
        self.tile = tile
        self.columns = columns
        self.kind = kind
        self.wanted = tile.matrix()
        self.keys: dict[str, int] = {}
        self.pieces: list[tuple[Integers, Integers, Integers, list[npt.NDArray[Any]]]] = []

    def add(self, key: str, have: Integers, *values: npt.NDArray[Any]) -> None:
        """Values [masks, masks] of the masks `have`, for the pairs that are wanted."""
        a, b = np.nonzero(self.wanted[np.ix_(have, have)])
        code = np.full(len(a), self.keys.setdefault(key, len(self.keys)))
        self.pieces.append((code, have[a], have[b], [value[a, b] for value in values]))

    def to_ipc(self) -> bytes:
        """An Arrow file with a batch for each pair_b, and their names in its metadata."""
        code, a, b = (np.concatenate([p[k] for p in self.pieces]) for k in range(3))
        values = [np.concatenate(column) for column in zip(*(p[3] for p in self.pieces))]  # noqa: B905
        order = np.argsort(b, kind="stable")
        ends = np.searchsorted(b[order], np.arange(len(self.tile.pairs) + 1))
        names, keys = pa.array(self.tile.pairs), pa.array(list(self.keys))
        present = [n for n in range(len(self.tile.pairs)) if ends[n] < ends[n + 1]]
        schema = pa.schema(
            [("pair_a", pa.dictionary(pa.int32(), pa.string()))]
            + [("tensor_key", pa.dictionary(pa.int32(), pa.string()))]
            + [(column, self.kind) for column in self.columns],
            {b"pair_b": json.dumps([self.tile.pairs[n] for n in present]).encode()},
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, schema) as writer:
            for n in present:
                rows = order[ends[n] : ends[n + 1]]
                batch = [
                    pa.DictionaryArray.from_arrays(a[rows].astype(np.int32), names),
                    pa.DictionaryArray.from_arrays(code[rows].astype(np.int32), keys),
                    *(pa.array(value[rows], self.kind) for value in values),
                ]
                writer.write_batch(pa.record_batch(batch, schema=schema))
        data: bytes = sink.getvalue().to_pybytes()
        return data


def _count(unit: CountUnit, store: Store, device: str, rows: _Rows) -> None:
    streams = [MaskStream(store.files) for _ in unit.tile.pairs]
    for span in unit.spans:
        have = np.flatnonzero([bool(runs) for runs in span.runs])
        chosen = sampled_blocks(span.tensor_key, span.blocks_total, unit.fraction)
        chosen = chosen[(chosen >= span.first) & (chosen < span.stop)]
        count = len(have)
        shared, squares = np.zeros((2, count, count), np.int64)
        changed = np.zeros(count, np.int64)
        numel = 0
        wanted = rows.wanted[np.ix_(have, have)]
        for some in batches_of(span.runs[have[0]], chosen):
            found = [streams[mask].find(span.runs[mask], some) for mask in have]
            if len({each.numel for each in found}) != 1:
                raise StoreError(
                    f"masks of {span.tensor_key} differ in length: run rlsparse verify"
                )
            blocks = np.stack([each.addresses for each in found], axis=1)
            bits, square = shared_bits(blocks, BLOCK_BYTES // 8, wanted, device)
            shared, squares = shared + bits, squares + square
            changed += [each.changed for each in found]
            numel += found[0].numel
        side_a, side_b = np.broadcast_arrays(changed[:, None], changed[None, :])
        same = np.full((2, count, count), [[[numel]], [[len(chosen)]]])
        rows.add(span.tensor_key, have, *same, side_a, side_b, shared, squares)


def _expect(unit: ExpectUnit, store: Store, rows: _Rows) -> None:
    keys = [next(f.tensor_key for f in facts if f is not None) for facts in unit.tensors]
    sides = [_Side(store, i, unit.criterion, keys) for i in unit.tile.pairs]
    for key, facts in zip(keys, unit.tensors, strict=True):
        have = np.flatnonzero([f is not None for f in facts])
        rows.add(key, have, *_expectations(key, facts, [sides[n] for n in have]))


class _Side:
    """What one pair knows of some tensors: counts, strata and margins under one criterion."""

    def __init__(self, store: Store, pair_id: str, criterion: str, keys: Sequence[str]) -> None:
        wanted = pa.array(keys)

        def rows(name: str, *columns: str) -> tuple[list[str], list[pa.ChunkedArray]]:
            table = read_small(store, name, pair_id, ["tensor_key", "criterion", *columns])
            keep = pc.and_(
                pc.equal(table["criterion"], criterion), pc.is_in(table["tensor_key"], wanted)
            )
            # what is not needed costs a copy of everything: as long as reading it
            table = table if pc.all(keep).as_py() else table.filter(keep)
            return table["tensor_key"].to_pylist(), [table[column] for column in columns]

        named, (changed,) = rows("counts", "changed")
        self.changed: dict[str, int] = dict(zip(named, changed.to_pylist(), strict=True))
        self.strata: dict[str, list[Stratum]] = {key: [] for key in keys}
        named, numbers = rows("strata", "exponent", "numel", "changed")
        columns = [column.to_pylist() for column in numbers]
        for key, *stratum in zip(named, *columns, strict=True):
            self.strata[key].append(tuple(stratum))
        named, lists = rows("margins", "changed_per_row", "changed_per_column")
        self.margins = dict(zip(named, zip(*map(_vectors, lists), strict=True), strict=True))


def _vectors(lists: pa.ChunkedArray) -> list[npt.NDArray[np.int32]]:
    """Each list of a column as a vector; one by one they would cost 10 us each."""
    whole = lists.combine_chunks()
    ends = np.cumsum(pc.list_value_length(whole).to_numpy())
    return np.split(whole.flatten().to_numpy(), ends)[: len(whole)]


def _expectations(
    key: str, facts: Sequence[TensorFacts | None], sides: Sequence[_Side]
) -> tuple[Reals, Reals, Reals]:
    known = [f for f in facts if f is not None]
    numel = known[0].numel
    changed = [side.changed[key] for side in sides]
    tensor = expected_tensor(changed, numel)
    magnitude = expected_magnitude(
        [sorted(side.strata[key]) for side in sides], [f.base for f in known], numel
    )
    if numel == 0:
        magnitude = tensor
    margins = tensor
    if known[0].columns and numel:
        rows = np.array([side.margins[key][0] for side in sides], np.float64)
        columns = np.array([side.margins[key][1] for side in sides], np.float64)
        margins = expected_margins(rows, columns, changed)
    return tensor, magnitude, margins
