"""Masks of base weights: the rules, the bits against numpy, and what is kept of them."""

import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from rlsparse_ray import sql
from rlsparse_ray.cluster.spectra import keep_mask
from rlsparse_ray.errors import CheckpointError, QueryError, StoreError
from rlsparse_ray.population import spectral_masks
from rlsparse_ray.population.consensus import consensus
from rlsparse_ray.population.named_masks import commit_mask, named_mask_row
from rlsparse_ray.population.spectral_masks import mask_unit, plan_mask
from rlsparse_ray.population.spectral_rules import parse_rule
from rlsparse_ray.store import Store
from rlsparse_ray.upkeep.checks import verify
from tests.builders import (
    extract_directly,
    id_of,
    small_model,
    tree,
    tuned_from,
    weights,
    write_corpus,
    write_model,
)

STACK = "model.layers.1.mlp.experts.down_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One pair, whose base has a stack of experts and a tensor of two blocks."""
    folder = tmp_path_factory.mktemp("masks")
    base = small_model(width=33, vocabulary=70)
    base |= {STACK: weights(90, (3, 20, 31)), "model.big.weight": weights(91, (300, 301))}
    write_model(folder / "base", base)
    write_model(folder / "tuned", tuned_from(base, 100))
    pairs = [{"name": "grpo", "base": "base", "tuned": "tuned"}]
    plan = extract_directly(write_corpus(folder / "corpus.yaml", pairs), folder / "store")
    return folder, base, id_of(plan, "grpo")


@pytest.fixture
def store(folder, tmp_path):
    shutil.copytree(folder[0] / "store", tmp_path / "store")
    return tmp_path / "store"


def keep(store, name, rule, **selected):
    """A mask in one process, without Ray."""
    plan = plan_mask(str(store), name, "grpo", rule, **selected)
    parts = [mask_unit(unit, str(store)) for unit in plan.units]
    commit_mask(Store.open(store), plan.mask, parts, plan.tensors, plan.numel)
    return plan


def bits_of(store, name):
    """The mask of each tensor, by tensor_key, flat."""
    with sql.connect(store) as con:
        text = f"FROM named_mask_bits WHERE mask = '{name}' ORDER BY tensor_key, block"
        rows = sql.run_sql(con, text).to_pylist()
    found = {}
    for row in rows:
        bits = np.unpackbits(np.frombuffer(row["bits"], np.uint8), bitorder="little")
        assert bits[row["numel"] :].sum() == 0
        found.setdefault(row["tensor_key"], []).append(bits[: row["numel"]].astype(bool))
    return {key: np.concatenate(blocks) for key, blocks in found.items()}


def key_of(name, array):
    return f"{name.removeprefix('model.')} [{','.join(map(str, array.shape))}]"


def smallest(matrix, alpha):
    """The smallest |entries|, with all that tie with the last of them."""
    size = np.abs(matrix.astype(np.float64)).ravel()
    return size <= np.sort(size)[max(1, round(alpha * size.size)) - 1]


def low_rank(matrix, k):
    u, s, v = np.linalg.svd(matrix.astype(np.float64))
    return np.abs((u[:, :k] * s[:k]) @ v[:k]).ravel()


def test_low_magnitude_masks_are_those_of_numpy(folder, store):
    plan = keep(store, "small", "low_magnitude:alpha=0.3")
    found = bits_of(store, "small")
    matrices = {n: a for n, a in folder[1].items() if a.ndim >= 2}
    assert found.keys() == {key_of(n, a) for n, a in matrices.items()}
    assert plan.left_out == len(folder[1]) - len(matrices)
    for name, array in matrices.items():
        parts = array if array.ndim == 3 else [array]
        want = np.concatenate([smallest(part, 0.3) for part in parts])
        assert np.array_equal(found[key_of(name, array)], want), name


def test_principal_masks_are_those_of_numpy_but_for_rounding_at_the_threshold(folder, store):
    keep(store, "principal", "principal:k=5,alpha=0.2", where="kind = 'mlp' OR module = 'big'")
    found = bits_of(store, "principal")
    for name in ("model.big.weight", "model.layers.0.mlp.up_proj.weight"):
        size = low_rank(folder[1][name], 5)
        edge = np.sort(size)[-round(0.2 * size.size)]
        got = found[key_of(name, folder[1][name])]
        sure = np.abs(size - edge) > 1e-5 * edge
        assert np.array_equal(got[sure], (size >= edge)[sure])
        assert got.sum() == pytest.approx(0.2 * size.size, abs=2)


def test_unions_and_complements(folder, store):
    one, two = "principal:k=5,alpha=0.2", "low_magnitude:alpha=0.3"
    where = "module = 'big'"
    rules = {"one": one, "two": two, "union": f"{two} + {one}", "rest": f"not({one}+{two})"}
    for name, rule in rules.items():
        keep(store, name, rule, where=where)
    (a,), (b,), (union,), (rest,) = (bits_of(store, name).values() for name in rules)
    assert np.array_equal(union, a | b)
    assert np.array_equal(rest, ~union)
    assert 0 < (a & b).sum() < a.sum()


