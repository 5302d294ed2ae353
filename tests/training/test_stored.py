"""Subnetworks out of a store: the bits that its Parquet files hold, and what is said where not."""

import shutil

import numpy as np
import pytest
import torch
from torch import nn

from rlsparse_ray.errors import QueryError, StoreError
from rlsparse_ray.population.consensus import consensus
from rlsparse_ray.training import SubnetworkSGD, load_subnetwork, stored
from tests.builders import (
    extract_directly,
    id_of,
    rows_of,
    small_model,
    tuned_from,
    weights,
    write_corpus,
    write_model,
)

CONSENSUS_OF = ("grpo-0", "grpo-1", "sft")


@pytest.fixture
def copy(example, tmp_path):
    """The example's store, to write to."""
    return shutil.copytree(example.store, tmp_path / "store")


def changed(base, tuned):
    """Which weights differ, by canonical name; +0 is -0."""
    return {
        name.removeprefix("model."): base[name].astype(np.float32) != tuned[name].astype(np.float32)
        for name in base
    }


def example_masks():
    base = small_model()
    tuned = [tuned_from(base, 100), tuned_from(base, 200), tuned_from(base, 300, keep=())]
    return {n: changed(base, t) for n, t in zip(CONSENSUS_OF, tuned, strict=True)}


@pytest.mark.parametrize("by", ["name", "id"])
@pytest.mark.parametrize("name", CONSENSUS_OF)
def test_a_pair(example, by, name, monkeypatch):
    monkeypatch.setattr(stored, "BATCH", 1)
    pair_id = id_of(example.plan, name)
    sub = load_subnetwork(example.store, name if by == "name" else pair_id)
    want = example_masks()[name]
    assert sub.names == tuple(sorted(want))
    for tensor, flags in want.items():
        assert np.array_equal(sub[tensor].flags(), flags)
    assert sub.source == f"pair {name}, exact"
    counted = sum(
        r["changed"] for r in rows_of(example.store, "counts", pair_id) if r["criterion"] == "exact"
    )
    assert sub.size == counted
    if name != "sft":
        assert sub["norm.weight"].size == 0
    assert load_subnetwork(example.store, name, "abs:1e-5").size < sub.size


def test_a_kept_mask(copy):
    consensus(copy, keep=2, name="core")
    sub = load_subnetwork(copy, "mask:core")
    assert sub.source == "mask core, at least 2 of 3"
    masks = example_masks()
    assert sub.names == tuple(sorted(masks["sft"]))
    for tensor in sub:
        votes = sum(masks[name][tensor].astype(int) for name in CONSENSUS_OF)
        assert np.array_equal(sub[tensor].flags(), votes >= 2)


def test_rows_that_only_the_base_has_are_frozen(tmp_path):
    base = small_model(vocabulary=130)
    tuned = tuned_from(base, 1)
    short = {n: a[:121] if a.shape[0] == 130 else a for n, a in tuned.items()}
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "tuned", short)
    corpus = write_corpus(
        tmp_path / "corpus.yaml", [{"name": "run", "base": "base", "tuned": "tuned"}]
    )
    extract_directly(corpus, tmp_path / "store")
    sub = load_subnetwork(tmp_path / "store", "run")
    want = changed(base, tuned)
    for name in ("embed_tokens.weight", "lm_head.weight"):
        want[name][121:] = False
    assert sub.numel == sum(a.size for a in base.values())
    for name, flags in want.items():
        assert np.array_equal(sub[name].flags(), flags)


