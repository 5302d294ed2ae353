"""A store in a bucket holds, byte for byte, what the same work leaves in a folder, whatever happens
to the work, the server or the credentials on the way."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import obstore
import pyarrow.parquet as pq
import pytest

from rlsparse_ray.errors import StoreError
from rlsparse_ray.population.consensus import consensus
from rlsparse_ray.sql import connect, run_query
from rlsparse_ray.storage.buckets import bucket, split
from rlsparse_ray.store import Store
from rlsparse_ray.upkeep.checks import verify
from tests.builders import (
    assert_same_store,
    commit_all,
    extract_directly,
    extract_slices,
    overlap_directly,
    plan_of,
    ray_environment,
)
from tests.servers.proxy import Rule

RLSPARSE = Path(sys.executable).with_name("rlsparse")
MASK = "named_masks/mask=core/named_masks.parquet"


@pytest.fixture
def place(s3, request):
    """An empty prefix; its name has a space, and the `=` of partitions."""
    s3.create_bucket("stores")
    return f"s3://stores/{request.node.name}/my store/env=test"


@pytest.fixture
def impatient(s3, monkeypatch):
    """Failing requests are given up after a second."""
    monkeypatch.setenv("RLSPARSE_RETRY_SECONDS", "1")
    bucket.cache_clear()
    yield
    bucket.cache_clear()


def download(place: str, folder: Path) -> Path:
    """The store as files on the disk."""
    files = Store.open(place).files
    for path in files.list(""):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(files.read(path))
    return folder


def keep_core(store):
    consensus(store, "algorithm = 'GRPO'", keep="all", name="core")


def named_row(folder: Path):
    """The row of the kept mask, without the time; the file is removed."""
    row = pq.ParquetFile(folder / MASK).read().to_pylist()
    (folder / MASK).unlink()
    return [{k: v for k, v in r.items() if k != "created_at"} for r in row]


def writes(s3):
    """The requests that changed something."""
    return [r for r in s3.proxy.log if r.method in ("PUT", "POST", "DELETE")]


def test_the_whole_way_is_the_same_as_on_the_disk(example, place, tmp_path):
    disk = tmp_path / "disk"
    for store in (str(disk), place):
        extract_directly(example.corpus, store)
        for criterion in ("exact", "abs:1e-5"):
            overlap_directly(store, criterion)
        keep_core(store)
    copy = download(place, tmp_path / "copy")
    assert named_row(copy) == named_row(disk)
    assert_same_store(disk, copy)
    assert verify(place) == []


def test_commands(example, place, s3, tmp_path):
    """Every verb in a process, and a Ray, of its own."""

    def run(*words):
        done = subprocess.run(
            [RLSPARSE, *words],
            env=ray_environment(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    assert run("extract", example.corpus, "--store", place).startswith("3 extracted; 1.6 MiB read;")
    assert_same_store(example.store, download(place, tmp_path / "copy"))
    before = written(place)
    s3.proxy.forget()
    assert run("extract", example.corpus, "--store", place).startswith("3 already there; 0 B read;")
    assert written(place) == before
    assert [r for r in writes(s3) if r.method == "PUT"] == []
    assert "3 overlaps counted" in run("overlap", "--store", place)
    assert "3 masks (exact)" in run("consensus", "--store", place, "--where", "true")
    assert "3 pairs, " in run("status", "--store", place)
    assert "all is well" in run("verify", "--store", place)
    assert run("sql", "SELECT count(*) AS n FROM pairs", "--store", place, "--json").split() == [
        *("[", "{", '"n":', "3", "}", "]")
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "copy"]


EXTRACT = "import sys; from tests.builders import extract_directly; extract_directly(*sys.argv[1:])"


@pytest.mark.parametrize("requests", [3, 30])
def test_killed_and_run_again(example, place, s3, tmp_path, requests):
    """Killed at once after so many writes: what was finished is used, the rest is done again."""
    process = subprocess.Popen([sys.executable, "-c", EXTRACT, example.corpus, place])
    try:
        end = time.monotonic() + 120
        while len(writes(s3)) < requests:
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < end
            time.sleep(0.002)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = finished(place)
    extract_directly(example.corpus, place)
    assert_same_store(example.store, download(place, tmp_path / "copy"))
    assert verify(place) == []
    after = written(place)
    assert {path: after[path] for path in before} == before


def written(place):
    """When each object was written."""
    address, prefix = split(place)
    found = [meta for page in obstore.list(bucket(address), prefix) for meta in page]
    return {meta["path"].removeprefix(f"{prefix}/"): meta["last_modified"] for meta in found}


def finished(place):
    """The mask parts of slices that are finished, and when they were written."""
    times, store = written(place), Store.open(place)
    staged = [path.split("/") for path in times if path.endswith(".arrow")]
    results = [store.staged(pair_id, key.removesuffix(".arrow")) for _, pair_id, key in staged]
    return {part.path: times[part.path] for r in results if r for part in r.masks}


def test_a_server_that_fails_for_a_while(example, place, s3, tmp_path):
    """It is asked again: neither errors nor lost connections show in the result."""
    plan = plan_of(example.corpus)
    s3.proxy.rules += [
        Rule(match=r"GET .*list-type", status=500),
        Rule(match=r"PUT .*/part-00001", times=2, status=503),
        Rule(match=r"PUT .*/staging", times=2, drop=True),
    ]
    with away_for_a_while(s3):
        extract_slices(plan, place)
    s3.proxy.rules.append(Rule(match=r"GET .*\.arrow", times=3, cut=1000))
    with away_for_a_while(s3):
        commit_all(plan, place)
    statuses = [r.status for r in s3.proxy.log]
    assert (statuses.count(500), statuses.count(503)) == (1, 2)
    assert statuses.count(0) > 2
    assert all(rule.times == 0 for rule in s3.proxy.rules)
    assert_same_store(example.store, download(place, tmp_path / "copy"))


@contextmanager
def away_for_a_while(s3):
    """Soon after the block begins, every connection is dropped for a second and a half."""

    def away():
        time.sleep(0.2)
        with s3.proxy.unavailable():
            time.sleep(1.5)

    thread = threading.Thread(target=away)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_a_server_that_is_gone_for_long(example, place, s3, tmp_path, impatient):
    """The run ends with what to do; run again, it goes on."""
    plan = plan_of(example.corpus)
    s3.proxy.rules.append(Rule(match=r"PUT .*/part-00002", times=None, status=503))
    with pytest.raises(StoreError) as caught:
        extract_slices(plan, place)
    assert str(caught.value).startswith(f"store {place}/masks/pair_id=grpo-0-")
    assert "503 Service Unavailable: the service keeps failing: run again" in str(caught.value)
    s3.proxy.forget()
    extract_slices(plan, place)
    with s3.proxy.unavailable(), pytest.raises(StoreError, match="check the network and AWS_ENDP"):
        commit_all(plan, place)
    commit_all(plan, place)
    assert_same_store(example.store, download(place, tmp_path / "copy"))


def test_a_server_that_is_gone_while_questions_are_asked(example, place, s3, impatient):
    extract_directly(example.corpus, place)
    con = connect(place)
    with s3.proxy.unavailable():
        with pytest.raises(StoreError, match="check the network and AWS_ENDPOINT_URL"):
            verify(place)
        with pytest.raises(StoreError, match="check the network and AWS_ENDPOINT_URL"):
            connect(place)
        with pytest.raises(Exception, match="check the network and AWS_ENDPOINT_URL"):
            run_query(con, "step_sizes")
    assert run_query(con, "step_sizes").num_rows > 0


def test_no_bucket_and_wrong_credentials(example, place, monkeypatch, rlsparse):
    missing = rlsparse("extract", example.corpus, "--store", "s3://nonesuch/store")
    assert missing.code == 2
    assert missing.err.startswith("error: store s3://nonesuch/store/store.json: NoSuchBucket: ")
    assert missing.err.endswith(": create the bucket or correct the address\n")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    bucket.cache_clear()
    try:
        refused = rlsparse("status", "--store", place)
    finally:
        bucket.cache_clear()
    assert refused.code == 2
    assert refused.err.startswith(f"error: store {place}/store.json: SignatureDoesNotMatch: ")
    assert "check the credentials (AWS_ACCESS_KEY_ID, " in refused.err


def test_not_a_store(place):
    with pytest.raises(StoreError, match=r"no store there .*rlsparse extract CORPUS --store s3://"):
        Store.open(place)
    with pytest.raises(StoreError, match="no store there"):
        connect(place)
    address, prefix = split(place)
    obstore.put(bucket(address), f"{prefix}/thesis.tex", b"x")
    with pytest.raises(StoreError, match="not a store and not empty: name a new or empty folder"):
        Store.create(place)


def test_damage_is_found(example, place):
    extract_directly(example.corpus, place)
    files = Store.open(place).files
    parts = [path for path in files.list("masks") if "criterion=exact" in path]
    changed, cut, gone = parts[0], parts[1], parts[2]
    data = bytearray(files.read(changed))
    data[100] ^= 1
    files.write(changed, bytes(data))
    files.write(cut, files.read(cut)[:-1])
    files.remove(gone)
    found = {f.problem.split(";")[0] for f in verify(place) if f.check == "files"}
    assert found == {
        f"{changed}: contents have changed (XXH3 differs)",
        f"{cut}: {files.size(cut)} bytes instead of {files.size(cut) + 1}",
        f"{gone}: missing",
    }
