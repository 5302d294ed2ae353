"""The slices of a plan as Ray tasks."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlsparse_ray.cluster.metrics import meters
from rlsparse_ray.cluster.session import MAX_RETRIES, Room, ray_session
from rlsparse_ray.cluster.tasks import drain, get, task
from rlsparse_ray.commit import COMMIT_MEMORY, commit_pair, relabel_pair
from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.lineage import Lineage, lineage_of
from rlsparse_ray.placement import Homes, Lane, Resources
from rlsparse_ray.plan import Plan, PlannedPair, Slice
from rlsparse_ray.progress import Progress, silent
from rlsparse_ray.runs import Commit, Ledger, LineageCheck, Outcome
from rlsparse_ray.slices import SliceReport, extract_slice
from rlsparse_ray.storage.files import address_of
from rlsparse_ray.store import Store
from rlsparse_ray.upkeep import watch
from rlsparse_ray.weights import FileRef


def extract(
    plan: Plan,
    store_root: str,
    *,
    resources: Resources | None = None,
    address: str | None = None,
    cache: bool = False,
    progress: Progress = silent,
) -> Outcome:
    """Do what `plan` says that the store does not hold yet.

    With `cache`, files of the hub that several slices read are kept whole in the local cache of
    each node, and not read by ranges; slices are sent where their files are.

    What is finished of a pair that fails is kept too: a renewed token, or room on a disk, and the
    next run goes on with it.

    Raises:
        StoreError: the store cannot be written; what is finished is kept for the next run.
        RlsparseError: Ray cannot be reached, or a worker died MAX_RETRIES times on one slice.
    """
    store_root = address_of(store_root)
    store = Store.create(store_root)
    outcome = Outcome(failed=dict(plan.failed))
    committed, waiting = store.committed(), store.staging()
    for pair in plan.pairs:
        if pair.pair_id in committed:
            changed = relabel_pair(pair, store_root)
            (outcome.relabelled if changed else outcome.unchanged).append(pair.entry.name)
            if pair.pair_id in waiting:
                store.drop_staging(pair.pair_id)
    todo = plan.without(committed)
    progress(plan.nbytes - todo.nbytes)
    if todo.pairs:
        with ray_session(address):
            room = Room(resources or Resources())
            kept = todo.shared_files if cache else frozenset()
            with watch.announced(store, todo):
                _Run(todo, store, outcome, room=room, kept=kept, progress=progress).finish()
    watch.forget_finished(store)
    return outcome


@dataclass(frozen=True, slots=True)
class _Flight:
    """Work in flight, the lane in which it counts, and the node to which it was sent."""

    work: Slice | LineageCheck | Commit
    device: str = ""
    node: str = ""


class _Run:
    """The slices of a plan in flight, and the commits that follow them."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        outcome: Outcome,
        *,
        room: Room,
        kept: frozenset[FileRef],
        progress: Progress,
    ) -> None:
        self.ledger = Ledger(plan, outcome)
        self.store = store
        self.kept = kept
        self.room = room
        self.progress = progress
        self.homes = Homes()
        self.load: Counter[str] = Counter()
        self.flying: dict[Any, _Flight] = {}
        self.extract = {d: task(_slice_function(d), room.resources, d) for d in ("cpu", "cuda")}
        self.commit = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(commit_pair)
        self.sample = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(_lineage_task)

    def finish(self) -> None:
        """Run everything."""
        drain(self.flying, self._submit, self._collect)

    def _submit(self) -> bool:
        lane = self.room.lane() if self.ledger.waits else None
        if lane is None:
            return False
        skipped = self.ledger.skipped
        work = self.ledger.take()
        if self.ledger.skipped > skipped:
            self.progress(self.ledger.skipped - skipped)
        if isinstance(work, LineageCheck):
            self._fly(self.sample.remote(work.pair), _Flight(work, lane.device))
        elif work is not None:
            self._fly(*self._send(work, lane))
        return True

    def _fly(self, ref: Any, flight: _Flight) -> None:
        self.flying[ref] = flight
        self.room.flying[flight.device] += 1
        self.load[flight.node] += 1

    def _send(self, piece: Slice, lane: Lane) -> tuple[Any, _Flight]:
        kept = self.kept & piece.files.keys()
        options: dict[str, Any] = {"memory": min(piece.memory, lane.memory)}
        # the files that most pairs need are those of the base
        wanted = sorted(kept, key=lambda file: (-len(piece.files[file]), file.path))
        home = self.homes.choose(wanted, lane.slots, self.load)
        if home:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(home, soft=True)
        ref = self.extract[lane.device].options(**options).remote(piece, self.store.root, kept)
        return ref, _Flight(piece, lane.device, home or "")

    def _collect(self, ref: Any, flight: _Flight) -> None:
        self.room.flying[flight.device] -= 1
        self.load[flight.node] -= 1
        try:
            result, work = get(ref, flight.work.title), flight.work
        except TaskCancelledError:
            self.progress(flight.work.nbytes if isinstance(flight.work, Slice) else 0)
            return
        failed = len(self.ledger.dropped)
        commits: list[Commit] = []
        if isinstance(work, Commit):
            self.ledger.committed(work)
        elif isinstance(work, LineageCheck):
            commits = self.ledger.judged(work, result)
        elif isinstance(work, Slice):
            self.progress(work.nbytes)
            commits = self.ledger.done(work, result)
        if len(self.ledger.dropped) > failed:
            self._cancel()
        meters().stands(self.ledger.waits, len(self.ledger.dropped) - failed)
        for commit in commits:
            facts = (commit.pair, commit.keys, self.store.root, commit.lineage_score)
            memory = min(COMMIT_MEMORY, self.room.memory)
            self._fly(self.commit.options(memory=memory).remote(*facts), _Flight(commit))

    def _cancel(self) -> None:
        """Slices all of whose pairs have failed: each might wait minutes for a dead server."""
        for ref, flight in self.flying.items():
            if isinstance(flight.work, Slice) and self.ledger.dropped.issuperset(
                flight.work.pair_ids
            ):
                ray.cancel(ref)


def _lineage_task(pair: PlannedPair) -> Lineage | CheckpointError:
    """A checkpoint that cannot be read fails its pair, not the run."""
    try:
        return lineage_of(pair)
    except CheckpointError as error:
        return error


def _slice_function(device: str) -> Callable[[Slice, str, frozenset[FileRef]], SliceReport]:
    def slice_task(piece: Slice, root: str, kept: frozenset[FileRef]) -> SliceReport:
        started = time.monotonic()
        report = extract_slice(piece, root, device, kept)
        meters().slice_done(report.nbytes, time.monotonic() - started)
        return report

    return slice_task
