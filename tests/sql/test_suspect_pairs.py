"""suspect_pairs: which pairs it names, why, and how far they are apart."""

import math

import pytest

from rlsparse_ray import sql

SCORES = {"grpo-seed0": 0.9999, "grpo-seed1": 0.7499, "dpo": None, "other": 0.75}


@pytest.fixture
def scored(damaged):
    """The store with a lineage score for each pair."""
    for pair in damaged.pairs:
        set_columns(damaged, pair, lineage_score=SCORES[pair.name])
    return damaged


def set_columns(store, pair, **columns):
    part = f"pairs/pair_id={pair.pair_id}/pairs.parquet"
    store.edit(part, lambda rows: [row | {"labels": [], **columns} for row in rows])


def suspects(store, **params):
    found = sql.run_query(sql.connect(store.place), "suspect_pairs", params).to_pylist()
    return {row["name"]: row for row in found}


def reasons(store, **params):
    return [(name, row["suspicion"]) for name, row in suspects(store, **params).items()]


def test_pairs_below_the_threshold_and_unknown_ones(scored):
    assert reasons(scored) == [("grpo-seed1", "unrelated"), ("dpo", "unknown")]
    assert suspects(scored)["grpo-seed1"]["lineage_score"] == 0.7499


def test_threshold_is_a_parameter(scored):
    assert reasons(scored, threshold="0.5") == [("dpo", "unknown")]
    assert reasons(scored, threshold="1") == [
        ("grpo-seed1", "unrelated"),
        ("other", "unrelated"),
        ("grpo-seed0", "unrelated"),
        ("dpo", "unknown"),
    ]


@pytest.mark.parametrize(
    ("columns", "same"),
    [
        ({"tensors_identical": 9, "tensors_compared": 9}, True),
        ({"tensors_identical": 8, "tensors_compared": 9}, False),
        ({"tensors_identical": 0, "tensors_compared": 0}, False),
        ({"tensors_identical": 9, "tensors_compared": 9, "tensors_partial": 1}, False),
    ],
)
def test_the_same_weights_on_both_sides(scored, columns, same):
    set_columns(scored, scored.pair("grpo-seed0"), lineage_score=1.0, **columns)
    assert (("grpo-seed0", "same weights") in reasons(scored)) == same


def test_distance_is_that_of_the_matrices(store):
    """Every pair of the clean store is unknown, so each of them has a row."""
    found = suspects(store)
    assert found.keys() == {pair.name for pair in store.pairs}
    for pair in store.pairs:
        matrices = [
            t for t in pair.compared.values() if t.kind != "norm" and len(t.shape) > 1 and t.numel
        ]
        update, base = (
            math.sqrt(math.fsum(getattr(t, name) ** 2 for t in matrices))
            for name in ("update_l2", "base_l2")
        )
        assert matrices
        assert found[pair.name]["relative_distance"] == pytest.approx(update / base, rel=1e-12)
