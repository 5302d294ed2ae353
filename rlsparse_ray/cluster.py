"""How big: slices as Ray tasks. The only module that imports ray.

One machine is the default: Ray starts itself. On a cluster the same call takes an address, and
the store must be a place that every node sees. The driver holds plans and reports, never tensors.
"""

import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from rlsparse_ray.commit import commit_pair, relabel_pair
from rlsparse_ray.errors import RlsparseError
from rlsparse_ray.files import store_errors
from rlsparse_ray.plan import Plan, PlannedPair, Slice
from rlsparse_ray.population.overlap import overlap_unit
from rlsparse_ray.population.overlap_commit import CommitUnit, commit_overlaps, commit_units
from rlsparse_ray.population.overlap_plan import OverlapPlan, begin
from rlsparse_ray.population.overlap_units import Unit, unit_key
from rlsparse_ray.slices import SliceReport, extract_slice
from rlsparse_ray.store import Store

MAX_RETRIES = 3
"""Times that Ray repeats a slice whose worker or node died; a bad checkpoint is never repeated."""

Progress = Callable[[int], None]
"""Called with the bytes that have been done since the last call."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a slice asks of a node.

    `device` auto takes GPUs if the cluster has any. `gpu_fraction` 0.25 puts four slices on one.
    """

    device: str = "auto"
    gpu_fraction: float = 1.0
    cpus: float = 1.0

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise RlsparseError(f"--device {self.device}: unknown; use --device auto, cpu or cuda")


@dataclass(slots=True)
class Outcome:
    """What an extraction did: names of pairs, and why some failed."""

    committed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    relabelled: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    nbytes: int = 0

    @property
    def ok(self) -> bool:
        """Whether no pair failed."""
        return not self.failed


def extract(
    plan: Plan,
    store_root: str,
    *,
    resources: Resources | None = None,
    address: str | None = None,
    progress: Progress = lambda nbytes: None,
) -> Outcome:
    """Do what `plan` says that the store does not hold yet.

    Raises:
        StoreError: the store cannot be written; what is finished is kept for the next run.
        RlsparseError: Ray cannot be reached, or a worker died MAX_RETRIES times on one slice.
    """
    store_root = _everywhere(store_root)
    store = Store.create(store_root)
    outcome = Outcome(failed=dict(plan.failed))
    committed = store.committed()
    for pair in plan.pairs:
        if pair.pair_id in committed:
            changed = relabel_pair(pair, store_root)
            (outcome.relabelled if changed else outcome.unchanged).append(pair.entry.name)
            store.drop_staging(pair.pair_id)
    todo = plan.without(committed)
    progress(plan.nbytes - todo.nbytes)
    if todo.pairs:
        with ray_session(address):
            _Run(todo, store, outcome, resources or Resources(), progress).finish()
    return outcome


