"""The overlaps of all pairs of masks as Ray tasks."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rlsparse_ray.cluster.session import Room, ray_session
from rlsparse_ray.cluster.tasks import Progress, drain, get, task
from rlsparse_ray.placement import Resources
from rlsparse_ray.population.overlap import overlap_unit
from rlsparse_ray.population.overlap_commit import CommitUnit, commit_overlaps, commit_units
from rlsparse_ray.population.overlap_plan import OverlapPlan, begin
from rlsparse_ray.population.overlap_units import Unit, unit_key
from rlsparse_ray.storage.files import address_of, store_errors
from rlsparse_ray.store import Store


def overlaps(
    plan: OverlapPlan,
    store_root: str,
    *,
    resources: Resources | None = None,
    address: str | None = None,
    progress: Progress = lambda nbytes: None,
) -> None:
    """Count the overlaps that `plan` found missing; finished units are not done again.

    Reading and decompressing masks is the limit and not counting, so `device` auto is the CPU.

    Raises:
        StoreError: the store cannot be read or written; what is finished is kept.
        RlsparseError: Ray cannot be reached, or a worker died MAX_RETRIES times on one unit.
    """
    store_root = address_of(store_root)
    store = Store.open(store_root)
    with store_errors(store_root):
        if not plan.wanted:
            store.files.remove(plan.staging)
            return
        begin(plan, store)
    with ray_session(address):
        _count_all(plan, store_root, resources or Resources("cpu"), progress)
    with store_errors(store_root):
        store.files.remove(plan.staging)


def _count_all(plan: OverlapPlan, root: str, resources: Resources, progress: Progress) -> None:
    if resources.device == "auto":
        resources = replace(resources, device="cpu")
    phases: tuple[tuple[Any, Sequence[Unit | CommitUnit], Resources], ...] = (
        (_unit_function(resources.device), plan.units, resources),
        (commit_overlaps, commit_units(plan), replace(resources, device="cpu")),
    )
    for function, works, asked in phases:
        _map(function, works, asked, root, progress)


def _map(
    function: Callable[..., Any],
    works: Sequence[Unit | CommitUnit],
    resources: Resources,
    root: str,
    progress: Progress,
) -> None:
    """Run a function on each of some works."""
    remote = task(function, resources, resources.device)
    room, waiting = Room(resources), deque(works)
    flying: dict[Any, Unit | CommitUnit] = {}

    def submit() -> bool:
        lane = room.lane() if waiting else None
        if lane is None:
            return False
        work = waiting.popleft()
        room.flying[lane.device] += 1
        memory = min(work.memory, lane.memory)
        flying[remote.options(memory=memory).remote(work, root)] = work
        return True

    def collect(ref: Any, work: Unit | CommitUnit) -> None:
        get(ref, _title(work))
        room.flying[resources.device] -= 1
        progress(work.nbytes)

    drain(flying, submit, collect)


def _unit_function(device: str) -> Callable[[Unit, str], int]:
    def unit_task(unit: Unit, root: str) -> int:
        return overlap_unit(unit, root, device)

    return unit_task


def _title(work: Unit | CommitUnit) -> str:
    if isinstance(work, CommitUnit):
        return f"overlaps of {work.commits[0].pair_b}, ..."
    return f"unit {unit_key(work)}"
