"""The runs of a study as works for Ray: one run a work, made once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlsparse_ray.cluster import Resources
from rlsparse_ray.cluster.works import run_works
from rlsparse_ray.demo.smollm import task_of
from rlsparse_ray.experiments.runs import Run
from rlsparse_ray.reproduce.layout import Layout, machine
from rlsparse_ray.reproduce.study import Study, about

if TYPE_CHECKING:
    from rlsparse_ray.training import Subnetwork

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RunWork:
    """One run to train."""

    run: Run
    root: Path

    @property
    def title(self) -> str:
        """For messages."""
        return self.run.name


def train(work: RunWork, device: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train a run; for a masked one the store must hold the run that it is masked by.

    Returns:
        Its record, and the machine that made it.
    """
    from rlsparse_ray.experiments.tune import tune  # noqa: PLC0415 - imports torch

    layout, run = Layout(work.root), work.run
    record = tune(
        run,
        layout.models / run.base,
        layout.models / run.name,
        task=task_of(run.base),
        subnetwork=_subnetwork(run, layout.store),
        device=device,
    )
    return record, machine()


def _subnetwork(run: Run, store: str) -> Subnetwork | None:
    if run.mask_of is None:
        return None
    from rlsparse_ray.training import load_subnetwork  # noqa: PLC0415 - imports torch

    changed = load_subnetwork(store, run.mask_of, criterion="exact")
    if run.mask == "random":
        return changed.random(seed=run.seed)
    return changed.complement() if run.mask == "complement" else changed


def train_all(
    runs: Iterable[Run],
    layout: Layout,
    study: Study,
    *,
    resources: Resources,
    address: str | None,
    report: Report,
) -> dict[str, str]:
    """Train the runs that are not made yet, the longest first.

    Returns:
        Why which runs failed, by name.

    Raises:
        RlsparseError: Ray cannot be reached, or no node can train.
    """
    wanted = list(runs)
    missing = [run for run in wanted if layout.record(run, resources.device) is None]
    missing.sort(key=study.seconds, reverse=True)
    progress = Progress(missing, study, done=len(wanted) - len(missing))

    def collect(work: RunWork, result: tuple[dict[str, Any], dict[str, Any]]) -> None:
        record, made_on = result
        layout.note({"machine": made_on, "ended": time.time()})
        report(progress.line(work.run, record))

    return run_works(
        [RunWork(run, layout.root.absolute()) for run in missing],
        train,
        resources=resources,
        memory=lambda work: int(study.scale.memory_gib * 2**30),
        title=lambda work: work.title,
        collect=collect,
        address=address,
        keep_going=True,
    )


class Progress:
    """How many runs are made, and how long the others will take at the speed so far."""

    def __init__(self, missing: Sequence[Run], study: Study, done: int) -> None:
        self.study = study
        self.done, self.total = done, done + len(missing)
        self.left = sum(map(study.seconds, missing))
        self.worked = 0.0
        self.began = time.monotonic()

    def line(self, run: Run, record: dict[str, Any]) -> str:
        """What to say when a run is made."""
        self.done += 1
        expected = self.study.seconds(run)
        self.worked, self.left = self.worked + expected, self.left - expected
        wall = (time.monotonic() - self.began) * self.left / self.worked
        before, after = record["reward_before"], record["reward_after"]
        return (
            f"run {self.done} of {self.total}, {run.name}: reward {before:.3f} -> {after:.3f} "
            f"in {record['seconds']:.0f} s; {about(wall)} left"
        )
