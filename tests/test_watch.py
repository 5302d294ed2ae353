"""How far a run is, seen from its store alone."""

import threading
import time
from dataclasses import asdict

import pytest

from rlsparse_ray.commit import commit_pair
from rlsparse_ray.lineage import lineage_of
from rlsparse_ray.slices import extract_slice
from rlsparse_ray.store import Store
from rlsparse_ray.upkeep.watch import announce, follow, retire, standing
from tests.builders import keys_of, plan_of, tree


@pytest.fixture
def plan(example):
    return plan_of(example.corpus)


def test_nothing_runs(tmp_path):
    assert standing(Store.create(tmp_path / "s")) is None


def test_slices_and_commits_are_seen(plan, tmp_path):
    store = Store.create(tmp_path / "s")
    announce(store, plan)
    shares = sum(len(piece.pair_ids) for piece in plan.slices)
    start = standing(store)
    assert (start.pairs, start.committed, start.slices, start.done) == (3, 0, shares, 0)
    assert start.nbytes == pytest.approx(plan.nbytes, abs=shares)
    assert start.nbytes_done == 0

    done = 0
    for piece in plan.slices:
        extract_slice(piece, store.root)
        done += len(piece.pair_ids)
        assert standing(store).done == done
    assert standing(store).nbytes_done == start.nbytes

    pair = plan.pairs[0]
    commit_pair(pair, keys_of(plan, pair.pair_id), store.root, lineage_of(pair).score)
    found = standing(store)
    assert asdict(found) == asdict(start) | {
        "committed": 1,
        "done": shares,
        "nbytes_done": start.nbytes,
    }
    retire(store)
    assert standing(store) is None
    assert "staging/extraction.json" not in tree(tmp_path / "s")


def test_following_ends_with_the_run_and_counts_every_byte_once(plan, tmp_path):
    store = Store.create(tmp_path / "s")
    announce(store, plan)
    total = standing(store).nbytes
    seen: list[int] = []

    def run() -> None:
        for piece in plan.slices:
            extract_slice(piece, store.root)
        while sum(seen) < total:
            pass
        retire(store)

    thread = threading.Thread(target=run)
    thread.start()
    follow(store, seen.append, 0.01)
    thread.join()
    assert sum(seen) == total
    assert min(seen) >= 0


def test_a_look_at_a_bucket_is_three_requests(plan, s3):
    s3.create_bucket("watch")
    store = Store.create("s3://watch/store")
    announce(store, plan)
    extract_slice(plan.slices[0], store.root)
    s3.proxy.forget()
    assert standing(store).done == len(plan.slices[0].pair_ids)
    assert len(s3.proxy.log) == 3


def test_the_command_follows_a_run(plan, tmp_path, rlsparse, monkeypatch):
    monkeypatch.setenv("RLSPARSE_PROGRESS_SECONDS", "0")
    store = Store.create(tmp_path / "s")
    announce(store, plan)
    extract_slice(plan.slices[0], store.root)

    def run() -> None:
        for piece in plan.slices:
            extract_slice(piece, store.root)
        for pair in plan.pairs:
            keys = keys_of(plan, pair.pair_id)
            commit_pair(pair, keys, store.root, lineage_of(pair).score)
        time.sleep(6)
        retire(store)

    thread = threading.Thread(target=run)
    thread.start()
    answer = rlsparse("status", "--store", store.root, "--watch")
    thread.join()
    assert answer.code == 0
    assert "3 pairs" in answer.out
    assert "(100.0%)" in answer.err.splitlines()[-1]
    answer = rlsparse("status", "--store", store.root, "--watch")
    assert answer.err == "no extraction runs on this store\n"
