"""One at a time, on the disk and in a bucket, whatever becomes of the one who holds it."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from rlsparse_ray.errors import StoreError
from rlsparse_ray.storage.buckets import bucket
from rlsparse_ray.storage.lease import LEASE, Claim, LeaseError, _take, hold
from rlsparse_ray.store import Store
from tests.servers.gcs import gcs_server


@pytest.fixture(params=["disk", "s3"])
def root(request, tmp_path):
    root = str(tmp_path / "store")
    if request.param == "s3":
        request.getfixturevalue("s3").create_bucket("leases")
        root = f"s3://leases/{tmp_path.name}/store"
    Store.create(root)
    return root


@pytest.fixture
def google(tmp_path, monkeypatch):
    """A store on Google's cloud, which knows generations and no ETags in conditions."""
    with gcs_server(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.create_bucket("leases")
        yield Store.create("gs://leases/store").root
    bucket.cache_clear()


@pytest.fixture
def short(monkeypatch):
    """Leases of 2 seconds."""
    monkeypatch.setenv("RLSPARSE_LEASE_SECONDS", "2")


def claim(root):
    return json.loads(Store.open(root).files.read(LEASE))


def test_taken_and_given_back(root):
    for purpose in ("refresh", "gc"):
        with hold(root, purpose) as lease:
            lease.check()
            assert claim(root)["purpose"] == purpose
            assert 50 < claim(root)["until"] - time.time() <= 60
        assert claim(root)["until"] == 0


def test_on_google_cloud_storage(google):
    test_taken_and_given_back(google)
    test_many_at_once_one_at_a_time(google)
    test_a_lost_answer_is_not_taken_for_another_one(google)


def test_a_second_one_is_told_who_has_it(root):
    with hold(root, "refresh"):
        with pytest.raises(LeaseError) as caught, hold(root, "gc"):
            pass
        message = str(caught.value)
        assert message.startswith(f"store {root}: in use by rlsparse refresh of ")
        assert claim(root)["holder"] in message
        assert f"since {time.strftime('%Y-%m-%d', time.gmtime(claim(root)['since']))} " in message
        assert "--wait SECONDS" in message


def test_given_back_after_an_error(root):
    with pytest.raises(ZeroDivisionError), hold(root, "refresh"):
        raise ZeroDivisionError
    with hold(root, "refresh"):
        pass


def test_waiting_for_it(root, short):
    ended = []

    def first():
        with hold(root, "refresh"):
            taken.set()
            time.sleep(1)
            ended.append(time.monotonic())

    taken = threading.Event()
    thread = threading.Thread(target=first)
    thread.start()
    assert taken.wait(30)
    with hold(root, "refresh", wait=30):
        assert time.monotonic() >= ended[0]
    thread.join()


def test_renewed_as_long_as_it_is_held(root, short):
    with hold(root, "refresh") as lease:
        first = claim(root)["until"]
        time.sleep(3)
        lease.check()
        assert claim(root)["until"] > first
        with pytest.raises(LeaseError), hold(root, "refresh"):
            pass


def test_many_at_once_one_at_a_time(root):
    inside, most, entered = [], [], []

    def work(number):
        with hold(root, f"refresh {number}", wait=120):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(number)
        entered.append(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert (set(most), sorted(entered)) == ({1}, [0, 1, 2, 3])


HOLD = """
import sys, time
from rlsparse_ray.storage.lease import hold
with hold(sys.argv[1], "refresh", wait=60):
    print("held", flush=True)
    time.sleep(600)
"""


def start(root):
    return subprocess.Popen([sys.executable, "-c", HOLD, root], stdout=subprocess.PIPE)


def test_two_processes_one_of_which_is_killed(root, short):
    """Its lease ends by itself, and then the other one has it."""
    processes = [start(root), start(root)]
    try:
        lines = {p: threading.Event() for p in processes}

        def wait(process):
            process.stdout.readline()
            lines[process].set()

        for process in processes:
            threading.Thread(target=wait, args=[process], daemon=True).start()
        deadline = time.monotonic() + 60
        while not any(e.is_set() for e in lines.values()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(3)
        (holder,) = (p for p in processes if lines[p].is_set())
        (other,) = (p for p in processes if p is not holder)
        killed_at, old = time.time(), claim(root)["holder"]
        holder.kill()
        assert lines[other].wait(60)
        assert claim(root)["holder"] != old
        assert time.time() - killed_at < 30
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_stopped_holder_has_lost_it(root, short):
    """As a laptop that slept: it finds out before it writes."""
    with hold(root, "refresh") as lease:
        theirs = json.dumps({**claim(root), "holder": "other", "until": time.time() + 600})
        Store.open(root).files.write(LEASE, theirs.encode())
        deadline = time.monotonic() + 30
        with pytest.raises(
            LeaseError, match=r"lost to rlsparse refresh of other since .*run again"
        ):
            while time.monotonic() < deadline:
                lease.check()
                time.sleep(0.05)
        with pytest.raises(LeaseError):
            lease.guard()(1)
    # what is another's now is not given back
    assert claim(root)["holder"] == "other"


def test_a_lease_that_cannot_be_renewed_is_no_lease(s3, tmp_path, monkeypatch, short):
    monkeypatch.setenv("RLSPARSE_RETRY_SECONDS", "1")
    bucket.cache_clear()
    s3.create_bucket("leases")
    root = f"s3://leases/{tmp_path.name}"
    Store.create(root)
    with hold(root, "refresh") as lease, s3.proxy.unavailable():
        lease.check()
        time.sleep(2.2)
        with pytest.raises(LeaseError, match="could not be renewed for 2 s"):
            lease.check()
    bucket.cache_clear()


def test_a_lost_answer_is_not_taken_for_another_one(root):
    """The server has done what was asked, and the client, that does not know it, asks again."""
    files, now = Store.open(root).files, time.time()
    files.remove(LEASE)
    mine = Claim("me", "refresh", now, now + 60)
    assert files.create(LEASE, mine.encode())
    assert _take(files, LEASE, mine) is None
    assert _take(files, LEASE, replace(mine, holder="other")) == mine


def test_what_is_no_lease(tmp_path, monkeypatch):
    with pytest.raises(StoreError, match="no store there"), hold(tmp_path / "none", "gc"):
        pass
    store = Store.create(tmp_path / "store")
    store.files.write(LEASE, b"[]")
    damaged = pytest.raises(StoreError, match=r"lease.json: damaged .* remove it")
    with damaged, hold(store.root, "gc"):
        pass
    for value in ("soon", "0", "nan"):
        monkeypatch.setenv("RLSPARSE_LEASE_SECONDS", value)
        refused = pytest.raises(StoreError, match=r"RLSPARSE_LEASE_SECONDS=.*above 0")
        with refused, hold(store.root, "gc"):
            pass
