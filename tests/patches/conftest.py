"""A base, a model tuned from it, and their patch."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from rlsparse_ray.patches import make_patch
from tests.patches.builders import flipped, plain, write

BASE = {
    "model.embed_tokens.weight": plain("BF16", (300, 16), 1),
    "model.layers.0.mlp.up_proj.weight": plain("F32", (20, 16), 2),
    "model.norm.weight": plain("BF16", (16,), 3),
    "lm_head.weight": plain("F8_E4M3", (300, 16), 4),
}
TUNED = {
    name: tensor if "norm" in name else flipped(tensor, 0.1, 10) for name, tensor in BASE.items()
}


@dataclass(frozen=True)
class Scene:
    """Paths; `patch` is finished."""

    base: Path
    tuned: Path
    patch: Path
    out: Path


@pytest.fixture
def scene(tmp_path):
    base = write(tmp_path / "base", BASE, shards=2)
    tuned = write(tmp_path / "tuned", TUNED, shards=2)
    patch = tmp_path / "patch.safetensors"
    make_patch(base, tuned, patch)
    return Scene(base, tuned, patch, tmp_path / "out")