def test_what_is_kept_says_where_it_comes_from(folder, store, monkeypatch):
    monkeypatch.setattr(spectral_masks, "UNIT_BYTES", 20_000)
    plan = keep(store, "small", "low_magnitude:alpha=0.30")
    assert len(plan.units) > 2
    row = named_mask_row(Store.open(store), "small")
    assert (row["kind"], row["rule"]) == ("spectral", "low_magnitude:alpha=0.3")
    assert (row["members"], row["criterion"], row["at_least"]) == ([folder[2]], None, None)
    assert row["base_source"] == str(folder[0] / "base") and row["base_revision"]
    assert len(row["parts"]) == len(plan.units)
    found = bits_of(store, "small")
    assert (row["tensors"], row["numel"]) == (len(found), sum(b.size for b in found.values()))
    assert row["changed"] == sum(int(b.sum()) for b in found.values())
    assert verify(store) == []


def test_the_name_of_another_mask_is_refused(store, local_ray):
    args = (str(store), "small", "grpo")
    assert keep_mask(plan_mask(*args, "low_magnitude:alpha=0.3"), str(store))
    before = tree(store)
    assert not keep_mask(plan_mask(*args, "low_magnitude:alpha=.3"), str(store))
    for rule, where in (
        ("low_magnitude:alpha=0.4", "true"),
        ("low_magnitude:alpha=0.3", "kind = 'mlp'"),
    ):
        with pytest.raises(StoreError, match=r"mask small is low_magnitude:alpha=0.3 of grpo-"):
            keep_mask(plan_mask(*args, rule, where), str(store))
    assert tree(store) == before


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "principal",
        "principal:k=0,alpha=0.5",
        "principal:k=5",
        "low_magnitude:alpha=1",
        "low_magnitude:alpha=0",
        "low_magnitude:alpha=1.2.3",
        "low_magnitude:alpha=0.5+",
        "not()",
        "not(low_magnitude:alpha=0.5",
        "high:alpha=0.5",
    ],
)
def test_what_is_no_rule(rule):
    with pytest.raises(QueryError, match="rule "):
        parse_rule(rule)


def test_equal_rules_have_equal_texts():
    texts = ("low_magnitude:alpha=0.50+principal:k=8,alpha=.1", "principal:k=8,alpha=0.1 + ")
    texts = (texts[0], texts[1] + "low_magnitude:alpha=.5")
    assert len({str(parse_rule(text)) for text in texts}) == 1
    assert str(parse_rule(f"not( {texts[0]} )")).startswith("not(low_magnitude:alpha=0.5+")


def test_what_cannot_be_masked_says_so(folder, store):
    with pytest.raises(QueryError, match=r"tensor layers.1.mlp.experts.down_proj: .*--where"):
        keep(store, "wide", "principal:k=25,alpha=0.5", where="kind = 'expert'")
    assert named_mask_row(Store.open(store), "wide") is None
    with pytest.raises(QueryError, match=r"no matrix of grpo meets the condition"):
        plan_mask(str(store), "norms", "grpo", "low_magnitude:alpha=0.5", "kind = 'norm'")
    with pytest.raises(QueryError, match=r"'nobody' is no name or id of a pair"):
        plan_mask(str(store), "x", "nobody", "low_magnitude:alpha=0.5")
    plan = plan_mask(str(store), "x", "grpo", "low_magnitude:alpha=0.5")
    damaged = folder[0] / "base" / "model.safetensors"
    data, state = damaged.read_bytes(), damaged.stat()
    damaged.write_bytes(data[:-2] + bytes([data[-2] ^ 1, data[-1]]))
    try:
        with pytest.raises(CheckpointError):
            mask_unit(plan.units[-1], str(store))
        with pytest.raises(CheckpointError, match="moved, copied or changed"):
            plan_mask(str(store), "x", "grpo", "low_magnitude:alpha=0.5")
    finally:
        damaged.write_bytes(data)
        os.utime(damaged, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_masks_of_a_store_of_version_2_can_be_asked_beside_new_ones(example, tmp_path, store):
    old = tmp_path / "old"
    shutil.copytree(example.store, old)
    consensus(old, "algorithm = 'GRPO'", keep="all", name="core")
    consensus(old, "algorithm = 'GRPO'", keep="any", name="any")
    path = old / "named_masks/mask=core/named_masks.parquet"
    table = pq.ParquetFile(path).read().drop_columns(["base_source", "base_revision"])
    pq.write_table(table.replace_schema_metadata({b"rlsparse_schema_version": b"2"}), path)
    with sql.connect(old) as con:
        rows = sql.run_sql(con, "FROM named_masks ORDER BY mask").to_pylist()
    assert [(row["mask"], row["base_source"]) for row in rows] == [("any", None), ("core", None)]
    assert consensus(old, "algorithm = 'GRPO'", keep="all", name="core").kept.rule


def test_command(store, rlsparse, local_ray):
    words = ("--store", store, "--pair", "grpo", "--rule", "low_magnitude:alpha=0.5")
    done = rlsparse("mask", "small", *words, "--where", "kind = 'mlp'")
    assert (done.code, done.err) == (0, "")
    assert "kept: low_magnitude:alpha=0.5, as small: 4 tensors, 19,800 parameters" in done.out
    again = rlsparse("mask", "small", *words, "--where", "kind = 'mlp'")
    assert again.out.startswith("kept before: ")
    wrong = rlsparse("mask", "small", *words)
    assert wrong.code == 2 and "choose another name" in wrong.err
    assert rlsparse("mask", "a/b", *words).code == 2
