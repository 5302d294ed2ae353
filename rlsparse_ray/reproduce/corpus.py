"""The corpus file over the runs of a study: what the main job measures. Nothing special is in it.

Everything that the claims ask of a run goes into its labels, so the store alone can answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rlsparse_ray.experiments.corpus_entries import run_facts, trajectory_entry
from rlsparse_ray.experiments.runs import Run
from rlsparse_ray.reproduce.layout import IN_FP32, WIDE, Layout
from rlsparse_ray.reproduce.study import Study

Record = Mapping[str, Any]
Entry = dict[str, Any]

AGAINST = "-against-"
"""Between the names of two tuned models that are compared with one another."""


def write_corpus(layout: Layout, study: Study, records: Mapping[str, Record]) -> Path:
    """Write the corpus of the runs that have a record, in the order of the study.

    Pairs: base and run; of an fp32 run its base in fp32 too, beside the bf16 one that makes the
    comparison a cast; of a masked run also the run of all weights and it. A run with checkpoints
    is a trajectory as well. Paths are relative to the file.

    Returns:
        The path of the file.
    """
    main = {run.name for run in study.main}
    pairs: list[Entry] = []
    for run in (*study.full, *study.masked):
        if run.name in records:
            pairs += _pairs(run, records[run.name], main)
    corpus: dict[str, Any] = {
        "version": 1,
        "settings": {"criteria": ["exact", "abs:1e-5"]},
        "pairs": pairs,
    }
    kept = [run for run in study.full if run.name in records and run.save_every]
    if kept:
        corpus["trajectories"] = [trajectory_entry(run, records[run.name]) for run in kept]
    layout.corpus.write_text(yaml.safe_dump(corpus, sort_keys=False))
    return layout.corpus


def _pairs(run: Run, record: Record, main: set[str]) -> Iterator[Entry]:
    study = "masked" if run.mask else "main" if run.name in main else "variant"
    facts = run_facts(run) | {"steps": run.steps, "labels": _labels(run, record, study)}
    tuned = f"./models/{run.name}"
    yield {"name": run.name, "base": f"./models/{run.base}", "tuned": tuned, **facts}
    if run.precision == "fp32":
        labels = _labels(run, record, "in-fp32")
        wide = {"base": f"./models/{run.base}{WIDE}", "tuned": tuned}
        yield {"name": f"{run.name}{IN_FP32}", **wide, **facts, "labels": labels}
    if run.mask_of:
        yield {
            "name": f"{run.mask_of}{AGAINST}{run.mask}",
            "base": f"./models/{run.mask_of}",
            "tuned": tuned,
            "labels": {"study": "against-full"},
        }


def _labels(run: Run, record: Record, study: str) -> dict[str, str]:
    labels = {
        "study": study,
        "precision": run.precision,
        "optimizer": run.optimizer,
        "clipping": str(run.clipping).lower(),
        "updates_per_sample": str(run.updates_per_sample),
        "data": run.data,
        "reward_before": f"{record['reward_before']:.4f}",
        "reward_after": f"{record['reward_after']:.4f}",
    }
    if run.mask and run.mask_of:
        labels |= {"mask": run.mask, "mask_of": run.mask_of}
    return labels
