"""Where slices go: how many fit on which nodes, on which device, and how much memory they ask for.

Nodes come and go while a run lasts; whoever runs slices says which there are now. Knows no Ray.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from rlsparse_ray.errors import RlsparseError

AHEAD = 64
"""Slices submitted to a cluster that may grow: its autoscaler only sees what waits there."""

UNLIMITED = 1 << 62
"""Bytes."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a slice asks of a node.

    `device` auto takes the GPUs of nodes that have some, and the CPUs of nodes that have none:
    the bits are the same. `gpu_fraction` 0.25 puts four slices on one GPU.
    """

    device: str = "auto"
    gpu_fraction: float = 1.0
    cpus: float = 1.0

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise RlsparseError(f"--device {self.device}: unknown; use --device auto, cpu or cuda")


@dataclass(frozen=True, slots=True)
class Node:
    """What a node offers in all, whether it is taken or not; memory in bytes."""

    node_id: str
    cpus: float
    gpus: float
    memory: int


@dataclass(frozen=True, slots=True)
class Lane:
    """The nodes on which slices run on one device."""

    device: str
    """cpu or cuda."""
    slots: Mapping[str, int] = field(default_factory=dict)
    """Slices that fit at once, by node_id."""
    limit: int = 0
    """Slices in flight, at most."""
    memory: int = UNLIMITED
    """Bytes that a slice may ask for: more than the largest node has would wait for ever."""


def lanes_of(resources: Resources, nodes: Sequence[Node], *, grows: bool) -> list[Lane]:
    """The lanes, the one to fill first in front.

    Args:
        resources: what a slice asks for.
        nodes: those that are there now.
        grows: nodes may still come, so that slices are submitted before there is room for them.

    Raises:
        RlsparseError: no slice can ever run: nothing fits, and no node will come.
    """
    with_gpu = [node for node in nodes if node.gpus > 0]
    takes_gpu = resources.device == "cuda" or (resources.device == "auto" and with_gpu)
    lanes = []
    if takes_gpu:
        # a share of a GPU lies within one GPU: 0.4 fits twice on each and not five times on two
        each = int(1 / resources.gpu_fraction + 1e-9)
        lanes.append(_lane("cuda", {n.node_id: int(n.gpus) * each for n in with_gpu}, nodes))
    if resources.device != "cuda":
        rest = [node for node in nodes if not (takes_gpu and node.gpus > 0)]
        fits = {node.node_id: int(node.cpus / resources.cpus) for node in rest}
        lanes.append(_lane("cpu", fits, nodes))
    return _limited([lane for lane in lanes if lane.slots] or lanes[:1], resources, grows)


def _lane(device: str, fits: Mapping[str, int], nodes: Sequence[Node]) -> Lane:
    slots = {node_id: count for node_id, count in fits.items() if count > 0}
    memory = max((n.memory for n in nodes if n.node_id in slots), default=0)
    return Lane(device, slots, memory=memory or UNLIMITED)


def _limited(lanes: list[Lane], resources: Resources, grows: bool) -> list[Lane]:
    """Twice as many in flight as fit, so that no node waits for the driver.

    CPUs beside GPUs get no more than fit: what they are slow to do is left to the GPUs, and Ray
    puts what waits for a CPU on a node with GPUs.
    """
    first, *others = lanes
    if not first.slots and not grows:
        raise RlsparseError(lacking(resources))
    ahead = AHEAD if grows else 0
    limit = max(2 * sum(first.slots.values()), ahead)
    return [
        Lane(first.device, first.slots, limit, first.memory),
        *(Lane(o.device, o.slots, sum(o.slots.values()), o.memory) for o in others),
    ]


def lacking(resources: Resources) -> str:
    """That no node can run a slice, and what to do."""
    if resources.device == "cuda":
        return "--device cuda: the Ray cluster has no GPU; use --device cpu or auto"
    return f"the Ray cluster has no node with {resources.cpus:g} CPUs, which a slice asks for"


class Homes:
    """Nodes that keep a file, so that slices which read it are sent where it is already.

    A file gets one more home when all of its homes have as much to do as they may wait for:
    downloading it again is cheaper than a node that waits.
    """

    def __init__(self) -> None:
        self._homes: dict[object, list[str]] = defaultdict(list)

    def choose(
        self, files: Collection[object], slots: Mapping[str, int], load: Counter[str]
    ) -> str | None:
        """The node for a slice that reads `files`, the most important in front.

        Args:
            files: what the slice would find at home.
            slots: slices that fit, by node_id; nodes that are gone are not in it.
            load: slices in flight, by node_id.

        Returns:
            None if there is nothing to keep or no node.
        """
        if not files or not slots:
            return None
        room = [node for node in slots if load[node] < 2 * slots[node]] or list(slots)
        at_home = {node: sum(node in self._homes[f] for f in files) for node in room}
        best = max(room, key=lambda node: (at_home[node], -load[node] / slots[node]))
        for file in files:
            if best not in self._homes[file]:
                self._homes[file].append(best)
        return best
