"""Where things lie in the folder of a reproduction, and what is said of it as a whole."""

from __future__ import annotations

import filecmp
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsparse_ray.demo.smollm import task_of
from rlsparse_ray.experiments.runs import Run, done_record, read_json, write_json

WIDE = "-fp32"
"""Ends the name of the fp32 copy of a bf16 base."""
IN_FP32 = "-in-fp32"
"""Ends the name of an fp32 run's pair with that copy."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The folder of a reproduction.

    models/NAME: bases and runs; corpus.yaml; store; session.json: when and where runs were made.
    """

    root: Path

    @property
    def models(self) -> Path:
        """Bases and runs."""
        return self.root / "models"

    @property
    def corpus(self) -> Path:
        """The corpus file over them."""
        return self.root / "corpus.yaml"

    @property
    def store(self) -> str:
        """The store, as an address."""
        return str(self.root / "store")

    def record(self, run: Run, device: str) -> dict[str, Any] | None:
        """The record of a run that is made on a device, with "auto" on any; else None."""
        task = task_of(run.base).name
        folders = (self.models / run.base, self.models / run.name)
        return done_record(run, *folders, task=task, device=device)

    def same_weights(self, one: str, other: str) -> bool:
        """Whether two models' weights files are equal, byte by byte; no files are not."""
        left, right = (sorted((self.models / name).glob("*.safetensors")) for name in (one, other))
        return (
            bool(left)
            and [path.name for path in left] == [path.name for path in right]
            and all(filecmp.cmp(*pair, shallow=False) for pair in zip(left, right, strict=True))
        )

    def session(self) -> dict[str, Any]:
        """What `note` kept; empty before the first run."""
        return read_json(self.root / "session.json") or {}

    def note(self, facts: Mapping[str, Any]) -> None:
        """Keep facts about how the runs were made, whole or not at all."""
        partial = self.root / ".session.json.partial"
        write_json(partial, self.session() | dict(facts))
        partial.rename(self.root / "session.json")


def machine() -> dict[str, Any]:
    """This machine in words: processor, cores, memory in GiB, GPUs."""
    import torch  # noqa: PLC0415 - takes seconds to import: only where runs are made

    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30),
        "gpus": gpus,
        "python": platform.python_version(),
    }


def _processor() -> str:
    """The model's name on Linux, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
