"""Works on Ray: results come back with their works, and an error fails what it should."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlsparse_ray.cluster.works import run_works
from rlsparse_ray.errors import RlsparseError, StoreError
from rlsparse_ray.placement import Resources
from rlsparse_ray.store import Store
from tests.builders import ray_environment


def run(works, function, **options):
    facts = {
        "resources": Resources("cpu"),
        "memory": lambda work: 1 << 20,
        "title": "work {}".format,
    }
    return run_works(works, function, **facts, **options)


def odd_fails(error):
    def function(work, device):
        if work % 2:
            raise error(f"{work} is odd")
        return work, device

    return function


def test_each_work_with_its_result(local_ray):
    found, even = [], range(0, 18, 2)
    assert run(even, odd_fails(SystemError), collect=lambda *seen: found.append(seen)) == {}
    assert sorted(found) == [(work, (work, "cpu")) for work in even]


@pytest.mark.parametrize(
    ("error", "message"),
    [(RlsparseError, "{} is odd"), (ZeroDivisionError, "ZeroDivisionError: {} is odd")],
)
def test_errors_fail_their_own_works(local_ray, error, message):
    found = []
    failed = run(
        range(5), odd_fails(error), keep_going=True, collect=lambda *seen: found.append(seen[0])
    )
    assert failed == {f"work {work}": message.format(work) for work in (1, 3)}
    assert sorted(found) == [0, 2, 4]


def test_one_error_stops_the_rest(local_ray):
    with pytest.raises(RlsparseError, match=r"^[13] is odd$"):
        run(range(5), odd_fails(RlsparseError))


def test_a_work_whose_worker_dies_is_done_again(local_ray, tmp_path):
    def die_once(work, device):
        mark = Path(tmp_path, str(work))
        if not mark.exists():
            mark.touch()
            os._exit(1)
        return work

    found = []
    assert run(range(2), die_once, collect=lambda work, result: found.append(result)) == {}
    assert sorted(found) == [0, 1]


def test_a_node_that_does_not_see_the_store_says_so(local_ray, tmp_path):
    def open_store(work, device):
        Store.open(tmp_path / "store")

    message = rf"^node \S+ \([\d.]+\) does not see the store {tmp_path}/store, .* or a bucket"
    with pytest.raises(StoreError, match=message):
        run(range(2), open_store)


SLEEPS = """
import time
from rlsparse_ray.cluster.works import run_works
from rlsparse_ray.placement import Resources

run_works(
    [1], lambda work, device: time.sleep(60), resources=Resources("cpu"),
    memory=lambda work: 1 << 20, title="work {}".format,
)
"""


def test_a_node_without_memory_ends_the_run():
    """Ray kills workers for it, and would begin the work again without end."""
    none = {
        "RAY_memory_usage_threshold": "0.001",
        "RAY_memory_monitor_refresh_ms": "50",
        "RAY_task_oom_retry_delay_base_ms": "10",
    }
    done = subprocess.run(
        [sys.executable, "-c", SLEEPS],
        env=ray_environment() | none,
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.search(
        r"RlsparseError: work 1: node [\d.]+ ran out of memory \(\S+GB of \S+GB used\), 4 times: "
        r".*run again to go on$",
        done.stderr,
        re.MULTILINE,
    ), done.stderr
