"""A small synthetic store whose every number is also kept in plain numpy, as the oracle."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rlsparse_ray import sql, tables
from rlsparse_ray.blocks import BLOCK
from rlsparse_ray.population.spectra_files import spectra_path
from tests.builders import overlap_directly

ABS = [f"abs:1e-{i}" for i in range(8, 2, -1)]
COUNTED = ["exact", *ABS, "rel:1e-3"]
ULPS = [(0, 0), (1, 1), (-1, -1), (2, 2), (-2, -2), (3, 4), (-4, -3)]
Rows = list[dict[str, Any]]


@dataclass
class Tensor:
    """One tensor of a pair, parameter by parameter."""

    name: str
    shape: tuple[int, ...]
    layer: int | None
    module: str
    kind: str
    status: str = "compared"
    base_shape: tuple[int, ...] | None = None
    tuned_shape: tuple[int, ...] | None = None
    level: Any = None  # 0: unchanged, 1: exact only, 2: abs:1e-8 too, ..., 7: all of them
    exponent: Any = None
    bucket: Any = None
    base_l2: float = 0.0
    update_l2: float = 0.0
    update_max: float = 0.0
    base_xxh3: str = ""

    @property
    def compared(self) -> bool:
        return self.status in ("compared", "identical", "partial_rows")

    @property
    def numel(self) -> int:
        return int(np.prod(self.shape)) if self.compared else 0

    @property
    def key(self) -> str:
        return f"{self.name} {list(self.shape)}" if self.compared else self.name

    def mask(self, criterion: str) -> Any:
        if criterion == "exact":
            return self.level > 0
        if criterion == "rel:1e-3":
            return (self.level > 0) & (self.exponent % 2 == 0)
        return self.level > 1 + ABS.index(criterion)


@dataclass
class Pair:
    pair_id: str
    name: str
    base: str
    tensors: list[Tensor]
    row: dict[str, Any]
    criteria: list[str] = field(default_factory=lambda: ["exact", "abs:1e-5"])
    spectra: Rows = field(default_factory=list)

    @property
    def compared(self) -> dict[str, Tensor]:
        return {t.key: t for t in self.tensors if t.compared}


@dataclass
class Store:
    place: Path
    pairs: list[Pair]  # the current ones

    def edit(self, part: str, change: Callable[[Rows], Rows]) -> None:
        """Rewrite one file behind the pair's back."""
        path = self.place / part
        name = part.partition("/")[0]
        rows = change(pq.ParquetFile(path).read().to_pylist())
        pq.write_table(tables.to_table(name, rows), path, compression="zstd")

    def pair(self, name: str) -> Pair:
        return next(p for p in self.pairs if p.name == name)


def _fill(tensor: Tensor, rng: Any, busy: float) -> Tensor:
    n = tensor.numel
    tensor.level = np.where(rng.random(n) < busy, rng.integers(1, 8, n), 0)
    if tensor.status == "identical":
        tensor.level[:] = 0
    tensor.exponent = rng.integers(-12, -3, n)
    tensor.bucket = np.where(tensor.level > 0, rng.integers(1, len(ULPS) + 1, n), 0)
    tensor.base_l2 = float(np.sqrt(n) * (1.0 if tensor.kind == "norm" else 0.02))
    tensor.update_l2 = float(rng.random() * np.sqrt(n) * 1e-5)
    tensor.update_max = float(rng.random() * 1e-2)
    return tensor


def _tensors(rng: Any, base: str, vocabulary: int = 707) -> list[Tensor]:
    partial = vocabulary < 707
    embedding = Tensor(
        "embed_tokens.weight",
        (vocabulary, 99),
        None,
        "embed_tokens",
        "embedding",
        "partial_rows" if partial else "compared",
        base_shape=(707, 99),
    )
    plain = [
        Tensor(f"layers.{i}.{module}.weight", shape, i, module, kind)
        for i in (0, 1)
        for module, shape, kind in (
            ("self_attn.q_proj", (33, 17), "attention"),
            ("mlp.up_proj", (40, 25), "mlp"),
            ("input_layernorm", (50,), "norm"),
        )
    ]
    plain[2].status = "identical"
    odd = [
        Tensor("norm.weight", (50,), None, "norm", "norm"),
        Tensor("empty", (0, 4), None, "empty", "other"),
        Tensor("scale", (), None, "scale", "other"),
    ]
    tensors = [_fill(t, rng, rng.uniform(0.05, 0.5)) for t in [embedding, *plain, *odd]]
    for tensor in tensors:
        tensor.base_xxh3 = f"{base}/{tensor.name}"
    return tensors


