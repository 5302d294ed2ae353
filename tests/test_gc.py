"""Garbage collection removes what no row names, and nothing else: on the disk and in a bucket."""

import os
import shutil
import time

import pytest

from rlsparse_ray.commit import commit_pair
from rlsparse_ray.errors import StoreError
from rlsparse_ray.population.consensus import consensus
from rlsparse_ray.sql import connect
from rlsparse_ray.storage.lease import LEASE, LeaseError, hold
from rlsparse_ray.store import MARKER, Store
from rlsparse_ray.upkeep.checks import verify
from rlsparse_ray.upkeep.gc import _look_again, _Sorter, collect, find_garbage
from rlsparse_ray.upkeep.watch import announced
from tests.builders import (
    extract_directly,
    extract_slices,
    id_of,
    keys_of,
    overlap_directly,
    plan_of,
    small_corpus,
    small_model,
    tree,
    tuned_from,
    write_model,
)


@pytest.fixture
def corpus(tmp_path):
    return small_corpus(tmp_path)


def upload(s3, folder, name):
    s3.create_bucket("garbage")
    s3.upload(folder, "garbage", name)
    return f"s3://garbage/{name}"


def grow_old(store):
    """Nothing in the store was written lately."""
    before = time.time() - 25 * 3600
    for path in store.rglob("*.*"):
        if path.is_file():
            os.utime(path, (before, before))


def written(root):
    """Every file but the lease."""
    return {path for path in Store.open(root).files.list("") if path != LEASE}


def paths(items):
    return {item.path for item in items}


GARBAGE = {
    "masks/pair_id=gone-1/criterion=exact/part-00000.parquet": "no committed row names it",
    "counts/pair_id=gone-1/counts.parquet": "no committed row names it",
    "overlaps/pair_b=gone-1/overlaps.parquet": "no committed row names it",
    "named_mask_bits/mask=gone/part-00000.parquet": "no committed row names it",
    "staging/gone-2/slice-00000-0123456789ab.arrow": "staged by a run that did not end",
    "staging/overlaps/exact@1.0/wanted.json": "staged by a run that did not end",
    "staging/mask=other/bits": "staged by a run that did not end",
    f"staging/gone-2/masks~x.{'0a' * 16}.partial": "was being written when its process died",
    f"store.json.{'f9' * 16}.partial": "was being written when its process died",
}
OTHERS = (
    "thesis.tex",
    "notes/idea.txt",
    "masks/README",
    "masks/pair_id=gone-1/criterion=exact/part-00000.parquet.bak",
    "pairs/pair_id=gone-1/old.parquet",
    "refreshes.csv",
    "download.partial",
)


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_what_goes_and_what_stays(example, tmp_path, request, place):
    folder = tmp_path / "store"
    shutil.copytree(example.store, folder)
    overlap_directly(folder)
    consensus(folder, "algorithm = 'GRPO'", keep="all", name="core")
    sft = id_of(example.plan, "sft")
    unlisted = f"masks/pair_id={sft}/criterion=exact/part-99999.parquet"
    kept = set(tree(folder))
    for path in (*GARBAGE, *OTHERS, unlisted):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x" * 10)
    root = str(folder)
    if place == "s3":
        root = upload(request.getfixturevalue("s3"), folder, tmp_path.name)

    found = find_garbage(root)
    assert found.removable == [] and paths(found.young) == {*GARBAGE, unlisted}
    assert collect(root) == found
    assert written(root) == {*kept, *GARBAGE, *OTHERS, unlisted}

    found = find_garbage(root, hours=0)
    assert {item.path: item.why for item in found.removable} == {
        **GARBAGE,
        unlisted: "no committed row names it",
    }
    assert (paths(found.unknown), found.young) == (set(OTHERS), [])
    assert found.nbytes == 10 * (len(GARBAGE) + 1)
    assert written(root) == {*kept, *GARBAGE, *OTHERS, unlisted}
    assert collect(root, hours=0) == found
    assert written(root) == {*kept, *OTHERS}
    assert verify(root) == []


def test_a_pair_is_left_while_any_of_it_is_young(corpus, tmp_path):
    plan, store = plan_of(corpus), tmp_path / "store"
    extract_slices(plan, store)
    old, late = id_of(plan, "sft"), id_of(plan, "grpo-0")
    grow_old(store)
    newest = next((store / "staging" / late).iterdir())
    os.utime(newest)
    found = find_garbage(str(store))
    assert {old in path for path in paths(found.removable)} == {True, False}
    assert {late in path for path in paths(found.young)} == {True}
    assert any(path.startswith("masks/") for path in paths(found.young))
    collect(str(store))
    extract_directly(corpus, store)
    assert verify(store) == []


def test_pairs_that_a_living_run_has_announced_are_left(corpus, tmp_path):
    """It goes on with old work, of which it has written nothing yet."""
    plan, store = plan_of(corpus), tmp_path / "store"
    extract_slices(plan, store)
    sft = id_of(plan, "sft")
    grow_old(store)
    with announced(Store.open(store), plan.without([sft])) as run:
        found = collect(str(store))
        assert {item.owner for item in found.removable} == {f"pair_id={sft}"}
        kept = {item.path.removeprefix("staging/") for item in found.young}
        assert f"extraction-{run.name}.json" in kept and len(kept) > 8
    assert [path for path in tree(store) if sft in path] == []
    before = tree(store)
    assert {item.path for item in find_garbage(str(store)).removable} == {
        path for path in before if path not in (MARKER, LEASE)
    }


