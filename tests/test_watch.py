"""How far runs are, seen from their store alone."""

import os
import re
import threading
import time
from dataclasses import asdict

import pytest

from rlsparse_ray.commit import commit_pair
from rlsparse_ray.errors import RlsparseError
from rlsparse_ray.lineage import lineage_of
from rlsparse_ray.slices import extract_slice
from rlsparse_ray.store import Store
from rlsparse_ray.upkeep.watch import STALE, Watch, announced, forget_finished
from tests.builders import extract_directly, extract_slices, id_of, keys_of, plan_of, tree


@pytest.fixture
def plan(example):
    return plan_of(example.corpus)


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "s")


def age(store, run, seconds):
    """Make a run one that was last heard of so long ago."""
    then = time.time() - seconds
    os.utime(f"{store.root}/{run.path}", (then, then))


def test_nothing_runs(store):
    watch = Watch(store)
    assert (watch.runs, watch.work) == ([], {})


def test_slices_and_commits_are_seen(plan, store, tmp_path):
    with announced(store, plan):
        watch = Watch(store)
        shares = sum(len(piece.pair_ids) for piece in plan.slices)
        start = watch.look()
        assert (start.pairs, start.committed, start.slices, start.done) == (3, 0, shares, 0)
        assert start.nbytes == pytest.approx(plan.nbytes, abs=shares)
        assert start.nbytes_done == 0

        done = 0
        for piece in plan.slices:
            extract_slice(piece, store.root)
            done += len(piece.pair_ids)
            assert watch.look().done == done
        assert watch.look().nbytes_done == start.nbytes

        pair = plan.pairs[0]
        commit_pair(pair, keys_of(plan, pair.pair_id), store.root, lineage_of(pair).score)
        found = watch.look()
        assert asdict(found) == asdict(start) | {
            "committed": 1,
            "done": shares,
            "nbytes_done": start.nbytes,
        }
        assert len(watch.runs) == 1
    watch.look()
    assert watch.runs == []
    assert not any("staging/extraction" in path for path in tree(tmp_path / "s"))


def test_following_ends_with_the_run_and_counts_every_byte_once(plan, store):
    seen: list[int] = []
    with announced(store, plan):
        watch = Watch(store)
        thread = threading.Thread(target=lambda: watch.follow(seen.append, 0.01))
        thread.start()
        extract_slices(plan, store.root)
    thread.join()
    assert sum(seen) == sum(share.nbytes for share in watch.work.values())
    assert min(seen) >= 0


def test_two_runs_at_once(plan, store):
    """Each takes back its own announcement; together they are as far as their pairs are."""
    first = plan.without([id_of(plan, "sft")])
    with announced(store, plan) as one:
        with announced(store, first) as other:
            watch = Watch(store)
            assert {run.name for run in watch.runs} == {one.name, other.name}
            assert watch.look().pairs == 3
        watch.look()
        assert [run.name for run in watch.runs] == [one.name]


def test_a_run_that_fails_takes_back_its_announcement(plan, store):
    with pytest.raises(RlsparseError), announced(store, plan):
        raise RlsparseError("no Ray")
    assert store.files.list("staging") == {}


def test_a_run_says_that_it_lives(plan, store):
    with announced(store, plan, 0.05) as run:
        age(store, run, 2 * STALE)
        end = time.monotonic() + 10
        while not Watch(store).runs:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_run_that_was_killed_is_not_followed(plan, store, rlsparse):
    with announced(store, plan) as run:
        watch = Watch(store)
        age(store, run, 2 * STALE)
        assert watch.follow(lambda nbytes: None).done == 0
        assert Watch(store).runs == []
        answer = rlsparse("status", "--store", store.root, "--watch")
    assert answer.err == "no extraction runs on this store\n"
    stopped = answer.out.splitlines()[-1]
    assert re.fullmatch(rf"extraction {run.name} has stopped: not heard of for 0:06:\d\d", stopped)


def test_what_a_killed_run_announced_goes_with_its_last_pair(plan, store, example, tmp_path):
    with announced(store, plan), announced(store, plan.without([id_of(plan, "sft")])):
        left = store.files.entries("staging")
        forget_finished(store)
        assert store.files.entries("staging") == left
        extract_directly(example.corpus, tmp_path / "s")
        forget_finished(store)
        assert store.files.entries("staging") == {}


def test_a_look_at_a_bucket_is_two_requests(plan, s3):
    s3.create_bucket("watch")
    store = Store.create("s3://watch/store")
    with announced(store, plan):
        extract_slice(plan.slices[0], store.root)
        s3.proxy.forget()
        watch = Watch(store)
        assert len(s3.proxy.log) == 2
        assert watch.look().done == len(plan.slices[0].pair_ids)
        assert len(s3.proxy.log) == 4


def test_the_command_follows_a_run(plan, store, rlsparse, monkeypatch):
    monkeypatch.setenv("RLSPARSE_PROGRESS_SECONDS", "0")
    began = threading.Event()

    def run() -> None:
        with announced(store, plan):
            extract_slice(plan.slices[0], store.root)
            began.set()
            time.sleep(1)
            extract_slices(plan, store.root)
            for pair in plan.pairs:
                keys = keys_of(plan, pair.pair_id)
                commit_pair(pair, keys, store.root, lineage_of(pair).score)

    thread = threading.Thread(target=run)
    thread.start()
    assert began.wait(60)
    answer = rlsparse("status", "--store", store.root, "--watch")
    thread.join()
    assert answer.code == 0
    assert "3 pairs" in answer.out
    assert "(100.0%)" in answer.err.splitlines()[-1]
    answer = rlsparse("status", "--store", store.root, "--watch")
    assert answer.err == "no extraction runs on this store\n"


def test_the_command_before_anything_is_committed(plan, store, rlsparse):
    answer = rlsparse("status", "--store", store.root)
    assert (answer.code, answer.out) == (0, "0 pairs, 0 B\n")
    with announced(store, plan) as run:
        extract_slices(plan, store.root)
        answer = rlsparse("status", "--store", store.root)
        assert rlsparse("status", "--store", store.root, "--json").out == "[]\n"
    slices = sum(len(piece.pair_ids) for piece in plan.slices)
    assert answer.code == 0
    assert answer.out.splitlines() == [
        "0 pairs, 0 B",
        f"{slices} staged files: of what runs, was stopped or has failed; run again to go on with "
        "it, or rlsparse gc removes it when it is old",
        f"extraction {run.name} runs",
    ]
