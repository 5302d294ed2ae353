"""A real Ray cluster of several nodes on this machine, of which parts can be killed."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from ray.cluster_utils import Cluster

SETTINGS = {
    # a node counts as dead after a second and not after half a minute
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
    "gcs_rpc_server_reconnect_timeout_s": 5,
}
STORE = 80 << 20
"""Bytes of shared memory a node: slices and reports are kilobytes."""


class Nodes:
    """A head that only keeps the books, and as many workers as are added, of one CPU each."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.cluster = Cluster(shutdown_at_exit=False)
        self._add(num_cpus=0, _system_config=SETTINGS)

    @property
    def address(self) -> str:
        """What drivers connect to."""
        return str(self.cluster.gcs_address)

    def add(self, count: int = 1, **asked: Any) -> None:
        """Start further nodes and wait until they have joined."""
        for _ in range(count):
            self._add(**{"num_cpus": 1} | asked)

    def workers(self, title: str) -> list[psutil.Process]:
        """Processes of this cluster that are doing such a task now."""
        found = []
        for node in self.cluster.list_all_nodes():
            for process in _tree(node):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    if title in " ".join(process.cmdline()):
                        found.append(process)
        return found

    def kill_node(self) -> None:
        """One of the nodes that work: its raylet and everything that runs on it, at once."""
        node = next(iter(self.cluster.worker_nodes))
        processes = _tree(node)
        self.cluster.remove_node(node, allow_graceful=False)
        _kill(processes)

    def kill_head(self) -> None:
        """The process that knows the cluster, and the raylet that drivers talk to."""
        _kill(_tree(self.cluster.head_node))

    def close(self) -> None:
        """Nothing of it survives."""
        nodes = self.cluster.list_all_nodes()
        processes = [process for node in nodes for process in _tree(node)]
        for node in [*self.cluster.worker_nodes, self.cluster.head_node]:
            self.cluster.remove_node(node, allow_graceful=False)
        _kill(processes)

    def _add(self, **asked: Any) -> None:
        self.cluster.add_node(
            include_dashboard=False, object_store_memory=STORE, temp_dir=self._folder, **asked
        )


@contextmanager
def nodes(count: int, **asked: Any) -> Iterator[Nodes]:
    """A head and `count` nodes that work, each with what is `asked` for."""
    logging.getLogger("ray").setLevel(logging.WARNING)
    # sockets need a short path
    with tempfile.TemporaryDirectory(prefix="drill-", dir="/tmp", ignore_cleanup_errors=True) as at:
        made = Nodes(at)
        try:
            made.add(count, **asked)
            yield made
        finally:
            made.close()


def _tree(node: Any) -> list[psutil.Process]:
    found = []
    for infos in node.all_processes.values():
        for info in infos:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(info.process.pid)
                found += [process, *process.children(recursive=True)]
    return found


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)
