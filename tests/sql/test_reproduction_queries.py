"""The queries behind the claims of a reproduction, against weights counted one by one."""

import itertools
import os
from dataclasses import dataclass

import numpy as np
import pytest

from rlsparse_ray import sql
from rlsparse_ray.errors import QueryError
from tests.builders import (
    BF16,
    extract_directly,
    overlap_directly,
    sparsely_changed,
    weights,
    write_corpus,
    write_model,
)

SHAPES = {
    "model.embed_tokens.weight": (700, 97),
    "model.layers.0.self_attn.q_proj.weight": (97, 97),
    "model.layers.1.self_attn.q_proj.weight": (97, 97),
    "model.layers.1.mlp.up_proj.weight": (150, 97),
    "model.norm.weight": (97,),
}
KEYS = list(SHAPES)


@dataclass(frozen=True)
class Made:
    base: str
    tuned: str
    facts: dict
    labels: dict


def labelled(before, after, **more):
    return {"reward_before": f"{before:.4f}", "reward_after": f"{after:.4f}"} | more


MAIN = {"study": "main"}
PAIRS = {
    "grpo-0": Made(
        "base", "grpo-0", {"algorithm": "GRPO", "dataset": "add", "seed": 0}, labelled(0.4, 0.6)
    ),
    "grpo-1": Made(
        "base", "grpo-1", {"algorithm": "GRPO", "dataset": "add", "seed": 1}, labelled(0.4, 0.405)
    ),
    "dpo-0": Made(
        "base", "dpo-0", {"algorithm": "DPO", "dataset": "sub", "seed": 0}, labelled(0.4, 0.3)
    ),
    "elsewhere": Made("other", "dpo-0", {"algorithm": "DPO", "seed": 0}, {}),
    **{
        f"grpo-0-{mask}": Made(
            "base",
            mask,
            {"algorithm": "GRPO", "dataset": "add", "seed": 0},
            labelled(0.4, after, mask=mask, mask_of="grpo-0", study="masked"),
        )
        for mask, after in (("subnetwork", 0.58), ("random", 0.5), ("complement", 0.4))
    },
    **{
        f"grpo-0-against-{mask}": Made("grpo-0", mask, {}, {"study": "against-full"})
        for mask in ("subnetwork", "random")
    },
}
MODELS = {
    name: {
        tensor: weights(seed + n, shape, 0.01) for n, (tensor, shape) in enumerate(SHAPES.items())
    }
    for seed, name in ((0, "base"), (10, "other"))
}
for place, tuned in enumerate(("grpo-0", "grpo-1", "dpo-0")):
    MODELS[tuned] = {
        tensor: array
        if tensor == KEYS[4]
        else sparsely_changed(array, 100 * place + n, 0.1 + n / 20)
        for n, (tensor, array) in enumerate(MODELS["base"].items())
    }
# dpo-0 leaves one layer as it was
MODELS["dpo-0"][KEYS[1]] = MODELS["base"][KEYS[1]]


def masked(inside):
    """Three quarters of the weights that are `inside` or outside the mask of grpo-0 move."""
    model = {}
    for n, (tensor, base) in enumerate(MODELS["base"].items()):
        mask = (MODELS["grpo-0"][tensor] != base) == inside
        drawn = np.random.default_rng(n).random(base.shape) < 0.75
        model[tensor] = np.where(mask & drawn, MODELS["grpo-0"][tensor] * BF16(1.5), base)
    return model


MODELS["subnetwork"], MODELS["complement"] = masked(True), masked(False)
# seven weights that nothing allowed to move
MODELS["subnetwork"][KEYS[4]] = MODELS["base"][KEYS[4]].copy()
MODELS["subnetwork"][KEYS[4]][:7] *= BF16(2)
MODELS["random"] = {t: sparsely_changed(a, 900, 0.1) for t, a in MODELS["base"].items()}