def _row(tensors: list[Tensor], facts: dict[str, Any]) -> dict[str, Any]:
    def cells(shape: tuple[int, ...] | None) -> int:
        return int(np.prod(shape)) if shape is not None else 0

    def count(*status: str) -> int:
        return sum(t.status in status for t in tensors)

    row: dict[str, Any] = {f.name: None for f in tables.PAIRS} | facts
    numel = {"base_only": 0, "tuned_only": 0, "shape_mismatch": 0}
    for t in tensors:
        if t.status == "partial_rows":
            numel["base_only"] += cells(t.base_shape) - t.numel
            numel["tuned_only"] += max(cells(t.tuned_shape or t.shape) - t.numel, 0)
        elif t.status in numel:
            numel[t.status] += cells(t.tuned_shape if t.status == "tuned_only" else t.base_shape)
    return row | {
        "labels": [("machine", "test")],
        "numel": sum(t.numel for t in tensors),
        "numel_base_only": numel["base_only"],
        "numel_tuned_only": numel["tuned_only"],
        "numel_mismatched": numel["shape_mismatch"],
        "tensors_compared": count("compared", "identical"),
        "tensors_identical": count("identical"),
        "tensors_partial": count("partial_rows"),
        "tensors_base_only": count("base_only"),
        "tensors_tuned_only": count("tuned_only"),
        "tensors_mismatched": count("shape_mismatch"),
        "tensors_tied": count("tied"),
        "counted_criteria": COUNTED,
        "block": BLOCK,
        "schema_version": tables.SCHEMA_VERSION,
    }


def _make_pairs() -> tuple[list[Pair], list[Pair]]:
    rng = np.random.default_rng(7)

    def pair(name: str, base: str, tensors: list[Tensor], age: int = 0, **facts: Any) -> Pair:
        row = _row(
            tensors,
            {
                "name": name,
                "base_source": f"./{base}",
                "tuned_source": f"./{name}",
                "base_revision": base,
                "tuned_revision": f"{name}-{age}",
                "created_at": datetime(2026, 1, 9, tzinfo=UTC) - timedelta(days=age),
            }
            | facts,
        )
        return Pair(f"{name}-{age}", name, base, tensors, row)

    grpo = {"family": "tiny", "algorithm": "GRPO", "stage": "RL"}
    seed0 = pair("grpo-seed0", "b1", _tensors(rng, "b1"), reported_sparsity=0.7, **grpo)
    seed1 = pair("grpo-seed1", "b1", _tensors(rng, "b1"), **grpo)
    old = pair("grpo-seed0", "b1", _tensors(rng, "b1"), age=1, **grpo)
    mixed = [
        *_tensors(rng, "b2", vocabulary=705),
        Tensor("lm_head.weight", (), None, "lm_head", "head", "base_only", base_shape=(6, 5)),
        Tensor("extra.bias", (), None, "extra", "other", "tuned_only", tuned_shape=(9,)),
        Tensor("odd.weight", (), 0, "odd", "mlp", "shape_mismatch", (3, 4), (4, 3)),
        Tensor("tied.weight", (), None, "tied", "head", "tied", (7, 7), (7, 7)),
    ]
    dpo = pair("dpo", "b2", mixed, family="tiny", algorithm="DPO")
    dpo.criteria = ["exact"]
    for each in (seed0, old, dpo):
        each.spectra = list(_spectra(each, rng))
    alien = _fill(Tensor("h.0.attn.weight", (9, 9), 0, "attn", "attention"), rng, 0.3)
    other = pair("other", "b3", [alien], family="alien", algorithm="GRPO")
    return [seed0, seed1, dpo, other], [old]


def _spectra(pair: Pair, rng: Any) -> Iterator[dict[str, Any]]:
    """Numbers that could be, of every tensor but one; those of the embedding are randomised."""
    for t in pair.compared.values():
        if t.module == "mlp.up_proj" and t.layer == 1 and pair.name == "dpo":
            continue
        changed = int(t.mask("exact").sum())
        status = "not_a_matrix" if len(t.shape) != 2 else "measured" if t.numel else "empty"
        row: dict[str, Any] = {f.name: None for f in tables.SPECTRA} | {
            "tensor": t.name,
            "tensor_key": t.key,
            "matrix": 0,
            "status": status,
            "numel": t.numel,
            "changed": changed,
            "rank_k": 20,
            "mask_overlaps": [],
            "precision": [],
            "errors": [],
        }
        yield row if status != "measured" else row | _measured(t, changed, rng)


