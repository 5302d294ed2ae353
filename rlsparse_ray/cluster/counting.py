"""The overlaps of all pairs of masks as Ray tasks."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rlsparse_ray.cluster.session import ray_session
from rlsparse_ray.cluster.works import run_works
from rlsparse_ray.placement import Resources
from rlsparse_ray.population.overlap import overlap_unit
from rlsparse_ray.population.overlap_commit import CommitUnit, commit_overlaps, commit_units
from rlsparse_ray.population.overlap_plan import OverlapPlan, begin, plan_overlaps
from rlsparse_ray.population.overlap_units import Unit, unit_key
from rlsparse_ray.progress import Bar, Progress, silent
from rlsparse_ray.storage.files import address_of, store_errors
from rlsparse_ray.storage.lease import hold
from rlsparse_ray.store import Store


def count_overlaps(
    store_root: str,
    criterion: str = "exact",
    fraction: float = 1.0,
    *,
    bar: Bar,
    resources: Resources | None = None,
    address: str | None = None,
    wait: float = 0.0,
) -> OverlapPlan:
    """Find the overlaps that the store lacks and count them, alone on the store.

    Args:
        store_root: the store.
        criterion: the rule that says "changed".
        fraction: of the blocks that are counted.
        bar: shows how far it is.
        resources: where it runs; none: on CPUs.
        address: of a Ray cluster; none: this machine.
        wait: seconds to wait while another one uses the store.

    Returns:
        What was done.

    Raises:
        LeaseError: another one uses the store.
        StoreError: the store cannot be read or written; what is finished is kept.
        ValueError: no such share of the blocks.
        RlsparseError: as `overlaps`.
    """
    # two passes at once would write one file of overlaps over the other's
    with hold(store_root, "overlap", wait=wait) as lease:
        plan = plan_overlaps(store_root, criterion, fraction)
        bar(
            "overlap",
            plan.nbytes,
            lambda advance: overlaps(
                plan,
                store_root,
                resources=resources,
                address=address,
                progress=lease.guard(advance),
            ),
        )
    return plan


def overlaps(
    plan: OverlapPlan,
    store_root: str,
    *,
    resources: Resources | None = None,
    address: str | None = None,
    progress: Progress = silent,
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
    on_cpu = replace(resources, device="cpu")
    counting = on_cpu if resources.device == "auto" else resources
    phases: tuple[tuple[Callable[..., Any], Sequence[Any], Resources], ...] = (
        (lambda unit, device: overlap_unit(unit, root, device), plan.units, counting),
        (lambda unit, device: commit_overlaps(unit, root), commit_units(plan), on_cpu),
    )
    for function, works, asked in phases:
        run_works(
            works,
            function,
            resources=asked,
            memory=lambda work: work.memory,
            title=_title,
            collect=lambda work, result: progress(work.nbytes),
        )


def _title(work: Unit | CommitUnit) -> str:
    if isinstance(work, CommitUnit):
        return f"overlaps of {work.commits[0].pair_b}, ..."
    return f"unit {unit_key(work)}"
