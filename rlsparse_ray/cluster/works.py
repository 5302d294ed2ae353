"""Many works of one kind as Ray tasks, one task a work."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ray.exceptions import RayTaskError

from rlsparse_ray.cluster.session import Room, ray_session
from rlsparse_ray.cluster.tasks import drain, get, task
from rlsparse_ray.errors import RlsparseError
from rlsparse_ray.placement import Lane, Resources

W = TypeVar("W")
R = TypeVar("R")


def run_works(
    works: Sequence[W],
    function: Callable[[W, str], R],
    *,
    resources: Resources,
    memory: Callable[[W], int],
    title: Callable[[W], str],
    collect: Callable[[W, R], None] = lambda work, result: None,
    address: str | None = None,
    keep_going: bool = False,
) -> dict[str, str]:
    """Call `function(work, device)` on each work, the first ones first.

    Args:
        works: they and the function are pickled; a work whose worker or node died is done again.
        function: told on which device it runs, cpu or cuda (then with a GPU, or its share, alone).
        resources: what a work asks for.
        memory: bytes that a work asks for.
        title: a work in words, for messages.
        collect: called here, in the driver, with each work and its result as it ends.
        address: Ray cluster to run on; none: that of RAY_ADDRESS, else this machine.
        keep_going: an error fails its own work and not the others.

    Returns:
        With `keep_going`, titles of the works that failed, and why.

    Raises:
        RlsparseError: a work raised it, its worker died too often, no node can run any, or Ray
            cannot be reached.
    """
    failed: dict[str, str] = {}
    waiting = deque(works)
    flying: dict[Any, tuple[W, Lane]] = {}

    def submit() -> bool:
        lane = room.lane() if waiting else None
        if lane is None:
            return False
        work = waiting.popleft()
        room.flying[lane.device] += 1
        options = {"memory": min(memory(work), lane.memory)}
        flying[remote[lane.device].options(**options).remote(work, lane.device)] = work, lane
        return True

    def land(ref: Any, flight: tuple[W, Lane]) -> None:
        work, lane = flight
        room.flying[lane.device] -= 1
        try:
            result = get(ref, title(work))
        except RayTaskError as error:
            if not keep_going:
                raise
            failed[title(work)] = f"{type(error.cause).__name__}: {error.cause}"
        except RlsparseError as error:
            if not keep_going:
                raise
            failed[title(work)] = str(error)
        else:
            collect(work, result)

    if works:
        with ray_session(address):
            room = Room(resources)
            remote = {device: task(function, resources, device) for device in ("cpu", "cuda")}
            drain(flying, submit, land)
    return failed
