"""The base models of a scale: copied, pretrained or unpacked, once."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlsparse_ray.demo import smollm
from rlsparse_ray.demo.models import BASES
from rlsparse_ray.demo.pretrain import Recipe, pretrain
from rlsparse_ray.errors import ScaleError
from rlsparse_ray.experiments.runs import (
    BASE_FILE,
    base_is_equal,
    fresh_folder,
    library_versions,
    read_json,
    sha256_of,
    write_json,
)
from rlsparse_ray.reproduce.layout import WIDE, Layout
from rlsparse_ray.reproduce.scale import Base

SHIPPED = tuple(sorted(path.name for path in BASES.iterdir() if path.is_dir()))
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class BaseWork:
    """One base to make."""

    base: Base
    root: Path

    @property
    def title(self) -> str:
        """For messages."""
        return f"base {self.base.name}"


def check_base(base: Base) -> None:
    """Say whether a base can be made at all.

    Raises:
        ScaleError: it neither ships, nor is SmolLM2, nor has sizes.
    """
    if base.scratch is None and base.name not in (*SHIPPED, smollm.BASE):
        known = ", ".join((*SHIPPED, smollm.BASE))
        raise ScaleError(
            f"base {base.name!r}: give it `scratch:` with the sizes of a new model, "
            f"or name one of {known}"
        )


def is_made(work: BaseWork) -> bool:
    """Whether a base is there, complete and made as the scale says."""
    folder = Layout(work.root).models / work.base.name
    if work.base.scratch:
        record = read_json(folder / BASE_FILE) or {}
        made = [record.get(key) for key in ("recipe", "versions")]
        return made == [asdict(_recipe(work.base)), library_versions()]
    if work.base.name == smollm.BASE:
        return smollm.base_is_made(folder.parent)
    return base_is_equal(BASES / work.base.name, folder)


def make_base(work: BaseWork, device: str) -> None:
    """Make a base; runs where Ray puts it.

    Raises:
        RuntimeError: the weights of SmolLM2 cannot be had.
    """
    layout = Layout(work.root)
    folder = layout.models / work.base.name
    if work.base.scratch:
        pretrain(_recipe(work.base), folder, device)
    elif work.base.name == smollm.BASE:
        smollm.make_base(layout.models, work.root / "cache" / smollm.MODULE)
    else:
        with fresh_folder(folder) as fresh:
            shutil.copytree(BASES / work.base.name, fresh, dirs_exist_ok=True)


def _recipe(base: Base) -> Recipe:
    assert base.scratch is not None
    return Recipe(name=base.name, **base.scratch.model_dump())


def widen(layout: Layout, base: str) -> None:
    """Keep a copy of a base in fp32, bit for bit the same values, to compare fp32 runs with."""
    import torch  # noqa: PLC0415 - takes seconds to import
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    source, final = layout.models / base, layout.models / f"{base}{WIDE}"
    record: dict[str, Any] = {"widened": sha256_of(source / _WEIGHTS)}
    if (read_json(final / BASE_FILE) or {}).get("widened") == record["widened"]:
        return
    with fresh_folder(final) as folder:
        tensors = {n: t.to(torch.float32) for n, t in load_file(source / _WEIGHTS).items()}
        save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
        shutil.copy(source / "config.json", folder)
        write_json(folder / BASE_FILE, record)
