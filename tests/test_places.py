"""From models on disk, in a bucket and on a hub to the same store; and what faults leave of it."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from rlsparse_ray.lineage import lineage_of
from rlsparse_ray.sql import connect, run_audits, run_query
from rlsparse_ray.store import Store
from tests.builders import (
    commit_all,
    extract_directly,
    extract_slices,
    plan_of,
    rows_of,
    small_model,
    tree,
    tuned_from,
    write_corpus,
    write_model,
)
from tests.servers.proxy import Proxy, Rule

TUNED = {"grpo-0": 1, "grpo-1": 2, "sft": 1}
"""Tuned models and the number of files of each."""

CONFIG = {"model_type": "llama", "tie_word_embeddings": False}


@dataclass
class Place:
    """Where the models are, and the proxy that sees every byte that leaves it."""

    corpus: Path
    put: Callable[[str, Path], None]
    """Put other files in the place of a model."""
    proxy: Proxy


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base of 4 MB and three tuned models."""
    folder = tmp_path_factory.mktemp("models")
    base = small_model(width=512, vocabulary=1001)
    write_model(folder / "base", base, shards=2, config=CONFIG)
    for seed, (name, shards) in enumerate(TUNED.items()):
        write_model(folder / name, tuned_from(base, 100 * seed), shards, CONFIG)
    return folder


@pytest.fixture(scope="module")
def on_disk(models, tmp_path_factory):
    """The store that models on the disk give."""
    folder = tmp_path_factory.mktemp("on-disk")
    store = folder / "store"
    extract_directly(corpus_at(folder / "corpus.yaml", str(models)), store)
    return store


def corpus_at(path, root):
    """A corpus with two of the models and, so that a slice has three sides, all of one base."""
    pairs = [{"name": n, "base": f"{root}/base", "tuned": f"{root}/{n}"} for n in TUNED]
    return write_corpus(path, pairs, slice_bytes=1_000_000)


@pytest.fixture(params=["s3", "hub"])
def place(request, models, tmp_path, monkeypatch):
    monkeypatch.setenv("RLSPARSE_RETRY_SECONDS", "4")
    server = request.getfixturevalue(request.param)
    if request.param == "s3":
        from rlsparse_ray.storage.buckets import bucket

        name = f"places-{os.urandom(4).hex()}"
        server.create_bucket(name)
        bucket.cache_clear()
        server.upload(models, name, "m")
        root = f"s3://{name}/m"

        def put(model, folder):
            server.upload(folder, name, f"m/{model}")
    else:
        for model in ("base", *TUNED):
            shutil.copytree(models / model, server.folder(f"acme/{model}"), dirs_exist_ok=True)
        root = "hf://acme"

        def put(model, folder):
            shutil.copytree(folder, server.folder(f"acme/{model}"), dirs_exist_ok=True)

    yield Place(corpus_at(tmp_path / "corpus.yaml", root), put, server.proxy)
    if request.param == "s3":
        bucket.cache_clear()


def parts_by_name(store):
    """Every file but `pairs`, its pair by the name and not by the id, which names the revisions."""
    found = {}
    for path, data in tree(store).items():
        head, sign, rest = path.partition("pair_id=")
        if sign and head != "pairs/":
            pair_id, _, file = rest.partition("/")
            found[f"{head}{pair_id[:-9]}/{file}"] = data
    return found


def test_the_same_parts_from_everywhere(place, on_disk, tmp_path):
    store = tmp_path / "store"
    plan = extract_directly(place.corpus, store)
    here, there = parts_by_name(store), parts_by_name(on_disk)
    assert len(here) >= 3 * (5 + 2 * 3)
    assert here == there
    with connect(store) as con:
        assert [name for name, answer in run_audits(con) if answer.num_rows] == []
        rows = run_query(con, "sparsity_by_pair").to_pylist()
    assert sorted(row["name"] for row in rows) == sorted(TUNED)
    for pair in plan.pairs:
        (row,) = rows_of(store, "pairs", pair.pair_id)
        assert row["base_source"] == pair.entry.base
        assert row["lineage_score"] > 0.99


def test_every_byte_is_read_once(place, models, tmp_path):
    plan = plan_of(place.corpus)
    place.proxy.forget()
    store = tmp_path / "store"
    extract_slices(plan, store)
    sent = sum(request.sent for request in place.proxy.log)
    weights = sum(path.stat().st_size for path in models.glob("*/*.safetensors"))
    assert plan.nbytes <= weights
    assert plan.nbytes <= sent <= 1.02 * plan.nbytes
    place.proxy.forget()
    for pair in plan.pairs:
        lineage_of(pair)
    assert 0 < sum(request.sent for request in place.proxy.log) <= 0.02 * plan.nbytes
    place.proxy.forget()
    commit_all(plan, store)
    again = [report.nbytes for report in extract_slices(plan_of(place.corpus), tmp_path / "other")]
    assert sum(again) == plan.nbytes


@pytest.mark.parametrize(
    "rule",
    [
        Rule(match="GET .*", times=3, cut=10_000),
        Rule(match="GET .*", times=4, status=503),
        Rule(match="GET .*", times=2, drop=True),
        Rule(match="GET .*", times=2, status=429, headers={"Retry-After": "1"}),
    ],
    ids=["cut", "503", "dropped", "429"],
)
def test_passing_faults_change_nothing(place, on_disk, tmp_path, rule):
    plan = plan_of(place.corpus)
    place.proxy.rules.append(replace(rule))
    store = tmp_path / "store"
    assert [report.failed for report in extract_slices(plan, store)] == [{}] * len(plan.slices)
    assert place.proxy.rules[0].times == 0
    place.proxy.rules.clear()
    commit_all(plan, store)
    assert parts_by_name(store) == parts_by_name(on_disk)


def test_a_model_replaced_between_plan_and_read_fails_its_pair_alone(
    place, models, on_disk, tmp_path
):
    plan = plan_of(place.corpus)
    other = write_model(tmp_path / "other", small_model(seed=9, width=512, vocabulary=1001))
    place.put("grpo-0", other)
    failed: dict[str, str] = {}
    for report in extract_slices(plan, tmp_path / "store"):
        failed |= report.failed
    (pair_id,) = failed
    assert pair_id.startswith("grpo-0-")
    assert "changed between plan and read" in failed[pair_id]
    rest = plan.without(failed)
    commit_all(rest, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.committed() == {pair.pair_id for pair in rest.pairs}
    want = {k: v for k, v in parts_by_name(on_disk).items() if "/grpo-0/" not in k}
    assert parts_by_name(tmp_path / "store") == want


def test_credentials_that_expire_commit_nothing(place, on_disk, tmp_path):
    plan = plan_of(place.corpus)
    place.proxy.rules.append(Rule(match=".*", times=None, status=403))
    store = tmp_path / "store"
    reports = extract_slices(plan, store)
    ids = {pair.pair_id for pair in plan.pairs}
    assert all(set(report.failed) <= ids and report.failed for report in reports)
    assert Store.open(store).committed() == set()
    assert list(store.glob("masks/**/*.parquet")) == []
    place.proxy.rules.clear()
    extract_slices(plan, store)
    commit_all(plan, store)
    assert parts_by_name(store) == parts_by_name(on_disk)
