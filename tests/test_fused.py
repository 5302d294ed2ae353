"""Fused against split: cut by shapes, and only where everything adds up."""

import numpy as np
import pytest

from rlsparse_ray.align import align
from tests.builders import (
    extract_directly,
    mask_rows,
    rows_of,
    sparsely_changed,
    weights,
    write_corpus,
    write_model,
)
from tests.test_align import model

LAYER = "model.layers.0"
SPLIT_QKV = {
    f"{LAYER}.self_attn.q_proj.weight": (8, 6),
    f"{LAYER}.self_attn.k_proj.weight": (4, 6),
    f"{LAYER}.self_attn.v_proj.weight": (4, 6),
}


def found(base, tuned):
    return {r.tensor: (r.status, r.base and r.base.name) for r in align(base, tuned)}


@pytest.mark.parametrize("module", ["qkv_proj", "W_pack"])
def test_a_fused_base_is_cut_as_the_tuned_model_is_split(module):
    name = f"{LAYER}.self_attn.{module}.weight"
    rows = align(model({"a": (3,), name: (16, 6), "b": (1,)}), model(SPLIT_QKV | {"a": (3,)}))
    assert [(r.tensor, r.status, r.base and r.base.name) for r in rows] == [
        ("a", "compared", "a"),
        ("layers.0.self_attn.q_proj.weight", "compared", f"{name}[0:8]"),
        ("layers.0.self_attn.k_proj.weight", "compared", f"{name}[8:12]"),
        ("layers.0.self_attn.v_proj.weight", "compared", f"{name}[12:16]"),
        ("b", "base_only", "b"),
    ]
    assert [(r.base.offset, r.base.nbytes, r.base.stored_name) for r in rows[1:4]] == [
        (14, 96, name),
        (110, 48, name),
        (158, 48, name),
    ]


def test_biases_and_a_fused_tuned_side():
    base = {name.replace("weight", "bias"): shape[:1] for name, shape in SPLIT_QKV.items()}
    rows = align(model(base), model({"layers.0.self_attn.qkv_proj.bias": (16,)}))
    assert [(r.status, r.tuned.name.rpartition("[")[2]) for r in rows] == [
        ("compared", "0:8]"),
        ("compared", "8:12]"),
        ("compared", "12:16]"),
    ]


@pytest.mark.parametrize(
    "fused",
    [
        {f"{LAYER}.self_attn.qkv_proj.weight": (15, 6)},  # does not add up
        {f"{LAYER}.self_attn.qkv_proj.weight": (16, 5)},  # other columns
        {f"{LAYER}.self_attn.qkv_proj.weight": ("F4", 16, 6)},  # no whole bytes
        {f"{LAYER}.self_attn.query_key_value.weight": (16, 6)},  # by head in most models
    ],
)
def test_what_does_not_fit_is_left_as_it_is(fused):
    (name,) = fused
    rows = found(model(fused | {"a": (1,)}), model(SPLIT_QKV | {"a": (1,)}))
    assert rows.pop("a") == ("compared", "a")
    assert rows.pop(name.removeprefix("model.")) == ("base_only", name)
    assert {status for status, _ in rows.values()} == {"tuned_only"}
    assert len(rows) == 3


def test_a_part_that_is_missing_leaves_everything_as_it_is():
    split = dict(list(SPLIT_QKV.items())[:2]) | {"a": (1,)}
    rows = found(model({f"{LAYER}.self_attn.qkv_proj.weight": (16, 6), "a": (1,)}), model(split))
    assert sorted(status for status, _ in rows.values()) == [
        "base_only",
        "compared",
        "tuned_only",
        "tuned_only",
    ]


def test_both_fused_are_compared_as_they_are():
    fused = model({f"{LAYER}.mlp.gate_up_proj.weight": (16, 6)})
    assert list(found(fused, fused)) == ["layers.0.mlp.gate_up_proj.weight"]


