"""The way of a reproduction: bases, full runs, masks, masked runs, overlaps, spectra, claims.

Killed anywhere, the same call goes on: bases and runs that are made are used again, and so is
whatever the store holds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rlsparse_ray import console
from rlsparse_ray.cluster import Resources, count_overlaps, extract, ray_session
from rlsparse_ray.cluster.spectra import update_spectra
from rlsparse_ray.cluster.works import run_works
from rlsparse_ray.compare.spectra.options import SpectraOptions
from rlsparse_ray.corpus import load_corpus
from rlsparse_ray.errors import RlsparseError
from rlsparse_ray.experiments.runs import Run
from rlsparse_ray.plan import make_plan
from rlsparse_ray.reproduce.bases import BaseWork, is_made, make_base, widen
from rlsparse_ray.reproduce.claims import Finding, judge
from rlsparse_ray.reproduce.corpus import write_corpus
from rlsparse_ray.reproduce.evidence import Evidence, gather
from rlsparse_ray.reproduce.layout import Layout
from rlsparse_ray.reproduce.study import Study
from rlsparse_ray.reproduce.training import Report, train_all
from rlsparse_ray.storage.lease import lease_seconds

MEASURED = "labels['study'] IN ('main', 'masked') AND trajectory IS NULL"
"""The pairs whose update matrices get a rank."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reproduction found."""

    evidence: Evidence
    findings: tuple[Finding, ...]
    records: Mapping[str, Mapping[str, Any]]
    """Of the runs that were made, by name."""
    session: Mapping[str, Any]
    """When and on which machine they were made."""

    @property
    def failed(self) -> Mapping[str, str]:
        """Runs that could not be made or measured, and why."""
        return self.evidence.failed


def reproduce(
    study: Study,
    layout: Layout,
    *,
    resources: Resources,
    address: str | None = None,
    report: Report = lambda line: None,
) -> Outcome:
    """Do what of a study is not done yet, and judge the claims.

    A run that fails is named in the outcome, and the others go on.

    Raises:
        RlsparseError: a base could not be made, no run could, the store cannot be written, or Ray
            cannot be reached.
    """
    layout.models.mkdir(parents=True, exist_ok=True)
    with ray_session(address):
        way = _Way(study, layout, resources, address, report)
        try:
            way.make_bases()
            way.train("full runs", study.full)
            way.measure()
            way.train("masked runs", way.maskable())
            way.measure()
            way.count_overlaps()
            way.measure_ranks()
        finally:
            way.note_time()
    evidence = gather(layout, study, way.records(), way.pairs, way.failed)
    return Outcome(evidence, tuple(judge(evidence)), way.records(), layout.session())


@dataclass(slots=True)
class _Way:
    """The phases, and what failed on the way."""

    study: Study
    layout: Layout
    resources: Resources
    address: str | None
    report: Report
    failed: dict[str, str] = field(default_factory=dict)
    pairs: frozenset[str] = frozenset()
    """Ids of the pairs that the runs make with their bases, as their files are now."""
    trained: bool = False
    noted: float = field(default_factory=time.monotonic)
    """Until when the time is in the session's seconds."""

    def make_bases(self) -> None:
        scale = self.study.scale
        works = [BaseWork(base, self.layout.root.absolute()) for base in scale.bases]
        missing = [work for work in works if not is_made(work)]
        if missing:
            self.report(f"making {len(missing)} bases")
        failed = run_works(
            missing,
            make_base,
            resources=self.resources,
            memory=lambda work: int(scale.memory_gib * 2**30),
            title=lambda work: work.title,
            address=self.address,
            keep_going=True,
        )
        if failed:
            raise RlsparseError("; ".join(f"{title}: {why}" for title, why in failed.items()))
        for base in {run.base for run in self.study.full if run.precision == "fp32"}:
            widen(self.layout, base)

    def train(self, what: str, runs: tuple[Run, ...]) -> None:
        device = self.resources.device
        missing = sum(self.layout.record(run, device) is None for run in runs)
        self.trained = self.trained or missing > 0
        self.report(f"{what}: {missing} of {len(runs)} to train")
        self.failed |= train_all(
            runs,
            self.layout,
            self.study,
            resources=self.resources,
            address=self.address,
            report=self.told,
        )

    def told(self, line: str) -> None:
        """Note the time with every run that is made: whoever is killed next loses little of it."""
        self.note_time()
        self.report(line)

    def maskable(self) -> tuple[Run, ...]:
        """Masked runs whose full run is in the store; the others fail with it."""
        made = {run.name for run in self.study.full if run.name not in self.failed}
        for run in self.study.masked:
            if run.mask_of not in made:
                self.failed[run.name] = f"it needs the mask of {run.mask_of}, which failed"
        return tuple(run for run in self.study.masked if run.mask_of in made)

    def measure(self) -> None:
        records = self.records()
        if not records:
            why = next(iter(self.failed.items()), ("no run", "none was asked for"))
            raise RlsparseError(f"no run could be made: {': '.join(why)}")
        corpus = write_corpus(self.layout, self.study, records)
        plan = make_plan(load_corpus(corpus))
        self.pairs = frozenset(pair.pair_id for pair in plan.pairs)
        found = console.with_progress(
            "extract",
            plan.nbytes,
            lambda advance: extract(
                plan,
                self.layout.store,
                resources=self.resources,
                address=self.address,
                progress=advance,
            ),
        )
        self.failed |= found.failed

    def count_overlaps(self) -> None:
        count_overlaps(
            self.layout.store,
            bar=console.with_progress,
            address=self.address,
            wait=2 * lease_seconds(),
        )

    def measure_ranks(self) -> None:
        found = update_spectra(
            self.layout.store,
            SpectraOptions(),
            bar=partial(console.with_progress, shown=console.flops),
            pairs=MEASURED,
            resources=self.resources,
            address=self.address,
            wait=2 * lease_seconds(),
        )
        self.failed |= found.failed

    def records(self) -> dict[str, dict[str, Any]]:
        """Of the runs that are made and did not fail, in training or in measuring."""
        runs = (*self.study.full, *self.study.masked)
        found = {
            run.name: self.layout.record(run, self.resources.device)
            for run in runs
            if run.name not in self.failed
        }
        return {name: record for name, record in found.items() if record is not None}

    def note_time(self) -> None:
        """Add the time since it was last noted, in a session that trains."""
        if self.trained:
            before, now = self.layout.session().get("seconds", 0.0), time.monotonic()
            self.layout.note({"seconds": before + now - self.noted})
            self.noted = now