@pytest.fixture(scope="module")
def con(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduction")
    for number, (name, model) in enumerate(MODELS.items()):
        written = write_model(folder / name, model)
        # files of one shape, written in one tick of the clock, would be taken for one model
        os.utime(written / "model.safetensors", (0, number))
    pairs = [
        {"name": name, "base": made.base, "tuned": made.tuned, **made.facts}
        | (
            {"labels": (MAIN if "mask" not in made.labels else {}) | made.labels}
            if made.labels
            else {}
        )
        for name, made in PAIRS.items()
    ]
    extract_directly(write_corpus(folder / "corpus.yaml", pairs), folder / "store")
    overlap_directly(folder / "store")
    with sql.connect(folder / "store", threads=1) as con:
        yield con


def rows(con, query, **parameters):
    return {
        row.get("name") or (row["name_a"], row["name_b"]): row
        for row in sql.run_query(con, query, parameters).to_pylist()
    }


def mask(name, tensor, criterion="exact"):
    made = PAIRS[name]
    x, y = (MODELS[m][tensor].astype(np.float32).ravel() for m in (made.base, made.tuned))
    if criterion == "exact":
        return x != y
    return np.abs(y - x) > np.float32(float(criterion[4:]))


def sparsity(name, criterion="exact", tensors=KEYS):
    flat = np.concatenate([mask(name, tensor, criterion) for tensor in tensors])
    return sum(1 for bit in flat if not bit) / len(flat)


def test_run_results(con):
    found = rows(con, "run_results", margin="0.01")
    told = {name for name, made in PAIRS.items() if "reward_after" in made.labels}
    assert found.keys() == told
    for name, row in found.items():
        assert row["sparsity"] == pytest.approx(sparsity(name))
        assert row["density"] == pytest.approx(1 - sparsity(name))
        assert row["sparsity_1e5"] == pytest.approx(sparsity(name, "abs:1e-5"))
        assert row["sparsity_1e4"] == pytest.approx(sparsity(name, "abs:1e-4"))
        assert row["sparsity_norms"] == pytest.approx(sparsity(name, tensors=KEYS[4:]))
    assert {name for name, row in found.items() if row["learned"]} == {
        "grpo-0",
        "grpo-0-subnetwork",
        "grpo-0-random",
    }
    assert found["grpo-0"]["study"] == "main" and found["grpo-0-random"]["study"] == "masked"
    assert rows(con, "run_results")["grpo-1"]["learned"]


def test_update_spread(con):
    found = rows(con, "update_spread")
    assert found.keys() == PAIRS.keys()
    for name, row in found.items():
        changed = {tensor: int(mask(name, tensor).sum()) for tensor in KEYS}
        assert row["matrices"] == 4
        assert row["matrices_changed"] == sum(changed[tensor] > 0 for tensor in KEYS[:4])
        layers = (KEYS[1:2], KEYS[2:4])
        of_layers = sum(changed[tensor] for layer in layers for tensor in layer)
        numel = {tensor: np.prod(SHAPES[tensor]) for tensor in KEYS}
        size = sum(numel[tensor] for layer in layers for tensor in layer)
        ratios = [
            (sum(changed[t] for t in layer) / of_layers) / (sum(numel[t] for t in layer) / size)
            for layer in layers
        ]
        assert row["busiest_layer_ratio"] == pytest.approx(max(ratios))
        assert row["quietest_layer_ratio"] == pytest.approx(min(ratios))
        assert row["layers_changed"] == sum(ratio > 0 for ratio in ratios)
    assert found["dpo-0"]["quietest_layer_ratio"] == 0
    with pytest.raises(QueryError, match="no pair counts criterion nonsense"):
        rows(con, "update_spread", criterion="nonsense")


def expected(one, other, baseline):
    total = 0.0
    for tensor in KEYS:
        a, b = mask(one, tensor), mask(other, tensor)
        if baseline == "tensor":
            total += a.sum() * b.sum() / len(a)
        else:
            exponents = np.frexp(MODELS[PAIRS[one].base][tensor].astype(np.float64).ravel())[1]
            for e in np.unique(exponents):
                there = exponents == e
                total += a[there].sum() * b[there].sum() / there.sum()
    if baseline == "uniform":
        a, b = (np.concatenate([mask(n, t) for t in KEYS]) for n in (one, other))
        return a.sum() * b.sum() / len(a)
    return total


def test_overlap_excess(con):
    found = rows(con, "overlap_excess")
    # the tuned models of the others are there already
    runs = [name for name in PAIRS if name != "elsewhere" and "-against-" not in name]
    assert {frozenset(key) for key in found} == {
        frozenset(pair) for pair in itertools.combinations(runs, 2)
    }
    for (one, other), row in found.items():
        a, b = (np.concatenate([mask(n, t) for t in KEYS]) for n in (one, other))
        shared, smaller = int((a & b).sum()), min(int(a.sum()), int(b.sum()))
        assert row["shared"] == shared
        for baseline in ("uniform", "tensor", "magnitude"):
            chance = expected(one, other, baseline)
            share = (shared - chance) / (smaller - chance)
            assert row[f"excess_share_{baseline}"] == pytest.approx(share), baseline
    told = {frozenset(key): row["differs"] for key, row in found.items()}
    assert told[frozenset(("grpo-0", "grpo-1"))] == "seed"
    assert told[frozenset(("grpo-0", "dpo-0"))] == "algorithm, dataset"
    assert told[frozenset(("grpo-1", "dpo-0"))] == "algorithm, dataset, seed"


def test_masked_runs(con):
    found = rows(con, "masked_runs")
    assert found.keys() == {f"grpo-0-{mask}" for mask in ("subnetwork", "random", "complement")}
    gains = {name: row["gain_share"] for name, row in found.items()}
    assert gains == pytest.approx(
        {"grpo-0-subnetwork": 0.9, "grpo-0-random": 0.5, "grpo-0-complement": 0.0}
    )
    for which in ("subnetwork", "random"):
        row, pair = found[f"grpo-0-{which}"], f"grpo-0-against-{which}"
        assert row["equal_share_exact"] == pytest.approx(sparsity(pair))
        assert row["equal_share_1e5"] == pytest.approx(sparsity(pair, "abs:1e-5"))
        assert row["equal_share_1e4"] == pytest.approx(sparsity(pair, "abs:1e-4"))
        assert row["name_full"] == "grpo-0" and row["reward_after_full"] == 0.6
    assert found["grpo-0-complement"]["equal_share_exact"] is None
    leaked = {name: row["leaked"] for name, row in found.items()}
    assert leaked == {"grpo-0-subnetwork": 7, "grpo-0-random": None, "grpo-0-complement": 0}


def test_the_full_run_of_a_name_is_that_on_the_same_base(tmp_path):
    """Two corpora of one store may have runs of one name."""
    for number, name in enumerate(("base", "other", "grpo-0", "dpo-0", "random", "complement")):
        written = write_model(tmp_path / name, MODELS[name])
        os.utime(written / "model.safetensors", (0, number))

    def extract(pairs):
        corpus = write_corpus(tmp_path / "corpus.yaml", pairs)
        extract_directly(corpus, tmp_path / "store")
        with sql.connect(tmp_path / "store", threads=1) as con:
            return sql.run_query(con, "masked_runs").to_pylist()

    labels = PAIRS["grpo-0-complement"].labels
    full = {"name": "grpo-0", "base": "base", "tuned": "grpo-0", "labels": PAIRS["grpo-0"].labels}
    masked = {"name": "m", "base": "base", "tuned": "complement", "labels": labels}
    extract([full, masked])
    (row,) = extract([full | {"base": "other", "tuned": "random"}])
    assert (row["name"], row["name_full"], row["leaked"]) == ("m", "grpo-0", 0)
    with pytest.raises(QueryError, match="mask_of of m: run name grpo-0 is ambiguous: ids grpo-0"):
        extract([full | {"tuned": "dpo-0"}])
