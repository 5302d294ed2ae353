"""Small models, corpora and stores for tests, and what it means that two stores are the same."""

import io
import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow.parquet as pq
import yaml
from safetensors.numpy import save_file

from rlsparse_ray.commit import commit_pair
from rlsparse_ray.corpus import load_corpus
from rlsparse_ray.lineage import lineage_of
from rlsparse_ray.plan import Plan, make_plan
from rlsparse_ray.population.overlap import overlap_unit
from rlsparse_ray.population.overlap_commit import commit_overlaps, commit_units
from rlsparse_ray.population.overlap_plan import OverlapPlan, begin, plan_overlaps
from rlsparse_ray.slices import SliceReport, extract_slice
from rlsparse_ray.store import Store

BF16 = ml_dtypes.bfloat16
Model = dict[str, np.ndarray]

MEASURES_OF_A_RUN = ("created_at", "seconds")
"""The two columns of `pairs` that measure the run and not the weights: a clock and a stopwatch.
Every other byte of a store follows from the corpus."""


def write_model(
    folder: Path, tensors: Model, shards: int = 1, config: dict[str, Any] | None = None
) -> Path:
    """A model folder as transformers writes it: one file, or shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = list(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[number::shards]
        save_file({name: tensors[name] for name in mine}, folder / file)
        weight_map |= dict.fromkeys(mine, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_raw(path: Path, header: dict[str, Any], data: bytes = b"") -> Path:
    """A safetensors file byte by byte, so that it may be wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def write_corpus(path: Path, pairs: list[dict[str, Any]], **settings: Any) -> Path:
    """A corpus file."""
    path.write_text(yaml.safe_dump({"version": 1, "settings": settings, "pairs": pairs}))
    return path


def weights(seed: int, shape: tuple[int, ...], scale: float = 0.02) -> np.ndarray:
    """Normal bf16 weights."""
    values = np.random.default_rng(seed).normal(0, scale, shape)
    return np.asarray(values, BF16)


def sparsely_changed(base: np.ndarray, seed: int, density: float = 0.05) -> np.ndarray:
    """The weights after a sparse update of the size of a bf16 rounding step, either way."""
    rng = np.random.default_rng(seed)
    factor = np.where(rng.random(base.shape) < density, rng.choice([0.97, 1.01, 1.04]), 1.0)
    return np.asarray(base.astype(np.float64) * factor, base.dtype)


def tuned_from(base: Model, seed: int, keep: tuple[str, ...] = ("norm",)) -> Model:
    """A model tuned from another; tensors whose names have one of `keep` in them stay."""
    return {
        name: array if any(word in name for word in keep) else sparsely_changed(array, seed + place)
        for place, (name, array) in enumerate(base.items())
    }


def small_model(seed: int = 0, width: int = 97, vocabulary: int = 677) -> Model:
    """A causal LM with two layers. Its embedding ends in a block of 133 parameters, 5 of a byte."""
    shapes = {"model.embed_tokens.weight": (vocabulary, width)}
    for layer in (0, 1):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (width,),
            f"{prefix}.self_attn.q_proj.weight": (width, width),
            f"{prefix}.mlp.up_proj.weight": (150, width),
            f"{prefix}.mlp.down_proj.weight": (width, 150),
        }
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}
    return {name: weights(seed + i, shape) for i, (name, shape) in enumerate(shapes.items())}


def small_corpus(folder: Path) -> Path:
    """One base and three models tuned from it, cut into several slices."""
    base = small_model()
    write_model(folder / "base", base)
    write_model(folder / "grpo-0", tuned_from(base, 100))
    write_model(folder / "grpo-1", tuned_from(base, 200), shards=2)
    write_model(folder / "sft", tuned_from(base, 300, keep=()))
    pairs = [
        {"name": name, "base": "base", "tuned": name, "family": "tiny", "algorithm": algorithm}
        for name, algorithm in (("grpo-0", "GRPO"), ("grpo-1", "GRPO"), ("sft", "SFT"))
    ]
    return write_corpus(folder / "corpus.yaml", pairs, slice_bytes=100_000)


def plan_of(corpus: Path) -> Plan:
    """The plan of a corpus file."""
    return make_plan(load_corpus(corpus))


def keys_of(plan: Plan, pair_id: str) -> list[str]:
    """What `commit_pair` is told: the slices of a pair, in order."""
    return [piece.key(pair_id) for piece in plan.slices if pair_id in piece.pair_ids]


def extract_slices(plan: Plan, store: Path) -> list[SliceReport]:
    """Do the slices one after another, and commit nothing."""
    Store.create(store)
    return [extract_slice(piece, str(store)) for piece in plan.slices]


def commit_all(plan: Plan, store: Path) -> None:
    """Commit every pair of a plan whose slices are done."""
    for pair in plan.pairs:
        commit_pair(pair, keys_of(plan, pair.pair_id), str(store), lineage_of(pair).score)


def extract_directly(corpus: Path, store: Path) -> Plan:
    """The main job in one process, without Ray."""
    plan = plan_of(corpus)
    assert plan.failed == {}
    for report in extract_slices(plan, store):
        assert report.failed == {}
    commit_all(plan, store)
    return plan


def overlap_directly(store: Path, criterion: str = "exact", fraction: float = 1.0) -> OverlapPlan:
    """All pairs in one process, without Ray."""
    plan = plan_overlaps(str(store), criterion, fraction)
    if plan.wanted:
        begin(plan, Store.open(store))
    for unit in plan.units:
        overlap_unit(unit, str(store))
    for unit in commit_units(plan):
        commit_overlaps(unit, str(store))
    Store.open(store).files.remove(plan.staging)
    return plan


def id_of(plan: Plan, name: str) -> str:
    """The id of a pair."""
    return next(pair.pair_id for pair in plan.pairs if pair.entry.name == name)


def tree(store: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def contents(store: Path) -> dict[str, Any]:
    """`tree`, with the rows of `pairs` in place of their bytes, less MEASURES_OF_A_RUN."""
    return {
        path: _row(data) if path.startswith("pairs/") else data
        for path, data in tree(store).items()
    }


def assert_same_store(one: Path, other: Path) -> None:
    """Every file has the same bytes, but for the two columns that measure the run."""
    a, b = contents(one), contents(other)
    assert list(a) == list(b)
    assert [path for path in a if a[path] != b[path]] == []


def _row(data: bytes) -> list[dict[str, Any]]:
    table = pq.ParquetFile(io.BytesIO(data)).read()
    return table.drop_columns(list(MEASURES_OF_A_RUN)).to_pylist()


def rows_of(store: Path, table: str, pair_id: str) -> list[dict[str, Any]]:
    """The rows of one small table of one pair."""
    path = store / table / f"pair_id={pair_id}" / f"{table}.parquet"
    rows: list[dict[str, Any]] = pq.ParquetFile(path).read().to_pylist()
    return rows


def mask_rows(store: Path, pair_id: str, criterion: str) -> list[dict[str, Any]]:
    """The blocks of one mask of one pair, part after part."""
    folder = store / "masks" / f"pair_id={pair_id}" / f"criterion={criterion}"
    return [
        row for path in sorted(folder.iterdir()) for row in pq.ParquetFile(path).read().to_pylist()
    ]


def ray_environment() -> dict[str, str]:
    """The environment of a process that starts a Ray of its own."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    # a busy machine takes minutes: no lines of progress among the errors
    quiet["RLSPARSE_PROGRESS_SECONDS"] = "86400"
    return {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | quiet
