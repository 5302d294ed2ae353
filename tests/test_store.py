"""A store holds exactly the files that it promises, readers see whole pairs only, and whatever a
killed run left behind is used or removed, never shown."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rlsparse_ray import sql, tables
from rlsparse_ray.cluster import extract
from rlsparse_ray.commit import commit_pair, relabel_pair
from rlsparse_ray.errors import StoreError
from rlsparse_ray.storage.local_files import LocalFiles
from rlsparse_ray.store import SMALL_TABLES, Store
from rlsparse_ray.upkeep.checks import verify
from tests.builders import (
    assert_same_store,
    commit_all,
    extract_directly,
    extract_slices,
    id_of,
    keys_of,
    plan_of,
    rows_of,
    tree,
    tuned_from,
    weights,
    write_corpus,
    write_model,
)

TABLES = ("pairs", "masks", *SMALL_TABLES)


@pytest.fixture
def corpus(tmp_path):
    """Two pairs on one base of three slices; the second has nothing in the last slice."""
    base = {f"{name}.weight": weights(n, (30, 40)) for n, name in enumerate("abc")}
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "t1", tuned_from(base, 10))
    write_model(tmp_path / "t2", {n: a for n, a in tuned_from(base, 20).items() if n[0] != "c"})
    pairs = [{"name": name, "base": "base", "tuned": name} for name in ("t1", "t2")]
    return write_corpus(tmp_path / "corpus.yaml", pairs, slice_bytes=2400)


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def visible(store):
    """What readers see: ids in every table."""
    with sql.connect(store) as con:
        return {
            table: {i for (i,) in con.execute(f"SELECT DISTINCT pair_id FROM {table}").fetchall()}
            for table in TABLES
        }


def everywhere(*pair_ids):
    return {table: set(pair_ids) for table in TABLES}


def test_exact_listing(corpus, store):
    plan = extract_directly(corpus, store)
    t1, t2 = id_of(plan, "t1"), id_of(plan, "t2")
    assert list(tree(store)) == [
        f"counts/pair_id={t1}/counts.parquet",
        f"counts/pair_id={t2}/counts.parquet",
        f"margins/pair_id={t1}/margins.parquet",
        f"margins/pair_id={t2}/margins.parquet",
        f"masks/pair_id={t1}/criterion=abs:1e-5/part-00000.parquet",
        f"masks/pair_id={t1}/criterion=abs:1e-5/part-00001.parquet",
        f"masks/pair_id={t1}/criterion=abs:1e-5/part-00002.parquet",
        f"masks/pair_id={t1}/criterion=exact/part-00000.parquet",
        f"masks/pair_id={t1}/criterion=exact/part-00001.parquet",
        f"masks/pair_id={t1}/criterion=exact/part-00002.parquet",
        f"masks/pair_id={t2}/criterion=abs:1e-5/part-00000.parquet",
        f"masks/pair_id={t2}/criterion=abs:1e-5/part-00001.parquet",
        f"masks/pair_id={t2}/criterion=exact/part-00000.parquet",
        f"masks/pair_id={t2}/criterion=exact/part-00001.parquet",
        f"pairs/pair_id={t1}/pairs.parquet",
        f"pairs/pair_id={t2}/pairs.parquet",
        f"steps/pair_id={t1}/steps.parquet",
        f"steps/pair_id={t2}/steps.parquet",
        "store.json",
        f"strata/pair_id={t1}/strata.parquet",
        f"strata/pair_id={t2}/strata.parquet",
        f"tensors/pair_id={t1}/tensors.parquet",
        f"tensors/pair_id={t2}/tensors.parquet",
    ]
    assert json.loads((store / "store.json").read_text()) == {
        "format": "rlsparse_ray",
        "schema_version": tables.SCHEMA_VERSION,
    }


def test_a_pair_lists_every_file_of_its_own_with_size_rows_and_hash(example):
    for pair in example.plan.pairs:
        mine = {p for p in tree(example.store) if pair.pair_id in p and not p.startswith("pairs/")}
        parts = rows_of(example.store, "pairs", pair.pair_id)[0]["parts"]
        assert {part["path"] for part in parts} == mine
        assert len(parts) == len(mine)
        for part in parts:
            path = example.store / part["path"]
            assert part["bytes"] == path.stat().st_size
            assert part["rows"] == pq.ParquetFile(path).metadata.num_rows
    assert verify(example.store) == []


def test_files_have_the_schemas(example):
    for path in tree(example.store):
        if path.endswith(".parquet"):
            schema = pq.ParquetFile(example.store / path).schema_arrow
            ours = tables.SCHEMAS[path.split("/")[0]]
            assert schema.metadata == ours.metadata, path
            # Parquet calls the items of a list "element"
            assert [(f.name, f.type, f.metadata[b"doc"]) for f in schema] == [
                (f.name, f.type, f.metadata[b"doc"]) for f in ours
            ]


def test_nothing_is_visible_before_its_commit(corpus, store):
    plan = plan_of(corpus)
    extract_slices(plan, store)
    assert Store.open(store).committed() == set()
    with pytest.raises(StoreError, match="no committed pairs"):
        sql.connect(store)
    first, second = plan.pairs
    commit_pair(first, keys_of(plan, first.pair_id), str(store), None)
    assert visible(store) == everywhere(first.pair_id)
    commit_pair(second, keys_of(plan, second.pair_id), str(store), None)
    assert visible(store) == everywhere(first.pair_id, second.pair_id)


def test_a_commit_that_dies_before_its_last_file_shows_nothing(corpus, store, monkeypatch):
    plan = plan_of(corpus)
    extract_slices(plan, store)
    first = plan.pairs[0]
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_pair", _die)
        with pytest.raises(KeyboardInterrupt):
            commit_pair(first, keys_of(plan, first.pair_id), str(store), None)
    assert (store / "counts" / f"pair_id={first.pair_id}").is_dir()
    assert Store.open(store).committed() == set()
    commit_all(plan, store)
    extract_directly(corpus, store.parent / "undisturbed")
    assert_same_store(store.parent / "undisturbed", store)


def _die(*_):
    raise KeyboardInterrupt


def test_staged_slices_are_used_and_gone_after_the_commit(corpus, store):
    plan = plan_of(corpus)
    first = extract_slices(plan, store)
    assert all(report.nbytes for report in first)
    assert len(Store.open(store).files.list("staging")) == 5
    assert [report.nbytes for report in extract_slices(plan, store)] == [0, 0, 0]
    commit_all(plan, store)
    assert not (store / "staging").exists()


@pytest.mark.parametrize("damage", ["lost", "shorter"])
def test_a_part_lost_before_the_commit_is_done_again(corpus, store, damage):
    plan = plan_of(corpus)
    extract_slices(plan, store)
    t1 = id_of(plan, "t1")
    part = store / "masks" / f"pair_id={t1}" / "criterion=exact" / "part-00001.parquet"
    if damage == "lost":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(StoreError, match=rf"slice-00001-\w+ of {t1} is gone .* Run again"):
        commit_pair(plan.pairs[0], keys_of(plan, t1), str(store), None)
    reports = extract_slices(plan, store)
    assert [report.nbytes for report in reports] == [0, 2 * 2400, 0]
    commit_all(plan, store)
    extract_directly(corpus, store.parent / "undisturbed")
    assert_same_store(store.parent / "undisturbed", store)


def test_leftovers_of_another_slicing_are_removed(corpus, store):
    extract_slices(plan_of(corpus), store)
    document = yaml.safe_load(corpus.read_text())
    corpus.write_text(yaml.safe_dump(document | {"settings": {"slice_bytes": "1MB"}}))
    plan = extract_directly(corpus, store)
    assert len(plan.slices) == 1
    extract_directly(corpus, store.parent / "undisturbed")
    assert_same_store(store.parent / "undisturbed", store)


def test_scratch_files_of_a_killed_worker_are_removed(corpus, store):
    plan = plan_of(corpus)
    extract_slices(plan, store)
    scratch = store / "staging" / id_of(plan, "t1") / "masks~part-00000.parquet.4711.partial"
    scratch.write_bytes(b"PAR1")
    commit_all(plan, store)
    assert not (store / "staging").exists()


@pytest.mark.parametrize("cut", ["nothing left", "half", "last byte", "schema alone", "zeros"])
def test_a_staged_slice_that_was_cut_short_is_done_again(corpus, store, cut):
    """As a power failure leaves it."""
    plan = plan_of(corpus)
    extract_slices(plan, store)
    for path in (store / "staging").rglob("slice-00001-*.arrow"):
        raw = path.read_bytes()
        schema = pa.BufferOutputStream()
        pa.ipc.new_stream(schema, pa.ipc.open_stream(raw).schema).close()
        left = {
            "nothing left": b"",
            "half": raw[: len(raw) // 2],
            "last byte": raw[:-9],
            "schema alone": schema.getvalue().to_pybytes(),
            "zeros": bytes(len(raw)),
        }
        path.write_bytes(left[cut])
    assert [report.nbytes for report in extract_slices(plan, store)] == [0, 3 * 2400, 0]
    commit_all(plan, store)
    extract_directly(corpus, store.parent / "undisturbed")
    assert_same_store(store.parent / "undisturbed", store)


def test_a_part_that_goes_during_the_commit(corpus, store, monkeypatch):
    """After the slices were looked at, and before the row is there."""
    plan = plan_of(corpus)
    extract_slices(plan, store)
    first = plan.pairs[0]
    part = store / "masks" / f"pair_id={first.pair_id}" / "criterion=exact" / "part-00001.parquet"

    def write(*args):
        part.unlink()
        write_pair(*args)

    write_pair = Store.write_pair
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_pair", write)
        with pytest.raises(StoreError, match=rf"files of {first.pair_id} went .* Run again"):
            commit_pair(first, keys_of(plan, first.pair_id), str(store), None)
    assert Store.open(store).committed() == set()
    extract_slices(plan, store)
    commit_all(plan, store)
    extract_directly(corpus, store.parent / "undisturbed")
    assert_same_store(store.parent / "undisturbed", store)


def test_a_pair_that_another_run_has_committed_meanwhile(corpus, store):
    """Its slices are gone with that commit; those of this run came later."""
    plan = plan_of(corpus)
    extract_slices(plan, store)
    commit_all(plan, store)
    before = tree(store)
    extract_slices(plan.without([id_of(plan, "t2")]), store)
    commit_all(plan, store)
    assert tree(store) == before


def test_a_row_does_not_outlive_its_parts(corpus, store, monkeypatch):
    """Two runs of one pair cut it in other ways, and the second one dies in its commit."""
    coarse = yaml.safe_load(corpus.read_text()) | {"settings": {"slice_bytes": "1MB"}}
    other = corpus.with_name("other.yaml")
    other.write_text(yaml.safe_dump(coarse))
    extract_slices(plan_of(other), store)
    extract_directly(corpus, store)
    extract_slices(plan_of(other), store)
    monkeypatch.setattr(Store, "write_pair", _die)
    with pytest.raises(KeyboardInterrupt):
        commit_all(plan_of(other), store)
    monkeypatch.undo()
    assert len(Store.open(store).committed()) == 1
    commit_all(plan_of(other), store)
    assert verify(store) == []


def test_new_labels_are_taken_over_without_reading_weights(corpus, store):
    """No Ray is started either: all pairs are there."""
    extract_directly(corpus, store)
    before = tree(store)
    document = yaml.safe_load(corpus.read_text())
    document["pairs"][0] |= {"algorithm": "GRPO", "seed": 3, "labels": {"machine": "h200"}}
    corpus.write_text(yaml.safe_dump(document))
    plan, done = plan_of(corpus), []
    outcome = extract(plan, str(store), progress=done.append)
    assert (outcome.relabelled, outcome.unchanged, outcome.nbytes) == (["t1"], ["t2"], 0)
    assert sum(done) == plan.nbytes
    changed = [path for path, data in tree(store).items() if before.get(path) != data]
    assert changed == [f"pairs/pair_id={id_of(plan, 't1')}/pairs.parquet"]
    row = rows_of(store, "pairs", id_of(plan, "t1"))[0]
    assert (row["algorithm"], row["seed"], row["labels"]) == ("GRPO", 3, [("machine", "h200")])
    assert not relabel_pair(plan.pairs[0], str(store))
    assert verify(store) == []


def test_a_tuned_model_that_has_changed_is_a_new_pair(corpus, store):
    extract_directly(corpus, store)
    model = corpus.parent / "t1" / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    extract_directly(corpus, store)
    assert len(Store.open(store).committed()) == 3
    assert len(visible(store)["pairs"]) == 2  # the newest of each name
    assert verify(store) == []


# Verifying beside others


def test_a_pair_that_is_committed_while_the_store_is_verified(corpus, store, monkeypatch):
    plan = plan_of(corpus)
    extract_slices(plan, store)
    first, second = plan.pairs
    commit_pair(first, keys_of(plan, first.pair_id), str(store), None)

    def late(self):
        commit_pair(second, keys_of(plan, second.pair_id), str(store), None)
        return committed(self)

    committed = Store.committed
    monkeypatch.setattr(Store, "committed", late)
    assert verify(store) == []


def test_a_pair_that_is_removed_while_the_store_is_verified(corpus, store):
    """Garbage collection takes the row first."""
    t2 = id_of(extract_directly(corpus, store), "t2")
    files = Store.open(store).files

    def remove(nbytes):
        for table in TABLES:
            files.remove(f"{table}/pair_id={t2}")

    assert verify(store, remove) == []


# Opening


def test_create_makes_a_store_once(tmp_path):
    for _ in range(2):
        assert Store.create(tmp_path / "new" / "store").committed() == set()
    assert list(tree(tmp_path)) == ["new/store/store.json"]


def test_not_a_store(tmp_path):
    with pytest.raises(StoreError, match=r"no store there .*rlsparse extract CORPUS --store"):
        Store.open(tmp_path)


@pytest.mark.parametrize("folder", ["seed=0", "Criterion=exact", "pair_id=x"])
def test_a_place_that_duckdb_would_take_for_a_column(tmp_path, folder):
    for opened in (Store.open, Store.create):
        with pytest.raises(StoreError, match=f"takes the folder {folder} for the column"):
            opened(tmp_path / folder / "store")
    assert list(tmp_path.iterdir()) == []


def test_first_runs_at_once(tmp_path):
    """Each finds the store made or makes it; none takes the others' files for something else."""
    for round in range(20):
        place = tmp_path / str(round)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(Store.create, [place] * 8))
        assert list(tree(place)) == ["store.json"]


