"""A run as a corpus file says it; paths are relative to a file beside the folder models/."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlsparse_ray.experiments.runs import Run


def run_facts(run: Run) -> dict[str, Any]:
    """What a pair or a trajectory says of its run, but for the free labels."""
    return {
        "family": run.family,
        "algorithm": run.algorithm,
        "stage": run.stage,
        "dataset": run.dataset,
        "seed": run.seed,
        "on_policy": run.on_policy,
        "kl": run.kl,
        "learning_rate": run.learning_rate,
    }


def trajectory_entry(run: Run, record: Mapping[str, Any]) -> dict[str, Any]:
    """The base, the checkpoints on the way, and the tuned model itself as the last one.

    Args:
        run: one that kept checkpoints.
        record: what its run.json says.
    """
    steps = {name: int(name.rpartition("-")[2]) for name in record["checkpoints"]}
    saved = [
        {"model": f"./models/{run.name}/{name}", "step": step}
        for name, step in steps.items()
        if step < run.steps
    ]
    start = {"model": f"./models/{run.base}", "step": 0}
    end = {"model": f"./models/{run.name}", "step": run.steps}
    return {"name": run.name, "checkpoints": [start, *saved, end], **run_facts(run)}
