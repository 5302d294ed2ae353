"""Slices on nodes that differ, on a cluster that grows, and what its metrics say."""

import json
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.builders import assert_same_store, ray_environment
from tests.drill.drill import RLSPARSE
from tests.drill.nodes import nodes

LIMIT = 120

PROBE = """
import json, os, sys
from collections import deque
import ray
from rlsparse_ray.cluster.session import Room, ray_session
from rlsparse_ray.cluster.tasks import drain, get, task
from rlsparse_ray.placement import Resources

def where(device):
    def run():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return device, ray.get_runtime_context().get_node_id(), visible
    return run

with ray_session(sys.argv[1]):
    resources = Resources(gpu_fraction=0.5)
    room, waiting, flying, found = Room(resources), deque(range(80)), {}, []
    remote = {device: task(where(device), resources, device) for device in ("cpu", "cuda")}

    def submit():
        lane = room.lane() if waiting else None
        if lane is None:
            return False
        waiting.popleft()
        room.flying[lane.device] += 1
        flying[remote[lane.device].options(memory=min(1 << 60, lane.memory)).remote()] = lane.device
        return True

    def collect(ref, device):
        room.flying[device] -= 1
        found.append(get(ref, "probe"))

    drain(flying, submit, collect)
    gpus = {n["NodeID"]: n["Resources"].get("GPU", 0) for n in ray.nodes()}
    print(json.dumps([[device, gpus[node], cuda] for device, node, cuda in found]))
"""


@pytest.mark.slow
def test_gpus_and_cpus_of_other_nodes_work_at_the_same_time():
    """Each asks for as much memory as there is: a slice larger than every node still runs."""
    with nodes(1) as cluster:
        cluster.add(num_gpus=1)
        done = subprocess.run(
            [sys.executable, "-c", PROBE, cluster.address],
            env=ray_environment(),
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 80
    assert {device for device, *_ in found} == {"cpu", "cuda"}
    for device, gpus, visible in found:
        if device == "cuda":
            assert (gpus, visible) == (1, "0")


@pytest.mark.slow
def test_a_cluster_from_zero_and_its_metrics(example, tmp_path):
    """No node can work at first; the run says so, and ends soon after one has joined."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    with nodes(0) as cluster:
        command = [RLSPARSE, "extract", example.corpus, "--store", tmp_path / "store"]
        run = subprocess.Popen(
            [*map(str, command), "--address", cluster.address],
            env=ray_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        end = time.monotonic() + LIMIT
        while not any((tmp_path / "store").glob("staging/extraction-*.json")):
            assert run.poll() is None, run.communicate()
            assert time.monotonic() < end
            time.sleep(0.1)
        cluster.add(metrics_export_port=port)
        out, err = run.communicate(timeout=LIMIT)
        assert (run.returncode, out.split(";")[0]) == (0, "3 extracted"), err
        assert "no node with 1 CPUs, which a slice asks for: waiting until such a node joins" in err
        found = _scrape(port, len(example.plan.slices))
    assert found["ray_rlsparse_bytes_read_total"] == example.plan.nbytes
    assert found["ray_rlsparse_slice_seconds_count"] == len(example.plan.slices)
    assert_same_store(example.store, tmp_path / "store")


def _scrape(port: int, slices: int) -> dict[str, float]:
    """The sums over workers, as soon as they know of every slice: they report now and then."""
    end = time.monotonic() + 60
    while True:
        found: dict[str, float] = {}
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith("ray_rlsparse_"):
                    name = line.partition("{")[0]
                    found[name] = found.get(name, 0) + float(line.rpartition(" ")[2])
        if found.get("ray_rlsparse_slices_done_total") == slices:
            return found
        assert time.monotonic() < end, found
        time.sleep(1)
