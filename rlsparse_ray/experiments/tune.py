"""Make one training run: a base goes in, a tuned folder with its run.json comes out."""

# ruff: noqa: PLC0415 - torch, transformers and trl take seconds to import: only where used

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlsparse_ray import __version__
from rlsparse_ray.errors import RunError
from rlsparse_ray.experiments import checkpoints
from rlsparse_ray.experiments.assignment import Assignment
from rlsparse_ray.experiments.runs import (
    RL,
    RUN_FILE,
    Run,
    fresh_folder,
    identity,
    sha256_of,
    write_json,
)
from rlsparse_ray.experiments.tasks import ARITHMETIC, Row, Task

if TYPE_CHECKING:
    from rlsparse_ray.training import Subnetwork


def tune(
    run: Run,
    base_dir: Path,
    out_dir: Path,
    task: Task = ARITHMETIC,
    *,
    subnetwork: Subnetwork | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train one run and leave `out_dir` as a transformers folder with its run.json.

    On one machine and device, equal arguments give equal bytes.

    Args:
        run: what to train; its `base` is a label only.
        base_dir: a complete base folder (with base.json).
        out_dir: replaced as a whole when the run ends well, untouched otherwise.
        task: what to learn; two-digit arithmetic unless said otherwise.
        subnetwork: the weights to train; given exactly if `run.mask` is. All others keep their
            bits.
        device: "cpu", or "cuda" for the one GPU that the process sees.

    Returns:
        The record in run.json: what `identity` says of the run, mean reward on fixed test questions
        before and after (0 to 1, measured on the stored weights), the names of the checkpoint
        folders in order, the sha256 of the weights, the device, the version of this package, the
        seconds that all of it took, of sampled data how much was kept, and of a subnetwork its
        source, size and fingerprint.

    Raises:
        RunError: `run.mask` and `subnetwork` are not given together; no sample was of use; there
            is no such device, or more than one GPU to choose from.
        TrainingError: the subnetwork does not fit the model.
        FileNotFoundError: the base is not complete.
    """
    start = time.monotonic()
    _check_device(device)
    if (run.mask is None) != (subnetwork is None):
        found = "no subnetwork" if subnetwork is None else f"{subnetwork!r}"
        raise RunError(f"{run.name}: mask={run.mask!r}, but {found} is given")
    record = identity(run, base_dir, out_dir, task.name)
    with checkpoints.quiet(), fresh_folder(out_dir) as folder:
        rows, sampling = _preferences(run, task, base_dir, device)
        model = _train(Assignment(run, task, rows, base_dir, folder, subnetwork, device))
        checkpoints.save_run(run, model, checkpoints.load_tokenizer(base_dir), folder)
        record |= {
            "reward_before": checkpoints.score_folder(task, run, base_dir, device),
            "reward_after": checkpoints.score_folder(task, run, folder, device),
            "checkpoints": checkpoints.checkpoint_names(run),
            "sha256": sha256_of(folder / "model.safetensors"),
            "device": device,
            "rlsparse_ray": __version__,
            **sampling,
            **_described(subnetwork),
            "seconds": round(time.monotonic() - start, 1),
        }
        write_json(folder / RUN_FILE, record)
    return record


def _check_device(device: str) -> None:
    """Raise RunError unless it is the CPU or the only GPU: TRL spreads a run over all it sees."""
    import torch

    if device not in ("cpu", "cuda"):
        raise RunError(f"device {device!r} is not one of cpu, cuda")
    if device == "cuda" and (count := torch.cuda.device_count()) != 1:
        fix = "set CUDA_VISIBLE_DEVICES to one of them" if count else "use device cpu"
        raise RunError(f"device cuda: torch sees {count} GPUs, a run takes one: {fix}")


def _preferences(
    run: Run, task: Task, base_dir: Path, device: str
) -> tuple[list[Row], dict[str, Any]]:
    if run.data == "given":
        rows = task.preferences(run)
        # Tokenising all 8,000 took ORPO's trainer longer than 30 steps. Twice as many as are read,
        # so that seeds differ in what they read.
        return rows if run.algorithm in RL else rows[: 2 * run.steps * run.batch], {}
    from rlsparse_ray.experiments.sampled import sampled_preferences

    return sampled_preferences(run, task, base_dir, device)


def _train(given: Assignment) -> Any:
    if given.run.algorithm in ("PPO", "PRIME"):
        from rlsparse_ray.experiments import actor

        return actor.train(given)
    from rlsparse_ray.experiments import trl_trainers

    return trl_trainers.train(given)


def _described(subnetwork: Subnetwork | None) -> dict[str, Any]:
    if subnetwork is None:
        return {}
    known = {name: getattr(subnetwork, name) for name in ("source", "size", "numel", "fingerprint")}
    return {"subnetwork": known}


def tune_named(runs: Sequence[Run], task: Task = ARITHMETIC) -> None:
    """Run the command line of a module that trains some of `runs`, one after another."""
    parser = argparse.ArgumentParser(description="Train the named runs one after another.")
    parser.add_argument("--models", type=Path, required=True, help="folder of bases and results")
    parser.add_argument("names", nargs="+", choices=[run.name for run in runs])
    args = parser.parse_args()
    for run in (run for run in runs if run.name in args.names):
        print(f"== {run.name}", flush=True)
        record = tune(run, args.models / run.base, args.models / run.name, task)
        print(f"== reward {record['reward_before']} -> {record['reward_after']}", flush=True)