def test_a_first_run_that_was_killed(tmp_path):
    (tmp_path / "store.json.123-4.partial").write_bytes(b"{")
    Store.create(tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="not a store and not empty: name a new or empty folder"):
        Store.create(tmp_path)
    assert list(tree(tmp_path)) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"store.json: damaged .*: restore it"),
        ("{}", "not written by rlsparse_ray: name another folder"),
        ("[1]", "not written by rlsparse_ray: name another folder"),
        ('{"format": "x", "schema_version": 1}', "not written by rlsparse_ray: name another"),
        ('{"format": "rlsparse_ray"}', "it has no schema version"),
        (
            '{"format": "rlsparse_ray", "schema_version": 99}',
            f"schema version 99, but this rlsparse_ray reads up to {tables.SCHEMA_VERSION}: "
            "pip install --upgrade",
        ),
    ],
)
def test_a_marker_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "store.json").write_text(text)
    for opened in (Store.open, Store.create):
        with pytest.raises(StoreError, match=message):
            opened(tmp_path)


def test_a_pair_of_a_newer_version_is_refused(example, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(example.store, store)
    path = store / f"pairs/pair_id={example.plan.pairs[0].pair_id}/pairs.parquet"
    table = pq.ParquetFile(path).read(use_threads=False)
    newer = {**table.schema.metadata, b"rlsparse_schema_version": b"99"}
    pq.write_table(table.replace_schema_metadata(newer), path)
    with pytest.raises(StoreError, match=r"pairs.parquet: schema version 99, .*pip install"):
        extract(example.plan, str(store))


def test_a_damaged_row_of_a_pair_is_named(example, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(example.store, store)
    pair_id = example.plan.pairs[0].pair_id
    (store / f"pairs/pair_id={pair_id}/pairs.parquet").write_bytes(b"PAR1 no more PAR1")
    with pytest.raises(StoreError, match=rf"{pair_id}/pairs.parquet: damaged .*extract again"):
        extract(example.plan, str(store))


# Writing


def test_tables_take_rows_with_their_columns_only():
    row = {"tensor": "a", "tensor_key": "a [1]", "criterion": "exact", "numel": 1, "changed": 0}
    assert tables.to_table("counts", [row]).schema.equals(tables.COUNTS, check_metadata=True)
    for wrong in ({**row, "density": 0.5}, {k: v for k, v in row.items() if k != "changed"}):
        with pytest.raises(StoreError, match=r"table 'counts' has missing or unknown columns"):
            tables.to_table("counts", [wrong])


def test_files_written_and_removed_side_by_side(tmp_path):
    """Commits remove the empty `staging` that other slices are about to write into."""
    files = LocalFiles(tmp_path)

    def work(name):
        for _ in range(100):
            files.write(f"staging/{name}/slice", b"x")
            assert files.read(f"staging/{name}/slice") == b"x"
            files.remove(f"staging/{name}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, "abcd"))
    assert list(tmp_path.iterdir()) == []
