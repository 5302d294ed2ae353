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

RUN_FILE = "run.json"  # marks a tuned model
BASE_FILE = "base.json"  # marks a base; holds its sha256 and how it was made
LIBRARIES = ("torch", "transformers", "trl", "datasets", "accelerate")


@dataclass(frozen=True)
class Run:
    """One training run; equal fields, library versions and base bytes make the same weights."""

    name: str
    base: str
    algorithm: str
    """SFT, DPO or GRPO."""
    seed: int
    dataset: str
    steps: int
    """Optimizer steps."""
    learning_rate: float
    batch: int = 128
    """Sequences in one optimizer step: for GRPO prompts x generations, for DPO preferences."""
    generations: int = 8
    """Samples of one prompt (GRPO only)."""
    kl: float = 0.0
    """The coefficient beta of the KL term (GRPO and DPO)."""
    family: str = "tiny-llama"
    save_every: int = 0
    """Keep a checkpoint every so many steps; 0 keeps none but the last."""

    @property
    def stage(self) -> str:
        """The stage of post-training that the algorithm belongs to: SFT, preference or RL."""
        return {"SFT": "SFT", "DPO": "preference"}.get(self.algorithm, "RL")

    @property
    def on_policy(self) -> bool:
        """Whether the run learns from samples of the model that it trains."""
        return self.algorithm == "GRPO"


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


def identity(run: Run, base_dir: Path) -> dict[str, Any]:
    """Give what must be equal for a made run to be used again.

    Raises:
        FileNotFoundError: the base folder has no base.json.
    """
    base = read_json(base_dir / BASE_FILE)
    if base is None:
        raise FileNotFoundError(f"{base_dir} has no {BASE_FILE}: it is not a complete base")
    return {"run": asdict(run), "versions": library_versions(), "base_sha256": base["sha256"]}


def done_record(run: Run, base_dir: Path, out_dir: Path) -> dict[str, Any] | None:
    """Read the record of a made run; None where it is missing, unfinished or made otherwise."""
    record = read_json(out_dir / RUN_FILE)
    if record is None:
        return None
    wanted = identity(run, base_dir)
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
