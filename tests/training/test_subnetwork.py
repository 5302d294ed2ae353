"""Bits of subnetworks against booleans, one by one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rlsparse_ray.errors import TrainingError
from rlsparse_ray.training import Subnetwork, TensorMask

SHAPES = st.lists(st.integers(0, 7), max_size=3).map(tuple)
FLAGS = st.builds(
    lambda shape, seed, density: np.random.default_rng(seed).random(shape) < density,
    SHAPES,
    st.integers(0, 99),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
)
SUBNETWORKS = st.lists(FLAGS, max_size=4).map(
    lambda all_flags: {f"layers.{n}.weight": flags for n, flags in enumerate(all_flags)}
)


@given(SUBNETWORKS)
def test_bits_and_counts(flags):
    sub = Subnetwork.from_masks(flags)
    assert sub.names == tuple(sorted(flags)) == tuple(sub)
    assert sub.numel == sum(f.size for f in flags.values())
    assert sub.size == sum(int(f.sum()) for f in flags.values())
    assert sub.density == (sub.size / sub.numel if sub.numel else 0)
    for name, each in flags.items():
        assert sub[name].shape == each.shape
        assert np.array_equal(sub[name].flags(), each)
        ones = [i for i, bit in enumerate(each.reshape(-1)) if bit]
        assert [i for i in range(each.size) if sub[name].bits[i // 8] >> i % 8 & 1] == ones


@given(SUBNETWORKS, st.integers(0, 5))
def test_complement_and_random(flags, seed):
    sub = Subnetwork.from_masks(flags)
    rest, control = sub.complement(), sub.random(seed)
    assert rest.complement().fingerprint == sub.fingerprint
    assert control.fingerprint == sub.random(seed).fingerprint
    for name, each in flags.items():
        assert np.array_equal(rest[name].flags(), ~each)
        assert control[name].size == each.sum()
        assert control[name].flags().sum() == each.sum()
        assert control[name].shape == each.shape
        for mask in (rest[name], control[name]):
            padding = np.unpackbits(mask.bits, bitorder="little")[each.size :]
            assert not padding.any()
            assert not mask.bits.flags.writeable


def test_random_is_uniform_over_sets():
    """All 10 sets of 2 (and of 3) in 5 parameters, equally often."""
    for size in (2, 3):
        sub = Subnetwork.from_masks({"w": np.arange(5) < size})
        found = [sub.random(seed)["w"].bits.tobytes() for seed in range(2000)]
        counts = [found.count(each) for each in set(found)]
        assert len(counts) == 10
        assert stats.chisquare(counts).pvalue > 1e-4


def test_random_of_many_draws(monkeypatch):
    monkeypatch.setattr("rlsparse_ray.training.subnetwork._DRAWS", 1000)
    sub = Subnetwork.from_masks({"w": np.random.default_rng(0).random((300, 100)) < 0.4})
    flags = sub.random(1)["w"].flags()
    assert flags.sum() == sub.size
    # a hypergeometric count in the rows of one half
    half = stats.hypergeom(30_000, sub.size, 15_000)
    assert 1e-5 < half.cdf(flags[:150].sum()) < 1 - 1e-5
    shared = stats.hypergeom(30_000, sub.size, sub.size)
    assert 1e-5 < shared.cdf((flags & sub["w"].flags()).sum()) < 1 - 1e-5


def test_seeds_and_tensors_differ():
    flags = np.arange(1000) < 300
    sub = Subnetwork.from_masks({"a": flags, "b": flags})
    one, two = sub.random(0), sub.random(1)
    assert not np.array_equal(one["a"].bits, one["b"].bits)
    assert not np.array_equal(one["a"].bits, two["a"].bits)
    alone = Subnetwork.from_masks({"b": flags}).random(0)
    assert np.array_equal(alone["b"].bits, one["b"].bits)


def test_fingerprint_tells_names_shapes_and_bits_apart():
    flags = np.arange(24) % 3 == 0
    subs = [
        {"a": flags},
        {"b": flags},
        {"a": flags.reshape(4, 6)},
        {"a": flags.reshape(6, 4)},
        {"a": ~flags},
        {"a": flags, "b": flags},
    ]
    assert len({Subnetwork.from_masks(masks).fingerprint for masks in subs}) == len(subs)
    one, other = {"a": flags, "b": ~flags}, {"b": ~flags, "a": flags}
    assert Subnetwork.from_masks(one).fingerprint == Subnetwork.from_masks(other).fingerprint


def test_from_tensors_and_model_names():
    masks = {"model.norm.weight": torch.tensor([True, False]), "lm_head.weight": torch.ones(1) > 0}
    sub = Subnetwork.from_masks(masks)
    assert sub.names == ("lm_head.weight", "norm.weight")
    assert "norm.weight" in sub
    assert len(sub) == 2
    assert sub["norm.weight"].flags().tolist() == [True, False]
    with pytest.raises(TrainingError, match=r"mask of norm\.weight: int64, not bool"):
        Subnetwork.from_masks({"norm.weight": torch.tensor([1, 0])})


def test_words():
    sub = Subnetwork.from_masks({"w": np.arange(4000) < 1000}, "pair grpo, exact")
    assert repr(sub) == (
        "<Subnetwork pair grpo, exact: 1,000 of 4,000 parameters (density 0.25) in 1 tensors>"
    )
    assert sub.random(3).source == "random, seed 3, as many a tensor as pair grpo, exact"
    assert sub.complement().source == "complement of pair grpo, exact"
    assert "density 0)" in repr(Subnetwork({}))


def test_bits_of_a_wrong_length_are_refused():
    with pytest.raises(ValueError, match=r"3 bytes of bits for a tensor of shape \(4, 4\)"):
        TensorMask((4, 4), np.zeros(3, np.uint8))
