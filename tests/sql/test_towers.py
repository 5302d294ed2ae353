"""Layers of the same number in two stacks of one model are two layers."""

import pytest

from rlsparse_ray import sql
from rlsparse_ray.naming import _CONTAINERS, describe
from tests.builders import (
    extract_directly,
    overlap_directly,
    sparsely_changed,
    weights,
    write_corpus,
    write_model,
)

EMBEDDING = "model.language_model.embed_tokens.weight"
VISION = "model.visual.blocks.0.attn.qkv.weight"
LAYERS = [f"model.language_model.layers.{n}.self_attn.q_proj.weight" for n in (0, 1)]
SHAPES = {EMBEDDING: (50, 20), VISION: (30, 20), **dict.fromkeys(LAYERS, (20, 20))}
NUMEL = {(None, 0): 400, (None, 1): 400, ("visual", 0): 600, (None, None): 1000}


@pytest.fixture(scope="module")
def con(tmp_path_factory):
    """Two runs from one model of vision and language; they leave the vision tower as it is."""
    folder = tmp_path_factory.mktemp("towers")
    base = {name: weights(n, shape) for n, (name, shape) in enumerate(SHAPES.items())}
    write_model(folder / "base", base)
    for run in (0, 1):
        tuned = {
            name: array if name == VISION else sparsely_changed(array, 10 * run + n, 0.4)
            for n, (name, array) in enumerate(base.items())
        }
        write_model(folder / f"run-{run}", tuned)
    pairs = [{"name": f"run-{n}", "base": "base", "tuned": f"run-{n}"} for n in (0, 1)]
    extract_directly(write_corpus(folder / "corpus.yaml", pairs), folder / "store")
    overlap_directly(folder / "store")
    with sql.connect(folder / "store", threads=1) as con:
        yield con


def rows(con, query, **parameters):
    return sql.run_query(con, query, parameters).to_pylist()


def test_sparsity_by_layer(con):
    found = rows(con, "sparsity_by_layer", pair="run-0")
    assert [(r["tower"], r["layer"]) for r in found] == list(NUMEL)
    assert [r["numel"] for r in found] == list(NUMEL.values())
    assert [r["changed"] == 0 for r in found] == [False, False, True, False]


def test_layer_profile(con):
    found = {(r["tower"], r["layer"]): r for r in rows(con, "layer_profile")}
    assert {place: r["numel"] for place, r in found.items()} == {
        place: 2 * numel for place, numel in NUMEL.items()
    }
    assert {place: r["layers"] for place, r in found.items()} == {
        (None, 0): 2,
        (None, 1): 2,
        ("visual", 0): 1,
        (None, None): 2,
    }
    assert found["visual", 0]["sparsity"] == 1 > found[None, 0]["sparsity"]


def test_update_spread(con):
    row, _ = rows(con, "update_spread")
    assert (row["layers"], row["layers_changed"], row["quietest_layer_ratio"]) == (3, 2, 0)


def test_overlap_by_layer(con):
    found = rows(con, "overlap_baselines", a="run-0", b="run-1", level="layer")
    numels = {r["key"]: r["numel"] for r in found if r["baseline"] == "uniform"}
    assert numels == {"0": 400, "1": 400, "visual 0": 600, "none": 1000}


@pytest.mark.parametrize(
    ("tensor", "tower"),
    [
        *((f"{word}.3.w.weight", None) for word in sorted(_CONTAINERS)),
        *((f"some.tower.{word}.3.w.weight", "some.tower") for word in sorted(_CONTAINERS)),
        # the first number counts, as in the name of the module
        ("layers.5.x.layers.3.y.weight", None),
        ("encoder.block.2.layer.0.SelfAttention.q.weight", "encoder"),
        ("deep_layers.5.layers.3.y.weight", "deep_layers.5"),
    ],
)
def test_a_tower_stands_before_the_layer(con, tensor, tower):
    place = describe(tensor)
    assert place.layer is not None
    assert place.module.startswith(f"{tower}." if tower else "")
    found = con.execute("SELECT tower_of($1, $2)", [tensor, place.layer]).fetchone()
    assert found == (tower,)


def test_what_is_in_no_layer_is_in_no_tower(con):
    found = con.execute("SELECT tower_of('visual.blocks.weight', NULL)").fetchone()
    assert found == (None,)
