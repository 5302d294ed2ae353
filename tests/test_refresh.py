"""A refresh does what is new and no more, again and again, whatever fails or is killed."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rlsparse_ray.corpus import load_corpus
from rlsparse_ray.plan import make_plan
from rlsparse_ray.sql import connect, run_query
from rlsparse_ray.storage.lease import LEASE, LeaseError, hold
from rlsparse_ray.store import Store
from rlsparse_ray.upkeep.checks import verify
from rlsparse_ray.upkeep.refresh import refresh
from rlsparse_ray.upkeep.survey import survey
from rlsparse_ray.weights.hub_resolve import LOCATIONS
from tests.builders import (
    BF16,
    contents,
    extract_directly,
    overlap_directly,
    plan_of,
    ray_environment,
    small_model,
    tree,
    tuned_from,
    weights,
    write_corpus,
    write_model,
)

RLSPARSE = Path(sys.executable).with_name("rlsparse")
BASE = small_model(vocabulary=30, width=16)


@pytest.fixture
def corpus(hub, tmp_path, monkeypatch):
    """Three pairs on the hub: two good ones, and one whose model is gated."""
    monkeypatch.setenv("RLSPARSE_RETRY_SECONDS", "2")
    write_model(hub.folder("acme/base"), BASE)
    for seed, name in enumerate(("grpo", "dpo", "gated")):
        write_model(hub.folder(f"acme/{name}"), tuned_from(BASE, 100 * seed))
    hub.settings("acme/gated").gated = True
    return hub_corpus(tmp_path, "grpo", "dpo", "gated")


def hub_corpus(folder, *names, **labels):
    pairs = [
        {"name": n, "base": "hf://acme/base", "tuned": f"hf://acme/{n}", **labels} for n in names
    ]
    return write_corpus(folder / "corpus.yaml", pairs)


def states(corpus, store):
    return {row["name"]: row["state"] for row in survey(load_corpus(corpus), str(store)).rows()}


def undisturbed(corpus, folder):
    """What one process without a refresh makes of the corpus as it is now."""
    extract_directly(corpus, folder)
    overlap_directly(folder)
    return contents(folder)


def told(store):
    """The store without what tells of refreshes."""
    found = contents(store).items()
    return {p: c for p, c in found if p != LEASE and not p.startswith("refreshes/")}


def kept(store):
    """The rows of `refreshes`, oldest first."""
    with connect(store) as con:
        return con.sql("FROM refreshes ORDER BY started_at").to_arrow_table().to_pylist()


def test_from_nothing_to_all_is_well(corpus, hub, tmp_path, local_ray, monkeypatch):
    """New; failed and tried again; unchanged; moved; moved back; relabelled."""
    store = tmp_path / "store"
    first = refresh(corpus, str(store))
    assert set(first.failed) == {"gated"}, first.failed
    assert (set(first.added), first.moved, first.unchanged) == ({"grpo", "dpo"}, {}, 0)
    assert first.failed.keys() == {"gated"} and "gated" in first.failed["gated"]
    assert (first.ok, first.overlaps_counted, first.findings) == (False, 1, ())
    assert first.audits > 15 and first.bytes_read > 0
    grpo = first.added["grpo"]

    hub.settings("acme/gated").gated = False
    second = refresh(corpus, str(store))
    assert (set(second.added), second.unchanged, second.failed) == ({"gated"}, 2, {})
    assert (second.ok, second.overlaps_counted) == (True, 2)
    assert told(store) == undisturbed(corpus, tmp_path / "u1")

    before = told(store)
    third = refresh(corpus, str(store))
    assert (third.ok, third.unchanged, third.bytes_read, third.audits) == (True, 3, 0, 0)
    assert told(store) == before

    write_model(hub.folder("acme/grpo", "v2"), tuned_from(BASE, 900))
    hub.settings("acme/grpo").refs["main"] = "v2"
    assert states(corpus, store) == {"grpo": "moved", "dpo": "unchanged", "gated": "unchanged"}
    fourth = refresh(corpus, str(store))
    ((name, (moved, superseded)),) = fourth.moved.items()
    assert (name, superseded, fourth.unchanged, fourth.ok) == ("grpo", grpo, 2, True)
    assert (fourth.overlaps_counted, fourth.added) == (2, {})
    fresh = undisturbed(corpus, tmp_path / "u2")
    mine = {p: c for p, c in told(store).items() if not p.startswith("overlaps/") and moved in p}
    assert mine == {p: c for p, c in fresh.items() if p in mine}
    assert any(path.startswith("masks/") for path in mine)

    hub.settings("acme/grpo").refs["main"] = "main"
    fifth = refresh(corpus, str(store))
    assert fifth.moved == {"grpo": (grpo, moved)}
    assert (fifth.bytes_read, fifth.overlaps_counted, fifth.ok) == (0, 0, True)
    with connect(store) as con:
        current = con.sql("SELECT pair_id FROM pairs WHERE name = 'grpo'").fetchall()
    assert current == [(grpo,)]

    hub_corpus(tmp_path, "grpo", "dpo", "gated", family="acme")
    sixth = refresh(corpus, str(store))
    assert (set(sixth.relabelled), sixth.unchanged) == ({"grpo", "dpo", "gated"}, 0)
    assert (sixth.bytes_read, sixth.audits > 15, sixth.ok) == (0, True, True)

    rows = kept(store)
    assert [row["ok"] for row in rows] == [False, *[True] * 5]
    assert rows[0]["failed"] == [{"name": "gated", "message": first.failed["gated"]}]
    assert rows[3]["moved"] == [{"name": "grpo", "pair_id": moved, "superseded": grpo}]
    assert [row["bytes_read"] for row in rows] == [
        *(first.bytes_read, second.bytes_read, 0, fourth.bytes_read, 0, 0)
    ]
    assert verify(store) == []
    with connect(store) as con:
        answer = run_query(con, "refreshes").to_pylist()
    assert [(row["failed_pairs"], row["unchanged"]) for row in answer][-2:] == [
        ([], 2),
        (["gated"], 0),
    ]


def test_dry_run_writes_nothing(corpus, hub, tmp_path, rlsparse, local_ray):
    store = tmp_path / "store"
    dry = rlsparse("refresh", corpus, "--store", store, "--dry-run")
    assert dry.code == 1
    assert dry.out.splitlines()[-1].startswith("0 unchanged; ")
    assert not store.exists()
    done = rlsparse("refresh", corpus, "--store", store)
    assert done.code == 1
    assert done.out.startswith("2 added, 1 failed; ")
    assert dry.out.splitlines()[-1].split("; ")[1].removesuffix(" to read") in done.out
    assert done.err.startswith("failed: gated: hf://acme/gated")
    before = tree(store)
    again = rlsparse("refresh", corpus, "--store", store, "--dry-run", "--json")
    assert again.code == 1
    assert again.out.count('"state": "unchanged"') == 2
    assert '"state": "unreadable"' in again.out
    assert tree(store) == before
    hub_corpus(tmp_path, "grpo", "dpo")
    assert rlsparse("refresh", corpus, "--store", store).code == 0


def test_an_audit_that_finds_something(corpus, hub, tmp_path, rlsparse, local_ray):
    """Told by the exit code and the table, until it is mended."""
    store = tmp_path / "store"
    hub.settings("acme/gated").gated = False
    assert refresh(corpus, str(store)).ok
    (path,) = (store / "overlaps").glob("pair_b=grpo-*/overlaps.parquet")
    good = path.read_bytes()
    table = pq.ParquetFile(path).read()
    pq.write_table(table.slice(1), path)
    for _ in range(2):
        answer = rlsparse("refresh", corpus, "--store", store)
        assert answer.code == 1
        assert answer.err.startswith("audit: overlaps_against_counts: grpo-")
    assert kept(store)[-1]["findings"][0]["check"] == "overlaps_against_counts"
    path.write_bytes(good)
    assert rlsparse("refresh", corpus, "--store", store).code == 0


@pytest.mark.parametrize("option", [("--criterion", "nearly"), ("--sample", "0")])
def test_wrong_options_are_told_before_anything_is_done(corpus, tmp_path, rlsparse, option):
    answer = rlsparse("refresh", corpus, "--store", tmp_path / "store", *option)
    assert answer.code == 2
    assert "Invalid value" in answer.err
    assert not (tmp_path / "store").exists()


def test_what_goes_wrong_in_a_run_is_no_wrong_option(tmp_path, rlsparse, monkeypatch):
    import rlsparse_ray.upkeep.refresh as module

    def fail(*args, **kwargs):
        raise ValueError("a fault")

    monkeypatch.setattr(module, "survey", fail)
    write_model(tmp_path / "base", BASE)
    corpus = write_corpus(
        tmp_path / "corpus.yaml", [{"name": "same", "base": "base", "tuned": "base"}]
    )
    answer = rlsparse("refresh", corpus, "--store", tmp_path / "store")
    assert answer.code == 4
    assert answer.err.splitlines()[-1] == "ValueError: a fault"


def test_two_at_once(corpus, tmp_path, rlsparse, local_ray):
    store = Store.create(tmp_path / "store")
    with hold(store.root, "refresh"):
        answer = rlsparse("refresh", corpus, "--store", store.root)
        assert answer.code == 2
        assert "in use by rlsparse refresh of " in answer.err
        assert store.committed() == set()


def test_a_lease_that_is_lost_stops_the_commits(corpus, tmp_path, local_ray, monkeypatch):
    """Another one takes it over while slices are at work."""
    monkeypatch.setenv("RLSPARSE_LEASE_SECONDS", "0.5")
    store = tmp_path / "store"
    Store.create(store)
    import rlsparse_ray.upkeep.refresh as module

    def slow(*args, **kwargs):
        theirs = b'{"holder": "other", "purpose": "gc", "since": 0, "until": 9e9}'
        Store.open(store).files.write(LEASE, theirs)
        time.sleep(1)
        return extract(*args, **kwargs)

    extract = module.extract
    monkeypatch.setattr(module, "extract", slow)
    with pytest.raises(LeaseError, match="lost to rlsparse gc of other"):
        refresh(corpus, str(store))
    assert Store.open(store).committed() == set()
    assert not (store / "refreshes").exists()


@pytest.mark.parametrize("place", ["disk", pytest.param("s3", marks=pytest.mark.slow)])
def test_killed_and_run_again(tmp_path, request, place):
    """Killed in the middle: the next one waits for the lease to end, and ends the same."""
    base = {f"layers.{n}.mlp.weight": weights(n, (40, 50)) for n in range(12)}
    write_model(tmp_path / "base", base)
    pairs = []
    for seed in range(4):
        write_model(tmp_path / f"run-{seed}", tuned_from(base, 100 * seed))
        pairs.append({"name": f"run-{seed}", "base": "base", "tuned": f"run-{seed}"})
    corpus = write_corpus(tmp_path / "corpus.yaml", pairs, slice_bytes=4000)
    root = str(tmp_path / "store")
    if place == "s3":
        request.getfixturevalue("s3").create_bucket("refreshes")
        root = f"s3://refreshes/{tmp_path.name}/store"
    command = [RLSPARSE, "refresh", corpus, "--store", root, "--wait", "60"]
    environment = {**ray_environment(), "RLSPARSE_LEASE_SECONDS": "5"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    files = Store(root).files
    end = time.monotonic() + 120
    while sum(path.endswith(".arrow") for path in files.list("staging")) < 8:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not any(path.startswith("refreshes/") for path in files.list(""))

    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.startswith("4 added; ")
    copy = tmp_path / "copy"
    for path in files.list(""):
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_bytes(files.read(path))
    assert told(copy) == undisturbed(corpus, tmp_path / "undisturbed")
    assert verify(root) == []


BASES, TUNED, PAIRS = 12, 42, 500


@pytest.mark.slow
def test_an_unchanged_corpus_of_500_pairs(hub, tmp_path):
    """One request a model, no weights, a few seconds."""
    base = {"layers.0.mlp.up_proj.weight": np.arange(64, dtype=np.float32).astype(BF16)}
    for number in range(BASES):
        write_model(hub.folder(f"acme/base-{number}"), {k: v + number for k, v in base.items()})
    for number in range(TUNED):
        write_model(hub.folder(f"acme/tuned-{number}"), tuned_from(base, number))
    grid = [(b, t) for b in range(BASES) for t in range(TUNED)][:PAIRS]
    pairs = [
        {"name": f"{b}-{t}", "base": f"hf://acme/base-{b}", "tuned": f"hf://acme/tuned-{t}"}
        for b, t in grid
    ]
    corpus, store = write_corpus(tmp_path / "corpus.yaml", pairs), tmp_path / "store"
    extract_directly(corpus, store)
    assert refresh(corpus, str(store), criteria=[]).unchanged == PAIRS

    hub.proxy.forget()
    began = time.monotonic()
    done = refresh(corpus, str(store), criteria=[])
    seconds = time.monotonic() - began
    log = [f"{r.method} {r.path.partition('?')[0]}" for r in hub.proxy.log]
    assert sorted(log) == sorted(
        f"GET /api/models/acme/{kind}-{n}"
        for kind, count in (("base", BASES), ("tuned", TUNED))
        for n in range(count)
    )
    assert hub.data_requests == []
    assert (done.ok, done.unchanged, done.bytes_read) == (True, PAIRS, 0)
    assert seconds < 20, seconds


def test_models_are_opened_at_the_same_time(corpus, hub):
    """Headers of pairs that are committed are not read; the others' are."""
    hub.settings("acme/gated").gated = False
    plan = plan_of(corpus)
    assert plan.failed == {}
    ids = {pair.entry.name: pair.pair_id for pair in plan.pairs}
    hub.proxy.forget()
    LOCATIONS.clear()
    rest = make_plan(load_corpus(corpus), {ids["grpo"], ids["dpo"]})
    assert [pair.pair_id for pair in rest.pairs] == [ids["gated"]]
    assert {pair.entry.name: pair.pair_id for pair in rest.kept} | {"gated": ids["gated"]} == ids
    read = {r.path.split("/resolve/")[0] for r in hub.proxy.log if "/resolve/" in r.path}
    assert read == {"/acme/base", "/acme/gated"}
    hub.proxy.forget()
    none = make_plan(load_corpus(corpus), set(ids.values()))
    assert (none.pairs, none.slices, none.nbytes, len(none.kept)) == ((), (), 0, 3)
    assert len(hub.proxy.log) == 4
