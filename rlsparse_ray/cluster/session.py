"""The connection to Ray, and what its nodes have room for."""

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from rlsparse_ray.errors import RlsparseError
from rlsparse_ray.placement import Lane, Node, Resources, lacking, lanes_of

LOOK_SECONDS = 2.0
"""Between two looks at which nodes there are."""

MAX_RETRIES = 3
"""Times that Ray repeats a task whose worker or node died; a bad checkpoint is never repeated."""

ALONE = "rlsparse_alone"
"""A resource by which a Ray that was started for one run is known: no node will join it."""

_log = logging.getLogger(__name__)


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """A connection to the cluster at `address`, else to the one of RAY_ADDRESS, else a local one.

    A Ray that is already initialised in this process is used and left running.
    """
    if ray.is_initialized():
        yield
        return
    # on Linux this keeps a local cluster on 127.0.0.1 instead of every interface
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # one full disk fails every slice in flight: the first message is enough
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # counted apart, and by default without end; whoever sends a task counts, no node need know it
    os.environ.setdefault("RAY_task_oom_retries", str(MAX_RETRIES))
    address = address or os.environ.get("RAY_ADDRESS")
    local: dict[str, Any] = {}
    if not address:
        # slices and reports are kilobytes: Ray's default would reserve 30 % of the memory
        local = {
            "include_dashboard": False,
            "object_store_memory": 256 << 20,
            "resources": {ALONE: 1},
        }
    try:
        # without "local" Ray would join a cluster that `ray start` left on this machine
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RlsparseError(f"Ray at {address or 'this machine'}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


class Room:
    """Which slices fit where, as nodes come and go: looked at again every LOOK_SECONDS.

    Raises:
        RlsparseError: no node can run a slice, and none will come.
    """

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.flying: Counter[str] = Counter()
        self._grows = ALONE not in ray.cluster_resources()
        self._look()
        if not self._lanes[0].slots:
            _log.warning(
                "%s: waiting until such a node joins; Ctrl-C if none will", lacking(resources)
            )

    @property
    def memory(self) -> int:
        """Bytes that a task may ask for: more than any node has would wait for ever."""
        return max(lane.memory for lane in self._lanes)

    def lane(self) -> Lane | None:
        """Where the next slice goes; None if enough are in flight."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._look()
        return next((lane for lane in self._lanes if self.flying[lane.device] < lane.limit), None)

    def _look(self) -> None:
        self._lanes = lanes_of(self.resources, nodes(), grows=self._grows)
        self._looked = time.monotonic()


def nodes() -> list[Node]:
    """The nodes that are alive."""
    found = [(node["NodeID"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return [
        Node(node_id, has.get("CPU", 0), has.get("GPU", 0), int(has.get("memory", 0)))
        for node_id, has in found
    ]