@pytest.mark.parametrize(
    ("gate", "up", "down"), [("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")]
)
@pytest.mark.parametrize("leaf", ["", ".weight"])
def test_stacked_experts(gate, up, down, leaf):
    experts = f"{LAYER}.mlp.experts"
    stacked = {f"{experts}.gate_up_proj{leaf}": (3, 10, 4), f"{experts}.down_proj{leaf}": (3, 4, 5)}
    split = {}
    for e in range(3):
        split |= {f"{experts}.{e}.{gate}.weight": (5, 4), f"{experts}.{e}.{up}.weight": (5, 4)}
        split |= {f"{experts}.{e}.{down}.weight": (4, 5)}
    rows = {r.tensor: r for r in align(model(stacked), model(split))}
    assert len(rows) == 9
    assert {r.status for r in rows.values()} == {"compared"}
    name = f"layers.0.mlp.experts.1.{up}.weight"
    assert rows[name].base.name == f"{experts}.gate_up_proj{leaf}[1,5:10]"
    assert rows[name].base.offset == 8 + (10 + 5) * 4 * 2


def test_the_transposed_layout_of_stacked_experts_is_not_taken_for_the_other():
    experts = f"{LAYER}.mlp.experts"
    split = {f"{experts}.0.gate_proj.weight": (5, 4), f"{experts}.0.up_proj.weight": (5, 4)}
    rows = found(
        model({f"{experts}.gate_up_proj": (1, 4, 10), "a": (1,)}), model(split | {"a": (1,)})
    )
    assert rows["layers.0.mlp.experts.gate_up_proj"][0] == "base_only"


def twins():
    """One model, with everything split and with everything fused."""
    split, fused = {"model.norm.weight": weights(1, (64,), 1.0)}, {}
    fused |= split
    attention = [weights(n, (rows, 64)) for n, rows in ((2, 64), (3, 32), (4, 32))]
    split |= {
        f"{LAYER}.self_attn.{m}_proj.weight": a for m, a in zip("qkv", attention, strict=True)
    }
    fused[f"{LAYER}.self_attn.qkv_proj.weight"] = np.concatenate(attention)
    gates, ups, downs = (
        [weights(10 * k + e, shape) for e in range(4)]
        for k, shape in ((1, (40, 64)), (2, (40, 64)), (3, (64, 40)))
    )
    experts = f"{LAYER}.mlp.experts"
    for e in range(4):
        split[f"{experts}.{e}.gate_proj.weight"] = gates[e]
        split[f"{experts}.{e}.up_proj.weight"] = ups[e]
        split[f"{experts}.{e}.down_proj.weight"] = downs[e]
    fused[f"{experts}.gate_up_proj"] = np.stack(
        [np.concatenate([g, u]) for g, u in zip(gates, ups, strict=True)]
    )
    fused[f"{experts}.down_proj"] = np.stack(downs)
    return split, fused


def test_twins_on_disk(tmp_path):
    """Nothing has changed either way, and a tuned model has the same masks against both."""
    split, fused = twins()
    tuned = {n: sparsely_changed(a, k) for k, (n, a) in enumerate(split.items())}
    for name, tensors in (("split", split), ("fused", fused), ("tuned", tuned)):
        write_model(tmp_path / name, tensors)
    pairs = [
        {"name": f"{a}-{b}", "base": a, "tuned": b}
        for a, b in (("split", "fused"), ("fused", "split"), ("split", "tuned"), ("fused", "tuned"))
    ]
    corpus = write_corpus(tmp_path / "c.yaml", pairs, slice_bytes=20_000)
    ids = [pair.pair_id for pair in extract_directly(corpus, tmp_path / "s").pairs]
    for pair_id in ids[:2]:
        rows = rows_of(tmp_path / "s", "tensors", pair_id)
        assert {r["status"] for r in rows} == {"identical"}
        assert sum(r["numel"] for r in rows) == sum(a.size for a in split.values())
    one, other = (
        sorted(mask_rows(tmp_path / "s", i, "exact"), key=lambda r: (r["tensor_key"], r["block"]))
        for i in ids[2:]
    )
    assert one == other
    assert sum(r["changed"] for r in one) > 0
    names = {r["tensor"]: r["base_name"] for r in rows_of(tmp_path / "s", "tensors", ids[3])}
    assert names["layers.0.self_attn.k_proj.weight"].endswith("qkv_proj.weight[64:96]")