def _everywhere(store_root: str) -> str:
    """The store's path for workers, which need not run in the driver's folder."""
    return str(Path(store_root).absolute())


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
    address = address or os.environ.get("RAY_ADDRESS")
    local: dict[str, Any] = {}
    if not address:
        # slices and reports are kilobytes: Ray's default would reserve 30 % of the memory
        local = {"include_dashboard": False, "object_store_memory": 256 << 20}
    try:
        # without "local" Ray would join a cluster that `ray start` left on this machine
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RlsparseError(f"Ray at {address or 'this machine'}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


class _Run:
    """The slices of a plan in flight, and the commits that follow them."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        outcome: Outcome,
        resources: Resources,
        progress: Progress,
    ) -> None:
        self.store = store
        self.outcome = outcome
        self.progress = progress
        self.root = str(store.root)
        self.pairs = {pair.pair_id: pair for pair in plan.pairs}
        self.keys = _keys(plan)
        self.missing = {pair_id: len(keys) for pair_id, keys in self.keys.items()}
        self.dropped: set[str] = set()
        self.waiting = deque(plan.slices)
        self.flying: dict[Any, Slice | PlannedPair] = {}
        total = ray.cluster_resources()
        # never more than there is, or the slice would wait for ever
        self.memory = int(total.get("memory", 0)) or 1 << 62
        gpu = _wants_gpu(resources.device, total)
        self.slots = _slots(resources, total, gpu)
        self.extract = _slice_task(resources, gpu)
        self.commit = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(commit_pair)

    def finish(self) -> None:
        """Run everything; twice as many slices in flight as fit, so that no node waits."""
        _drain(self.waiting, self.flying, self.slots, self._submit, self._collect)
        # only now: slices in flight still write files of a pair that has failed in another
        with store_errors(self.root):
            for pair_id in self.dropped:
                self.store.drop_uncommitted(pair_id)

    def _submit(self, piece: Slice) -> None:
        wanted = [i for i in piece.pair_ids if self.pairs[i].entry.name not in self.outcome.failed]
        whole, piece = piece, piece.only(wanted)
        self.progress(whole.nbytes - piece.nbytes)
        if piece.tensors:
            task = self.extract.options(memory=min(piece.memory, self.memory))
            self.flying[task.remote(piece, self.root)] = piece

    def _collect(self, ref: Any, work: Slice | PlannedPair) -> None:
        result = _get(ref, work)
        if isinstance(work, PlannedPair):
            self.outcome.committed.append(work.entry.name)
            return
        self._account(work, result)

    def _account(self, piece: Slice, report: SliceReport) -> None:
        self.outcome.nbytes += report.nbytes
        self.progress(piece.nbytes)
        for pair_id, message in report.failed.items():
            self.outcome.failed[self.pairs[pair_id].entry.name] = message
            self.dropped.add(pair_id)
        for pair_id in set(piece.pair_ids) - set(report.failed):
            self.missing[pair_id] -= 1
            if not self.missing[pair_id]:
                pair = self.pairs[pair_id]
                self.flying[self.commit.remote(pair, self.keys[pair_id], self.root)] = pair


def _drain(
    waiting: deque[Any],
    flying: dict[Any, Any],
    slots: int,
    submit: Callable[[Any], None],
    collect: Callable[[Any, Any], None],
) -> None:
    """Submit what waits, twice as much as fits, and collect it; on an error cancel the rest.

    `submit` and `collect` may put further work into `flying`.
    """
    try:
        while waiting or flying:
            while waiting and len(flying) < 2 * slots:
                submit(waiting.popleft())
            if flying:
                done, _ = ray.wait(list(flying))
                for ref in done:
                    collect(ref, flying.pop(ref))
    except BaseException:
        for ref in flying:
            ray.cancel(ref, force=True)
        raise


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
    store_root = _everywhere(store_root)
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
    total = ray.cluster_resources()
    gpu = resources.device != "auto" and _wants_gpu(resources.device, total)
    flying: dict[Any, Any] = {}

    def collect(ref: Any, work: Unit | CommitUnit) -> None:
        _get(ref, work)
        progress(work.nbytes)

    for function, works in (
        (_unit_function("cuda" if gpu else "cpu"), plan.units),
        (commit_overlaps, commit_units(plan)),
    ):
        task = _task(function, resources, gpu and works is plan.units)

        def submit(work: Unit | CommitUnit, task: Any = task) -> None:
            flying[task.options(memory=work.memory).remote(work, root)] = work

        _drain(deque(works), flying, _slots(resources, total, gpu), submit, collect)


def _unit_function(device: str) -> Callable[[Unit, str], int]:
    def unit_task(unit: Unit, root: str) -> int:
        return overlap_unit(unit, root, device)

    return unit_task


def _keys(plan: Plan) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = defaultdict(list)
    for piece in plan.slices:
        for pair_id in piece.pair_ids:
            keys[pair_id].append(piece.key(pair_id))
    return keys


def _wants_gpu(device: str, total: dict[str, float]) -> bool:
    has_gpu = total.get("GPU", 0) > 0
    if device == "cuda" and not has_gpu:
        raise RlsparseError("--device cuda: the Ray cluster has no GPU; use --device cpu or auto")
    return device == "cuda" or (device == "auto" and has_gpu)


def _slots(resources: Resources, total: dict[str, float], gpu: bool) -> int:
    if gpu:
        return max(1, int(total["GPU"] / resources.gpu_fraction))
    return max(1, int(total.get("CPU", 1) / resources.cpus))


def _slice_task(resources: Resources, gpu: bool) -> Any:
    def slice_task(piece: Slice, root: str) -> SliceReport:
        return extract_slice(piece, root, "cuda" if gpu else "cpu")

    return _task(slice_task, resources, gpu)


def _task(function: Callable[..., Any], resources: Resources, gpu: bool) -> Any:
    """max_calls=0 keeps GPU workers: Ray's default starts a process, and CUDA, for each task.

    num_cpus=0 beside GPUs: else a node with fewer CPUs than GPU shares leaves GPUs idle.
    """
    if gpu:
        options = {"num_gpus": resources.gpu_fraction, "num_cpus": 0, "max_calls": 0}
    else:
        options = {"num_cpus": resources.cpus}
    return ray.remote(max_retries=MAX_RETRIES, **options)(function)


def _title(work: Slice | PlannedPair | Unit | CommitUnit) -> str:
    if isinstance(work, PlannedPair):
        return work.entry.name
    if isinstance(work, Slice):
        return f"slice {work.number}"
    if isinstance(work, CommitUnit):
        return f"overlaps of {work.commits[0].pair_b}, ..."
    return f"unit {unit_key(work)}"


def _get(ref: Any, work: Slice | PlannedPair | Unit | CommitUnit) -> Any:
    """The result of a task; our own errors as they were raised, Ray's with what was being done."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, RlsparseError):
            raise error.cause from None
        raise
    except RayError as error:
        what = _title(work)
        raise RlsparseError(
            f"{what}: failed {MAX_RETRIES + 1} times ({type(error).__name__}: {error}); "
            f"what is finished is kept: run again to go on"
        ) from error
