"""Which slices fit where: shares of GPUs, nodes that differ, nodes that are still to come."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsparse_ray.errors import RlsparseError
from rlsparse_ray.placement import AHEAD, UNLIMITED, Homes, Node, Resources, lanes_of

HEAD = Node("head", cpus=0, gpus=0, memory=4 << 30)
CPU = Node("cpu", cpus=16, gpus=0, memory=64 << 30)
GPU = Node("gpu", cpus=8, gpus=2, memory=32 << 30)


def test_auto_takes_gpus_and_the_cpus_of_nodes_without():
    gpu, cpu = lanes_of(Resources(), [HEAD, CPU, GPU], grows=False)
    assert (gpu.device, gpu.slots, gpu.limit, gpu.memory) == ("cuda", {"gpu": 2}, 4, 32 << 30)
    assert (cpu.device, cpu.slots, cpu.limit, cpu.memory) == ("cpu", {"cpu": 16}, 16, 64 << 30)


@pytest.mark.parametrize("nodes", [[GPU], [GPU, HEAD]])
def test_auto_leaves_the_cpus_of_gpu_nodes_to_their_gpus(nodes):
    (gpu,) = lanes_of(Resources(), nodes, grows=False)
    assert gpu.slots == {"gpu": 2}


def test_cpu_takes_every_node_that_has_some():
    (cpu,) = lanes_of(Resources("cpu", cpus=3), [HEAD, CPU, GPU], grows=False)
    assert (cpu.slots, cpu.limit) == ({"cpu": 5, "gpu": 2}, 14)


@pytest.mark.parametrize(
    ("fraction", "fits"), [(1, 2), (0.5, 4), (0.4, 4), (0.3, 6), (0.25, 8), (0.1, 20), (0.01, 200)]
)
def test_a_share_lies_within_one_gpu(fraction, fits):
    lane, *_ = lanes_of(Resources("cuda", fraction), [GPU], grows=False)
    assert lane.slots == {"gpu": fits}


def test_a_slice_never_asks_for_more_memory_than_one_node_has():
    """The sum over the nodes would let it wait for ever."""
    nodes = [Node(f"n{i}", cpus=4, gpus=0, memory=(i + 1) << 30) for i in range(8)]
    (lane,) = lanes_of(Resources(), nodes, grows=False)
    assert lane.memory == 8 << 30


def test_memory_of_nodes_that_cannot_run_it_does_not_count():
    lane, _ = lanes_of(Resources(), [CPU, GPU], grows=False)
    assert lane.memory == GPU.memory


def test_gpus_that_are_still_to_come_are_waited_for():
    (lane,) = lanes_of(Resources("cuda"), [HEAD, CPU], grows=True)
    assert (lane.device, lane.slots, lane.limit, lane.memory) == ("cuda", {}, AHEAD, UNLIMITED)


def test_gpus_that_will_never_come_are_refused():
    with pytest.raises(RlsparseError, match=r"--device cuda: the Ray cluster has no GPU; use "):
        lanes_of(Resources("cuda"), [HEAD, CPU], grows=False)


def test_too_many_cpus_are_refused():
    with pytest.raises(RlsparseError, match="no node with 17 CPUs"):
        lanes_of(Resources("cpu", cpus=17), [HEAD, CPU], grows=False)


def test_a_cluster_from_zero_shows_its_autoscaler_what_waits():
    (lane,) = lanes_of(Resources(), [HEAD], grows=True)
    assert (lane.device, lane.slots, lane.limit) == ("cpu", {}, AHEAD)
    (lane,) = lanes_of(Resources(), [HEAD, CPU], grows=True)
    assert lane.limit == AHEAD
    (lane,) = lanes_of(Resources(), [Node(f"n{i}", 64, 0, 1 << 30) for i in range(9)], grows=True)
    assert lane.limit == 2 * 9 * 64


NODES = st.lists(
    st.builds(
        Node,
        st.uuids().map(str),
        st.integers(0, 9).map(float),
        st.integers(0, 4).map(float),
        st.integers(0, 99),
    )
)


@given(NODES, st.sampled_from(["auto", "cpu", "cuda"]), st.sampled_from([1.0, 0.5, 0.3]))
def test_no_node_is_in_two_lanes_and_every_slot_exists(nodes, device, fraction):
    lanes = lanes_of(Resources(device, fraction), nodes, grows=True)
    used = [node_id for lane in lanes for node_id in lane.slots]
    assert len(used) == len(set(used))
    by_id = {node.node_id: node for node in nodes}
    for lane in lanes:
        assert device in ("auto", lane.device)
        assert lane.limit >= sum(lane.slots.values())
        for node_id, count in lane.slots.items():
            node = by_id[node_id]
            assert lane.memory >= node.memory
            each = node.gpus if lane.device == "cuda" else node.cpus
            assert 0 < count * (fraction if lane.device == "cuda" else 1) <= each


def test_slices_go_where_their_file_is():
    homes, load = Homes(), Counter()
    slots = {"a": 2, "b": 2}
    sent = []
    for file in ("x", "y", "x", "y", "x", "y", "x", "y"):
        node = homes.choose([file], slots, load)
        load[node] += 1
        sent.append((file, node))
    assert len(set(sent)) == 2
    assert {node for _, node in sent} == {"a", "b"}


def test_a_file_gets_another_home_before_a_node_waits():
    homes, load = Homes(), Counter()
    for _ in range(8):
        load[homes.choose(["x"], {"a": 2, "b": 2}, load)] += 1
    assert load == {"a": 4, "b": 4}


def test_a_home_that_is_gone_is_replaced():
    homes = Homes()
    assert homes.choose(["x"], {"a": 1}, Counter()) == "a"
    assert homes.choose(["x"], {"b": 1}, Counter()) == "b"
    assert homes.choose(["x"], {}, Counter()) is None
    assert homes.choose([], {"b": 1}, Counter()) is None
