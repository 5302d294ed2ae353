"""The small tables of a pair are written piece after piece, in bounded memory, as if at once."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlsparse_ray import small_tables, tables
from rlsparse_ray.errors import StoreError
from rlsparse_ray.small_tables import write_small_tables
from rlsparse_ray.store import SMALL_TABLES, Store, write_parquet

MiB = 1 << 20


def piece(number, side=65_536):
    """What a slice found: a matrix with 1 MiB of margins, and nothing in the other tables."""
    facts = {"tensor": f"layers.{number}", "tensor_key": f"layers.{number} [x]"}
    margins = np.random.default_rng(number).integers(0, 9, (2, side), np.int32)
    row = {"criterion": "exact", "changed_per_row": margins[0], "changed_per_column": margins[1]}
    found = {name: tables.to_table(name, []) for name in SMALL_TABLES}
    row["changed_per_column"] = np.tile(margins[1], 3)
    return found | {"margins": tables.to_table("margins", [facts | row])}


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "store")


def written(store, pieces):
    parts = write_small_tables(store, "pair", pieces)
    assert [part.path.split("/")[0] for part in parts] == list(SMALL_TABLES)
    return {part.path.split("/")[0]: (part, store.files.read(part.path)) for part in parts}


@pytest.fixture
def pool():
    """A memory pool of its own, which counts from zero."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    yield pool
    pa.set_memory_pool(before)


def test_memory_does_not_grow_with_the_pair(store, pool, monkeypatch):
    monkeypatch.setattr(small_tables, "GROUP_BYTES", 2 * MiB)
    part, data = written(store, (piece(n) for n in range(40)))["margins"]
    assert pool.max_memory() < 14 * MiB, "of 40"
    file = pq.ParquetFile(io.BytesIO(data))
    assert (part.rows, part.bytes, file.num_row_groups) == (40, len(data), 20)
    whole = pa.concat_tables([piece(n)["margins"] for n in range(40)])
    assert file.read(use_threads=False).to_pylist() == whole.to_pylist()


def test_what_fits_in_a_row_group_is_written_as_if_at_once(store):
    pieces = [piece(n, 4) for n in range(5)]
    for name, (part, data) in written(store, pieces).items():
        sink = io.BytesIO()
        whole = pa.concat_tables([p[name] for p in pieces]).combine_chunks()
        write_parquet(whole.unify_dictionaries(), sink)
        assert data == sink.getvalue(), name
        assert part.rows == whole.num_rows


def test_nothing_is_left_of_what_could_not_be_finished(store):
    def pieces():
        yield piece(0, 4)
        raise StoreError("a slice is gone")

    with pytest.raises(StoreError, match="a slice is gone"):
        write_small_tables(store, "pair", pieces())
    assert list(store.files.list("")) == ["store.json"]