def test_what_becomes_work_again_while_others_are_removed(corpus, tmp_path):
    """All is old when it is listed; then one pair gets a slice, and one its row."""
    plan, folder = plan_of(corpus), tmp_path / "store"
    extract_slices(plan, folder)
    grow_old(folder)
    store, before = Store.open(folder), time.time() - 3600
    owners = {name: f"pair_id={id_of(plan, name)}" for name in ("sft", "grpo-0", "grpo-1")}
    sorter = _Sorter(store, superseded=False)
    os.utime(next((folder / "staging" / id_of(plan, "grpo-0")).iterdir()))
    pair = next(pair for pair in plan.pairs if pair.entry.name == "grpo-1")
    commit_pair(pair, keys_of(plan, pair.pair_id), str(folder), None)
    grow_old(folder / "masks")
    grow_old(folder / "counts")
    grow_old(folder / "pairs")
    again = {name: _look_again(store, sorter, owner, before) for name, owner in owners.items()}
    assert {name: bool(found.removable) for name, found in again.items()} == {
        "sft": True,
        "grpo-0": False,
        "grpo-1": False,
    }
    assert again["grpo-1"].young == []


def test_a_mask_in_the_making_keeps_its_older_parts(example, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(example.store, store)
    bits = store / "named_mask_bits/mask=core/part-00000.parquet"
    staged = store / "staging/mask=core/bits-00001"
    for path in (bits, staged):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    old = time.time() - 25 * 3600
    os.utime(bits, (old, old))
    assert collect(str(store)).removable == []
    os.utime(staged, (old, old))
    assert len(collect(str(store)).removable) == 2


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_superseded_revisions_on_request(corpus, tmp_path, request, place):
    folder = tmp_path / "store"
    first = extract_directly(corpus, folder)
    overlap_directly(folder)
    write_model(tmp_path / "grpo-0", tuned_from(small_model(), 1000))
    second = extract_directly(corpus, folder)
    overlap_directly(folder)
    old, new = id_of(first, "grpo-0"), id_of(second, "grpo-0")
    assert old != new
    before = tree(folder)
    root = str(folder)
    if place == "s3":
        root = upload(request.getfixturevalue("s3"), folder, tmp_path.name)
    with connect(root) as con:
        shown = con.sql("FROM pair_overlaps ORDER BY ALL").fetchall()

    assert find_garbage(root, hours=0).removable == []
    found = collect(root, superseded=True)
    assert {item.why for item in found.removable} == {"of a superseded revision"}
    assert paths(found.removable) == {path for path in before if f"={old}/" in path}
    assert found.nbytes == sum(len(before[path]) for path in paths(found.removable))
    assert written(root) == before.keys() - paths(found.removable) - {LEASE}
    assert verify(root) == []
    with connect(root) as con:
        assert con.sql("FROM pair_overlaps ORDER BY ALL").fetchall() == shown
        assert con.sql("SELECT count(*) FROM all_pairs").fetchall() == [(3,)]
    assert find_garbage(root, superseded=True, hours=0).removable == []


def test_an_interrupted_removal_is_finished_by_the_next(corpus, tmp_path):
    """The row of a superseded pair goes first: what is left then is named by none."""
    store = tmp_path / "store"
    old = id_of(extract_directly(corpus, store), "sft")
    write_model(tmp_path / "sft", tuned_from(small_model(), 1000))
    extract_directly(corpus, store)
    Store.open(store).files.remove(f"pairs/pair_id={old}")
    assert verify(store) == []
    assert collect(str(store)).removable == []
    collect(str(store), hours=0)
    assert [path for path in tree(store) if old in path] == []
    assert verify(store) == []


def test_not_while_the_store_is_in_use(example, tmp_path, rlsparse):
    store = tmp_path / "store"
    shutil.copytree(example.store, store)
    (store / "staging").mkdir()
    (store / "staging" / "x").write_bytes(b"1")
    with hold(store, "refresh"):
        with pytest.raises(LeaseError, match="in use by rlsparse refresh of"):
            collect(str(store), hours=0)
        # looking does no harm
        assert paths(find_garbage(str(store), hours=0).removable) == {"staging/x"}
        answer = rlsparse("gc", "--store", store, "--older-than", 0)
        assert (answer.code, answer.out) == (2, "")
    assert (store / "staging" / "x").exists()


def test_nothing_goes_where_a_row_is_damaged(example, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(example.store, store)
    sft = id_of(example.plan, "sft")
    (store / f"pairs/pair_id={sft}/pairs.parquet").write_bytes(b"damaged")
    before = tree(store)
    with pytest.raises(StoreError, match=f"pair_id={sft}/pairs.parquet: damaged"):
        collect(str(store), hours=0)
    assert {**tree(store), LEASE: b""} == {**before, LEASE: b""}


def test_command(example, tmp_path, rlsparse):
    store = tmp_path / "store"
    shutil.copytree(example.store, store)
    (store / "staging/overlaps").mkdir(parents=True)
    (store / "staging/overlaps/x").write_bytes(bytes(1024))
    (store / "mine.txt").write_bytes(b"1")
    young = rlsparse("gc", "--store", store)
    assert young.out.splitlines()[-1] == "0 files removed, 0 B; 1 too young, 1 unknown: left"
    dry = rlsparse("gc", "--store", store, "--older-than", 0, "--dry-run")
    assert dry.code == 0
    assert dry.out.splitlines()[-1] == "1 file would go, 1.0 KiB; 0 too young, 1 unknown: left"
    assert (store / "staging/overlaps/x").exists()
    done = rlsparse("gc", "--store", store, "--older-than", 0, "--json")
    assert '"path": "staging/overlaps/x",' in done.out and '"what": "removed"' in done.out
    assert '"path": "mine.txt",' in done.out and '"what": "left: unknown"' in done.out
    assert not (store / "staging").exists()
    assert rlsparse("gc", "--store", tmp_path / "none").code == 2