def _measured(t: Tensor, changed: int, rng: Any) -> dict[str, Any]:
    exact = t.kind != "embedding"
    short = min(t.shape)
    known = {
        "matrix_rank": int(rng.integers(short // 2, short)),
        "rank_1e6": short,
        "effective_rank": float(rng.uniform(2, short)),
        "nss": float(rng.uniform(1e-4, 1e-3)),
    }
    # q_proj has 17 columns, so no subspace of 20 dimensions
    angles = np.sort(rng.uniform(0, 0.3, (2, 20))) if short > 20 else None
    shares = dict(zip(("outside", "inside_left", "inside_right"), rng.random(3), strict=True))
    return {
        "rows": t.shape[0],
        "columns": t.shape[1],
        "method": "exact" if exact else "randomised",
        "k": None if angles is None else 20,
        "update_norm": float(rng.uniform(0.1, 1)),
        "base_norm": float(rng.uniform(10, 20)),
        "update_top": float(rng.uniform(0.05, 0.1)),
        **{name: value if exact else None for name, value in known.items()},
        "matrix_rank_at_least": known["matrix_rank"] if exact else 16,
        "stable_rank": float(rng.uniform(1, short)),
        "energy_rank_90": int(rng.integers(1, short // 2)),
        "energy_rank_99": int(rng.integers(short // 2, short)) if exact else None,
        "top_energy_share": float(rng.random()),
        "nss_at_least": known["nss"] if exact else 0.0,
        "nss_at_most": known["nss"] if exact else 0.1,
        "angles_left": None if angles is None else angles[0].tolist(),
        "angles_right": None if angles is None else angles[1].tolist(),
        "gap": None if angles is None else float(rng.random()),
        **{f"{name}_share": None if angles is None else v for name, v in shares.items()},
        "mask_overlaps": [
            _overlap(kind, alpha, t.numel, changed, rng)
            for kind in ("low_magnitude", "principal")[: 1 if angles is None else 2]
            for alpha in (0.1, 0.5)
        ],
        "precision": [("update_norm", "float64")],
        "errors": [] if exact else [("stable_rank", 0.01)],
    }


def _overlap(kind: str, alpha: float, numel: int, changed: int, rng: Any) -> dict[str, Any]:
    size = int(alpha * numel)
    low, high = max(0, size + changed - numel), min(size, changed)
    return {
        "kind": kind,
        "alpha": alpha,
        "size": size,
        "shared": int(rng.integers(low, high + 1)),
        "expected_uniform": size * changed / numel,
        "expected_magnitude": float(rng.uniform(low, high) + 1),
    }


def _write(place: Path, pair: Pair) -> None:
    rows: dict[str, Rows] = {
        name: [] for name in ("tensors", "counts", "strata", "margins", "steps")
    }
    masks: dict[str, Rows] = {c: [] for c in pair.criteria}
    for t in pair.tensors:
        rows["tensors"].append(_tensor_row(t))
        if not t.compared:
            continue
        name = {"tensor": t.name, "tensor_key": t.key}
        for criterion in COUNTED:
            changed = int(t.mask(criterion).sum())
            rows["counts"].append(
                name | {"criterion": criterion, "numel": t.numel, "changed": changed}
            )
        for criterion in pair.criteria:
            rows["strata"] += [name | {"criterion": criterion} | r for r in _strata(t, criterion)]
            if len(t.shape) >= 2:
                rows["margins"].append(name | {"criterion": criterion} | _margins(t, criterion))
            masks[criterion] += [{"tensor_key": t.key} | r for r in _blocks(t, criterion)]
        rows["steps"] += [name | r for r in _steps(t)]
    parts = {f"{n}/pair_id={pair.pair_id}/{n}.parquet": (n, r) for n, r in rows.items()}
    for criterion, blocks in masks.items():
        folder = f"masks/pair_id={pair.pair_id}/criterion={criterion}"
        parts[f"{folder}/part-00000.parquet"] = ("masks", blocks[:3])
        parts[f"{folder}/part-00001.parquet"] = ("masks", blocks[3:])
    listed = []
    for part, (table, its_rows) in parts.items():
        path = place / part
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(tables.to_table(table, its_rows), path, compression="zstd")
        listed.append(
            {"path": part, "rows": len(its_rows), "bytes": path.stat().st_size, "xxh3": ""}
        )
    if pair.spectra:
        path = place / spectra_path(pair.pair_id)
        path.parent.mkdir(parents=True)
        pq.write_table(tables.to_table("spectra", pair.spectra), path, compression="zstd")
    commit = place / f"pairs/pair_id={pair.pair_id}/pairs.parquet"
    commit.parent.mkdir(parents=True)
    row = pair.row | {"criteria": pair.criteria, "parts": listed}
    pq.write_table(tables.to_table("pairs", [row]), commit)


def _tensor_row(t: Tensor) -> dict[str, Any]:
    row: dict[str, Any] = {f.name: None for f in tables.TENSORS}
    side = t.shape if t.compared else None
    return row | {
        "tensor": t.name,
        "tensor_key": t.key,
        "layer": t.layer,
        "module": t.module,
        "kind": t.kind,
        "shape": list(t.shape) if t.compared else None,
        "base_shape": None if t.status == "tuned_only" else list(t.base_shape or side or ()),
        "tuned_shape": None if t.status == "base_only" else list(t.tuned_shape or side or ()),
        "compare_dtype": "BF16" if t.compared else None,
        "status": t.status,
        "numel": t.numel,
        "base_l2": t.base_l2,
        "update_l2": t.update_l2,
        "update_max": t.update_max,
        "base_xxh3": t.base_xxh3,
    }


def _strata(t: Tensor, criterion: str) -> Iterator[dict[str, Any]]:
    mask = t.mask(criterion)
    for exponent in sorted(set(t.exponent.tolist())):
        inside = t.exponent == exponent
        changed = int((mask & inside).sum())
        yield {"exponent": exponent, "numel": int(inside.sum()), "changed": changed}


def _margins(t: Tensor, criterion: str) -> dict[str, Any]:
    grid = t.mask(criterion).reshape(-1, t.shape[-1]).astype(int)
    return {
        "changed_per_row": grid.sum(axis=1).tolist(),
        "changed_per_column": grid.sum(axis=0).tolist(),
    }


def _blocks(t: Tensor, criterion: str) -> Iterator[dict[str, Any]]:
    mask = t.mask(criterion)
    for block, start in enumerate(range(0, t.numel, BLOCK)):
        piece = mask[start : start + BLOCK]
        bits = np.packbits(piece, bitorder="little").tobytes()
        changed = int(piece.sum())
        yield {"block": block, "numel": len(piece), "changed": changed, "bits": bits}


def _steps(t: Tensor) -> Iterator[dict[str, Any]]:
    for i, (low, high) in enumerate([*ULPS, (None, None)]):
        numel = int((t.bucket == i).sum())
        if numel:
            yield {"ulp_low": low, "ulp_high": high, "numel": numel}


@pytest.fixture(scope="session")
def store(tmp_path_factory: Any) -> Store:
    """A clean store; nobody may change it."""
    place = tmp_path_factory.mktemp("sql") / "store"
    current, superseded = _make_pairs()
    for pair in [*superseded, *current]:
        _write(place, pair)
    (place / "store.json").write_text(json.dumps({"format": "rlsparse_ray", "schema_version": 1}))
    for criterion in ("exact", "abs:1e-5"):
        overlap_directly(place, criterion)
    _leave_uncommitted(place, current[0])
    for row in REFRESHES:
        _write_refresh(place, row)
    return Store(place, current)


REFRESHES: Rows = [
    {
        "corpus": "corpus.yaml",
        "holder": "head-1",
        "started_at": datetime(2026, 11, day, 4, tzinfo=UTC),
        "seconds": 10.0 * day,
        "pairs": 4,
        "added": [{"name": "grpo-seed0", "pair_id": "grpo-seed0-0"}] if day == 1 else [],
        "moved": [{"name": "sft", "pair_id": "sft-1", "superseded": "sft-0"}] if day == 1 else [],
        "relabelled": [],
        "unchanged": 1 if day == 1 else 4,
        "failed": [{"name": "gone", "message": "hf://org/gone: gone"}] if day == 1 else [],
        "doubts": [],
        "bytes_read": 1000 if day == 1 else 0,
        "overlap_criteria": ["exact"],
        "sample_fraction": 1.0,
        "overlaps_counted": 3 if day == 1 else 0,
        "audits": 19 if day == 1 else 0,
        "findings": [],
        "ok": day != 1,
        "state": "0123456789abcdef",
        "schema_version": tables.SCHEMA_VERSION,
        "software_version": "0.1.0",
    }
    for day in (1, 2)
]


def refresh_path(row: dict[str, Any]) -> str:
    return f"refreshes/refresh={row['started_at']:%Y%m%dT%H%M%SZ}-00000a/refreshes.parquet"


def _write_refresh(place: Path, row: dict[str, Any]) -> None:
    path = place / refresh_path(row)
    path.parent.mkdir(parents=True)
    pq.write_table(tables.to_table("refreshes", [row]), path, compression="zstd")


def _leave_uncommitted(place: Path, pair: Pair) -> None:
    for table in tables.SCHEMAS.keys() - {"pairs"}:
        left = place / table / "pair_id=crashed"
        shutil.copytree(place / table / f"pair_id={pair.pair_id}", left)


@pytest.fixture
def damaged(store: Store, tmp_path: Path) -> Store:
    """A copy to damage."""
    place = tmp_path / "store"
    shutil.copytree(store.place, place)
    return Store(place, store.pairs)


@pytest.fixture(scope="session")
def con(store: Store) -> Any:
    return sql.connect(store.place)
