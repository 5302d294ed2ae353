"""The settings at which each algorithm learns two-digit arithmetic on the shipped bases."""

from __future__ import annotations

from typing import Any

from rlsparse_ray.experiments.runs import Run

DEFAULTS: dict[str, dict[str, Any]] = {
    "SFT": {"steps": 60, "learning_rate": 5e-5, "batch": 64},
    "DPO": {"steps": 60, "learning_rate": 1e-5, "batch": 64, "kl": 0.1},
    "SimPO": {"steps": 60, "learning_rate": 1e-5, "batch": 64, "kl": 2.0},
    "ORPO": {"steps": 60, "learning_rate": 3e-5, "batch": 64, "kl": 0.1},
    "KTO": {"steps": 60, "learning_rate": 1e-5, "batch": 64, "kl": 0.1},
    "GRPO": {"steps": 60, "learning_rate": 1e-5, "batch": 64},
    "PPO": {"steps": 60, "learning_rate": 1e-5, "batch": 64},
    "PRIME": {"steps": 60, "learning_rate": 1e-5, "batch": 64},
}
"""Fields of a run by algorithm."""


def default_run(name: str, base: str, algorithm: str, seed: int, dataset: str) -> Run:
    """Give a run of an algorithm with the settings of the table.

    Raises:
        RunError: the algorithm is not one of those in `runs.ALGORITHMS`.
    """
    settings = DEFAULTS.get(algorithm, {"steps": 1, "learning_rate": 0.0})  # Run refuses it
    return Run(name, base, algorithm, seed, dataset, **settings)
