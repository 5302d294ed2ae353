"""What a training run is, and when its folder counts as done. Imports no torch.

A folder is made beside its final place and renamed into it, with the marker file written last: an
interrupted run leaves only a hidden `.NAME.partial` folder, which the next attempt wipes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rlsparse_ray.errors import RunError
from rlsparse_ray.experiments.fingerprint import training_code
from rlsparse_ray.experiments.precision import PRECISIONS

RUN_FILE = "run.json"  # marks a tuned model
BASE_FILE = "base.json"  # marks a base; holds its sha256 and how it was made
ALGORITHMS = ("SFT", "DPO", "SimPO", "ORPO", "KTO", "GRPO", "PPO", "PRIME")
PREFERENCE = ("DPO", "SimPO", "ORPO", "KTO")
RL = ("GRPO", "PPO", "PRIME")
DATA = ("given", "sampled")
OPTIMIZERS = ("adamw", "sgd")
MASKS = ("subnetwork", "random", "complement")
CLIPPED_NORM = 1.0  # of the whole gradient
CLIPPED_RATIO = 0.2  # new to old probability of a token: 1 - 0.2 to 1 + 0.2
LIBRARIES = ("torch", "transformers", "trl", "datasets", "accelerate")


@dataclass(frozen=True)
class Run:
    """One training run; `identity` says what else must be equal to make the same weights.

    Raises:
        RunError: the fields contradict one another (see `_check`).
    """

    name: str
    base: str
    algorithm: str
    """One of ALGORITHMS."""
    seed: int
    dataset: str
    steps: int
    """Optimizer steps."""
    learning_rate: float
    batch: int = 128
    """Sequences in one optimizer step: prompts x generations for RL, else rows (preferences are
    one row; KTO's rows are single answers)."""
    generations: int = 8
    """Samples of one prompt, where the run samples."""
    kl: float = 0.0
    """The coefficient beta: of the KL term for RL (0 leaves it out, and with it the reference
    model), of the log-ratios for preferences (ORPO's lambda)."""
    family: str = "tiny-llama"
    save_every: int = 0
    """Keep a checkpoint every so many steps; 0 keeps none but the last."""
    precision: str = "fp32-master"
    """One of PRECISIONS; `experiments.precision` says what each does."""
    clipping: bool = True
    """Clip the gradient's norm to CLIPPED_NORM and, where the algorithm has one, the ratio of
    probabilities to CLIPPED_RATIO."""
    updates_per_sample: int = 1
    """Optimizer steps on the same batch of samples (RL): 1 is on-policy, more is off-policy."""
    data: str = "given"
    """One of DATA: answers from the task, or sampled from the base and told apart by the reward
    (for SFT, rejection sampling). RL always samples from the policy itself."""
    optimizer: str = "adamw"
    """One of OPTIMIZERS; sgd has no momentum. Weight decay is 0 in both."""
    mask: str | None = None
    """One of MASKS: which weights alone are trained, as a mask of the run `mask_of`."""
    mask_of: str | None = None

    def __post_init__(self) -> None:
        _check(self)

    @property
    def stage(self) -> str:
        """The stage of post-training that the algorithm belongs to: SFT, preference or RL."""
        if self.algorithm in PREFERENCE:
            return "preference"
        return "RL" if self.algorithm in RL else "SFT"

    @property
    def on_policy(self) -> bool:
        """Whether every update learns from samples of the very model that it changes."""
        return self.algorithm in RL and self.updates_per_sample == 1


def _check(run: Run) -> None:
    """Refuse a run whose fields cannot be what they say.

    Raises:
        RunError: the message names the run, the field and what to write instead.
    """
    allowed = {
        "algorithm": ALGORITHMS,
        "precision": tuple(PRECISIONS),
        "data": DATA,
        "optimizer": OPTIMIZERS,
        "mask": (None, *MASKS),
    }
    for field, values in allowed.items():
        if (value := getattr(run, field)) not in values:
            known = ", ".join(str(v) for v in values if v)
            raise RunError(f"{run.name}: {field} {value!r} is not one of {known}")
    if (run.mask is None) != (run.mask_of is None):
        raise RunError(f"{run.name}: mask and mask_of go together: give both or neither")
    if run.algorithm in RL:
        _check_rl(run)
    elif run.updates_per_sample != 1:
        what = f"updates_per_sample={run.updates_per_sample}"
        raise RunError(f"{run.name}: {what}, but {run.algorithm} takes no samples of its policy")
    if run.algorithm in PREFERENCE and run.kl <= 0:
        raise RunError(
            f"{run.name}: kl={run.kl}: {run.algorithm} needs a beta above 0, such as 0.1"
        )


def _check_rl(run: Run) -> None:
    if run.updates_per_sample < 1:
        raise RunError(f"{run.name}: updates_per_sample={run.updates_per_sample} is less than 1")
    if run.data != "given":
        raise RunError(
            f"{run.name}: data='sampled' is for SFT and preferences: {run.algorithm} always "
            "samples, from the policy in training; leave data out"
        )
    if run.generations < 2 or run.batch % run.generations:
        raise RunError(
            f"{run.name}: batch={run.batch} is not a multiple of generations={run.generations}, "
            "or that is less than 2"
        )


@functools.cache
def library_versions() -> dict[str, str]:
    """Give the versions of the libraries that decide the weights ("absent" where not installed)."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a marker file; None where there is none.

    Raises:
        ValueError: the file is there but damaged: it is not JSON.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    record: dict[str, Any] = json.loads(text)
    return record


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a marker file, indented, with a final newline."""
    path.write_text(json.dumps(record, indent=2) + "\n")


def sha256_of(path: Path) -> str:
    """Hash a file (hex)."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def base_is_equal(source: Path, copied: Path) -> bool:
    """Say whether a base folder is a complete copy of another, by their base.json."""
    wanted = read_json(source / BASE_FILE)
    return wanted is not None and read_json(copied / BASE_FILE) == wanted


def identity(run: Run, base_dir: Path, out_dir: Path, task: str) -> dict[str, Any]:
    """Give what must be equal for a made run to be used again, on one kind of device.

    Args:
        run: its fields.
        base_dir: of the base, whose bytes count.
        out_dir: of the run. A run `mask_of` that lies beside it counts with its bytes: the mask
            comes from them.
        task: the name of what is learnt.

    Raises:
        FileNotFoundError: the base folder has no base.json.
    """
    base = read_json(base_dir / BASE_FILE)
    if base is None:
        raise FileNotFoundError(f"{base_dir} has no {BASE_FILE}: it is not a complete base")
    full = read_json(out_dir.parent / run.mask_of / RUN_FILE) if run.mask_of else None
    return {
        "run": asdict(run),
        "task": task,
        "versions": library_versions(),
        "code": training_code(),
        "base_sha256": base["sha256"],
        "mask_of_sha256": full and full.get("sha256"),
    }


def done_record(
    run: Run, base_dir: Path, out_dir: Path, *, task: str, device: str = "auto"
) -> dict[str, Any] | None:
    """Read the record of a made run; None where it is missing, unfinished or made otherwise.

    Devices round differently, so a run of another one is another run; "auto" takes either.
    """
    record = read_json(out_dir / RUN_FILE)
    if record is None:
        return None
    wanted = identity(run, base_dir, out_dir, task)
    if device != "auto":
        wanted["device"] = device
    return record if {key: record.get(key) for key in wanted} == wanted else None


@contextmanager
def fresh_folder(final: Path) -> Iterator[Path]:
    """Give an empty hidden folder beside `final`, and put it in its place when the block ends well.

    When the block raises, the hidden folder stays for a look and `final` is left as it was.
    """
    partial = final.parent / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