@pytest.mark.parametrize("fused_side", ["base", "tuned"])
def test_a_fused_and_a_split_checkpoint(tmp_path, fused_side):
    """Parts of qkv have their own rows in the store; the base's own tensor is trained."""
    prefix = "model.layers.0.self_attn."
    shapes = {f"{prefix}{x}_proj.weight": (rows, 24) for x, rows in (("q", 40), ("k", 8), ("v", 8))}
    split = {n: weights(i, shape) for i, (n, shape) in enumerate(shapes.items())}
    rest = {"model.embed_tokens.weight": weights(9, (50, 24))}
    tuned = tuned_from(split, 5, keep=())

    def write(name, parts, fused):
        whole = {f"{prefix}qkv_proj.weight": np.concatenate([*parts.values()])}
        write_model(tmp_path / name, rest | (whole if fused else parts))

    write("base", split, fused_side == "base")
    write("tuned", tuned, fused_side == "tuned")
    corpus = write_corpus(
        tmp_path / "corpus.yaml", [{"name": "run", "base": "base", "tuned": "tuned"}]
    )
    extract_directly(corpus, tmp_path / "store")
    sub = load_subnetwork(tmp_path / "store", "run")
    want = np.concatenate([f.reshape(-1) for f in changed(split, tuned).values()])
    whole = {f"{prefix}qkv_proj.weight": (56, 24)}
    for names in (shapes, whole):
        model = {n: nn.Parameter(torch.zeros(s)) for n, s in names.items()}
        model |= {"model.embed_tokens.weight": nn.Parameter(torch.zeros(50, 24))}
        for p in model.values():
            p.grad = torch.ones_like(p)
        SubnetworkSGD(model.items(), sub, lr=1.0).step()
        moved = torch.cat([model[n].detach().reshape(-1) for n in names]).numpy() != 0
        assert np.array_equal(moved, want)
        assert not model["model.embed_tokens.weight"].any()


@pytest.mark.parametrize(
    ("name", "criterion", "error", "message"),
    [
        ("grpo-2", "exact", QueryError, "no pair named 'grpo-2' .*; did you mean grpo-[01]"),
        ("something", "exact", QueryError, "no pair named .*; rlsparse status lists them"),
        ("sft", "abs:1e-3", StoreError, "sft keeps no masks of criterion abs:1e-3, only of exact"),
        ("sft", "abs", QueryError, "unknown criterion 'abs'"),
        ("mask:core", "exact", QueryError, "no mask named 'core' .*rlsparse consensus --keep"),
    ],
)
def test_what_is_not_there(example, name, criterion, error, message):
    with pytest.raises(error, match=message):
        load_subnetwork(example.store, name, criterion)


def test_other_masks_are_named(copy):
    consensus(copy, keep=2, name="core")
    with pytest.raises(QueryError, match=r"no mask named 'cor' in .*; there are: core"):
        load_subnetwork(copy, "mask:cor")


def test_an_ambiguous_name(tmp_path):
    base = small_model()
    write_model(tmp_path / "base", base)
    for number in (0, 1):
        write_model(tmp_path / f"tuned-{number}", tuned_from(base, number))
        pairs = [{"name": "run", "base": "base", "tuned": f"tuned-{number}"}]
        corpus = write_corpus(tmp_path / f"{number}.yaml", pairs)
        extract_directly(corpus, tmp_path / "store")
    with pytest.raises(QueryError, match=r"pair name run is ambiguous in .*: say one of run-"):
        load_subnetwork(tmp_path / "store", "run")


def test_damage(copy, example):
    folder = copy / "masks" / f"pair_id={id_of(example.plan, 'sft')}" / "criterion=exact"
    parts = sorted(folder.iterdir())
    parts[0].write_bytes(parts[-1].read_bytes())
    with pytest.raises(StoreError, match="rlsparse verify"):
        load_subnetwork(copy, "sft")
    consensus(copy, "name <> 'sft'", keep=2, name="core")
    tensors = copy / "tensors" / f"pair_id={id_of(example.plan, 'grpo-0')}" / "tensors.parquet"
    tensors.write_bytes(b"not Parquet")
    with pytest.raises(StoreError, match=r"tensors\.parquet: .*rlsparse verify"):
        load_subnetwork(copy, "mask:core")
    tensors.unlink()
    with pytest.raises(StoreError, match=r"tensors\.parquet: missing"):
        load_subnetwork(copy, "mask:core")
    with pytest.raises(StoreError, match="no store there"):
        load_subnetwork(copy / "masks", "sft")
