"""The demo: train real models, extract their masks, ask the first questions."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from rlsparse_ray import console, sql
from rlsparse_ray.cluster import count_overlaps, extract
from rlsparse_ray.cluster.spectra import update_spectra
from rlsparse_ray.compare.spectra.options import SpectraOptions
from rlsparse_ray.corpus import load_corpus
from rlsparse_ray.demo.models import make_models, read_runs
from rlsparse_ray.entries import TrajectoryPair
from rlsparse_ray.errors import RlsparseError
from rlsparse_ray.plan import make_plan
from rlsparse_ray.report import write_report

_SHOWN: tuple[tuple[str, dict[str, str], tuple[str, ...]], ...] = (
    ("sparsity_by_pair", {}, ("name", "algorithm", "numel", "changed", "density", "sparsity")),
    ("sparsity_by_pair_and_kind", {}, ()),
    (
        "overlap_lifts",
        {"shift": "yes"},
        (
            "name_a",
            "name_b",
            "o1",
            "o2",
            "lift_uniform",
            "lift_tensor",
            "lift_margins",
            "lift_shift",
            "lift_magnitude",
            "standard_error_magnitude",
        ),
    ),
    (
        "trajectory",
        {},
        (
            "trajectory",
            "step",
            "sparsity_from_start",
            "sparsity_consecutive",
            "never_touched_share",
            "touched_and_back_share",
            "kept_share",
        ),
    ),
    (
        "temporal_locality",
        {},
        (
            "trajectory",
            "step",
            "moved",
            "moved_again",
            "temporal_locality",
            "density_of_touched_before",
            "lift_uniform",
        ),
    ),
)
"""Queries that the demo shows, their parameters, and the columns shown (none: all but ids)."""


_MEASURED = "numel < 100000 OR layer IN (0, 10, 20)"
"""Whose ranks are measured: all matrices of the tiny models, 42 of the 422 of the two SmolLM2 runs,
which take 20 s on two cores."""


@dataclass(frozen=True, slots=True)
class Made:
    """What the demo leaves behind, and how many seconds it took."""

    corpus: Path
    store: Path
    report: Path
    seconds: float


def make_demo(folder: Path, *, smollm: bool) -> Made:
    """Make what is missing under `folder`: models, the store, its overlaps and ranks, the report.

    Raises:
        RlsparseError: a training process failed, or a pair could not be extracted.
    """
    started = time.perf_counter()
    corpus, store, page = _models(folder, smollm), folder / "store", folder / "report.html"
    plan = make_plan(load_corpus(corpus))
    outcome = console.with_progress(
        "extract", plan.nbytes, lambda advance: extract(plan, str(store), progress=advance)
    )
    if not outcome.ok:
        raise RlsparseError(f"pairs failed: {outcome.failed}")
    count_overlaps(str(store), bar=console.with_progress)
    _measure_ranks(str(store))
    write_report(store, page)
    return Made(corpus, store, page, time.perf_counter() - started)


def _measure_ranks(store: str) -> None:
    outcome = update_spectra(
        store,
        SpectraOptions(),
        bar=partial(console.with_progress, shown=console.flops),
        pairs="trajectory IS NULL",
        where=_MEASURED,
    )
    if outcome.failed:
        raise RlsparseError(f"ranks of pairs failed: {outcome.failed}")


def print_demo(made: Made) -> None:
    """Print what the runs learned, the answers of a few queries, and what to do next."""
    entries = load_corpus(made.corpus).entries()
    steps = {entry.name for entry in entries if isinstance(entry, TrajectoryPair)}
    _print_rewards(made.corpus.parent, {entry.name for entry in entries})
    with sql.connect(made.store) as con:
        for name, params, columns in _SHOWN:
            answer = _without(sql.run_query(con, name, params), steps)
            shown = columns or [c for c in answer.column_names if c != "pair_id"]
            console.print_table(
                answer.select(list(shown)), f"{name}: {sql.queries()[name].summary}"
            )
    seconds = console.duration(made.seconds)
    console.out.print(
        f"corpus: {made.corpus}\nstore:  {made.store}\nreport: {made.report}\nmade in {seconds}"
    )
    console.suggest(
        ["python", "-m", "webbrowser", made.report.resolve().as_uri()],
        ["rlsparse", "query", "--store", str(made.store)],
        ["rlsparse", "sql", "FROM pairs", "--store", str(made.store)],
    )


def _without(answer: pa.Table, names: set[str]) -> pa.Table:
    """The rows that are about none of the pairs `names`: a trajectory has many of them."""
    columns = [answer[c].to_pylist() for c in answer.column_names if c.startswith("name")]
    kept = [i for i, found in enumerate(zip(*columns, strict=True)) if names.isdisjoint(found)]
    return answer.take(kept) if columns else answer


def _models(folder: Path, smollm: bool) -> Path:
    try:
        return make_models(folder, smollm=smollm, report=console.notes.print)
    except RuntimeError as error:
        raise RlsparseError(str(error)) from error


def _print_rewards(folder: Path, names: set[str]) -> None:
    rows = [_reward(record) for record in read_runs(folder) if record["run"]["name"] in names]
    console.print_table(pa.Table.from_pylist(rows), "What each run learned")


def _reward(record: dict[str, Any]) -> dict[str, Any]:
    run = record["run"]
    return {
        "name": run["name"],
        "algorithm": run["algorithm"],
        "dataset": run["dataset"],
        "learning_rate": run["learning_rate"],
        "steps": run["steps"],
        "reward_before": record["reward_before"],
        "reward_after": record["reward_after"],
        "seconds": record["seconds"],
    }
