"""The published tables: the numbers of the corpus beside the measured ones."""

import itertools
import os

import numpy as np
import pytest

from rlsparse_ray import sql
from tests.builders import extract_directly, tuned_from, weights, write_corpus, write_model

SHAPES = {
    "model.embed_tokens.weight": (700, 97),
    "model.layers.0.self_attn.q_proj.weight": (97, 97),
    "model.norm.weight": (97,),
}
GRPO = {"family": "tiny", "algorithm": "GRPO", "stage": "RL"}
FACTS = {
    "seed0": {**GRPO, "seed": 0, "dataset": "math", "source": "a paper"}
    | {"reported_sparsity": 0.97, "labels": {"reported_sparsity_1e-8": 0.96}},
    "seed1": {**GRPO, "seed": 1, "dataset": "math"},
    "code": {**GRPO, "seed": 0, "dataset": "code", "reported_sparsity": 0.5}
    | {"labels": {"reported_criterion": "rel:1e-3", "reported_sparsity_in_words": "half"}},
    "dpo": {"family": "tiny", "algorithm": "DPO", "stage": "preference", "seed": 1},
    "alien": {"family": "alien", "algorithm": "GRPO"},
}
MODELS = {
    name: {n: weights(seed + k, shape, 0.01) for k, (n, shape) in enumerate(SHAPES.items())}
    for seed, name in ((0, "base"), (10, "other"))
}
MODELS |= {name: tuned_from(MODELS["base"], 100 * k, ()) for k, name in enumerate(FACTS, start=1)}


@pytest.fixture(scope="module")
def con(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    for number, (name, model) in enumerate(MODELS.items()):
        written = write_model(folder / name, model)
        # files of one shape, written in one tick of the clock, would be taken for one model
        os.utime(written / "model.safetensors", (0, number))
    pairs = [{"name": name, "base": "base", "tuned": name, **f} for name, f in FACTS.items()]
    moved = {"name": "moved", "base": "other", "tuned": "seed1"} | FACTS["seed1"]
    corpus = write_corpus(folder / "corpus.yaml", [*pairs, moved])
    extract_directly(corpus, folder / "store")
    with sql.connect(folder / "store", threads=1) as con:
        yield con


def masks(name, criterion, base="base"):
    tuned = MODELS["seed1" if name == "moved" else name]
    for tensor in SHAPES:
        x, y = (m[tensor].astype(np.float32).ravel() for m in (MODELS[base], tuned))
        if criterion == "exact":
            yield x, x != y
        elif criterion.startswith("abs:"):
            yield x, np.abs(y - x) > np.float32(float(criterion[4:]))
        else:
            most = np.maximum(np.abs(x), np.abs(y))
            yield x, np.abs(y - x) > np.float32(float(criterion[4:])) * most


def flat(name, criterion, base="base"):
    return np.concatenate([mask for _, mask in masks(name, criterion, base)])


def sparsity(name, criterion):
    mask = flat(name, criterion)
    return sum(1 for bit in mask if not bit) / len(mask)


def test_reported_against_measured(con):
    rows = sql.run_query(con, "paper_table_sparsity").to_pylist()
    expected = [
        ("code", "rel:1e-3", 0.5),
        ("seed0", "abs:1e-5", 0.97),
        ("seed0", "abs:1e-8", 0.96),
    ]
    assert [(r["name"], r["criterion"], r["reported_sparsity"]) for r in rows] == expected
    for row in rows:
        measured = sparsity(row["name"], row["criterion"])
        assert row["measured_sparsity"] == pytest.approx(measured, rel=1e-12)
        difference = measured - row["reported_sparsity"]
        assert row["sparsity_difference"] == pytest.approx(difference, rel=1e-9)
        assert row["sparsity_exact"] == pytest.approx(sparsity(row["name"], "exact"), rel=1e-12)
        assert row["source"] == ("a paper" if row["name"] == "seed0" else None)


def test_the_rule_behind_a_figure_can_be_set(con):
    rows = sql.run_query(con, "paper_table_sparsity", {"criterion": "abs:1e-4"}).to_pylist()
    assert [(r["name"], r["criterion"]) for r in rows] == [
        ("code", "rel:1e-3"),
        ("seed0", "abs:1e-4"),
        ("seed0", "abs:1e-8"),
    ]


def expected_by_strata(a, b, criterion):
    """By the binary exponent of the base weight, one stratum after another."""
    total = 0.0
    for (base, x), (_, y) in zip(masks(a, criterion), masks(b, criterion), strict=True):
        exponents = np.frexp(base)[1]
        for exponent in set(exponents.tolist()):
            inside = exponents == exponent
            total += int(x[inside].sum()) * int(y[inside].sum()) / int(inside.sum())
    return total


def base_of(name):
    return "other" if name == "moved" else "base"


def expected_by_tensor(a, b, criterion):
    sides = (masks(name, criterion, base_of(name)) for name in (a, b))
    return sum(int(x.sum()) * int(y.sum()) / len(x) for (_, x), (_, y) in zip(*sides, strict=True))


@pytest.mark.parametrize("criterion", ["exact", "abs:1e-5"])
def test_overlaps_of_one_family(con, criterion):
    rows = sql.run_query(con, "paper_table_overlap", {"criterion": criterion}).to_pylist()
    names = ("seed0", "seed1", "code", "dpo", "moved")
    pairs = {frozenset((row["name_a"], row["name_b"])): row for row in rows}
    assert len(rows) == len(pairs) == 10
    assert pairs.keys() == {frozenset(two) for two in itertools.combinations(names, 2)}
    for row in rows:
        sides = (row["name_a"], row["name_b"])
        x, y = (flat(n, criterion, base_of(n)) for n in sides)
        shared = int((x & y).sum())
        assert row["shared"] == shared
        assert row["numel"] == len(x)
        expected = {
            "sparsity_a": 1 - x.mean(),
            "sparsity_b": 1 - y.mean(),
            "o1": shared / x.sum(),
            "o1_by_chance_share": y.mean(),
            "o2": shared / y.sum(),
            "o2_by_chance_share": x.mean(),
            "lift_uniform": shared / (x.mean() * y.mean() * len(x)),
            "lift_tensor": shared / expected_by_tensor(*sides, criterion),
            "sample_fraction": 1.0,
        }
        for column, value in expected.items():
            assert row[column] == pytest.approx(float(value), rel=1e-12), column
        identity = row["o1"] * (1 - row["sparsity_a"])
        assert identity == pytest.approx(row["o2"] * (1 - row["sparsity_b"]), rel=1e-12)
        if "moved" in sides:
            assert row["lift_magnitude"] is None
        else:
            lift = shared / expected_by_strata(*sides, criterion)
            assert row["lift_magnitude"] == pytest.approx(lift, rel=1e-12)


def test_what_differs(con):
    rows = sql.run_query(con, "paper_table_overlap").to_pylist()
    differs = {frozenset((row["name_a"], row["name_b"])): row["differs"] for row in rows}
    assert differs[frozenset(("seed0", "seed1"))] == "seed"
    assert differs[frozenset(("seed0", "code"))] == "dataset"
    assert differs[frozenset(("seed1", "code"))] == "dataset, seed"
    assert differs[frozenset(("seed1", "dpo"))] == "stage, algorithm, dataset"
    assert differs[frozenset(("seed1", "moved"))] == "base"
