"""Shared bits of many masks against numpy, on the CPU, in torch and on a GPU; samples of blocks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsparse_ray.compare import popcount_torch
from rlsparse_ray.compare.expected import expected_magnitude, expected_margins, expected_tensor
from rlsparse_ray.compare.popcount import addresses_of, gather
from rlsparse_ray.compare.popcount import shared_bits as shared_bits_at
from rlsparse_ray.compare.popcount_torch import shared_bits_torch
from rlsparse_ray.compare.sample import sample_size, sampled_blocks, standard_error


def oracle(masks, wanted):
    each = np.bitwise_count(masks[:, :, None] & masks[:, None]).sum(-1).astype(np.int64)
    each *= wanted
    return each.sum(0), (each**2).sum(0)


def shared_bits(masks, *options):
    return shared_bits_at(addresses_of(masks), masks.shape[2], *options)


def random_masks(seed, blocks, count, words):
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 2**64, (blocks, count, words), np.uint64)
    return masks & rng.integers(0, 2**64, masks.shape, np.uint64)


SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 70))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), SHAPES)
def test_shared_bits(seed, shape):
    masks = random_masks(seed, *shape)
    upper = np.triu(np.ones((shape[1], shape[1]), bool), 1)
    for found, want in zip(shared_bits(masks), oracle(masks, upper), strict=True):
        assert np.array_equal(found, want)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), SHAPES)
def test_only_what_is_wanted(seed, shape):
    masks = random_masks(seed, *shape)
    wanted = np.random.default_rng(seed).random((shape[1], shape[1])) < 0.3
    for found in (shared_bits(masks, wanted), shared_bits_torch(masks, wanted, "cpu")):
        assert np.array_equal(found, oracle(masks, wanted))


def test_full_blocks_of_ones_wherever_they_lie():
    masks = np.full((3, 5, 1024), 2**64 - 1, np.uint64)
    masks[:, 3:] = 0
    some = np.ascontiguousarray(addresses_of(masks)[:, [4, 0, 2]])
    shared, squares = shared_bits_at(some, 1024)
    assert shared[1, 2] == 3 * 65536 and squares[1, 2] == 3 * 65536**2 and not shared[0].any()
    assert np.array_equal(shared_bits_at(some, 1024, None, "cpu:0")[1], squares)
    assert np.array_equal(gather(some, 1024), masks[:, [4, 0, 2]])


def test_a_view_has_no_addresses_of_its_own():
    with pytest.raises(ValueError, match="contiguous"):
        addresses_of(np.zeros((2, 4, 8), np.uint64)[:, ::2])


def test_torch_in_several_chunks(monkeypatch):
    monkeypatch.setattr(popcount_torch, "CHUNK_BYTES", 1)
    masks = random_masks(0, 3, 4, 10)
    assert np.array_equal(shared_bits_torch(masks, np.ones((4, 4)), "cpu"), oracle(masks, 1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU: products not checked")
def test_gpu():
    masks = random_masks(0, 5, 17, 1024)
    upper = np.triu(np.ones((17, 17), bool), 1)
    assert np.array_equal(shared_bits(masks, None, "cuda"), oracle(masks, upper))


def test_a_sample_is_a_part_of_a_larger_one_and_the_same_everywhere():
    small, large = (set(sampled_blocks("a [3]", 1000, f).tolist()) for f in (0.05, 0.2))
    assert small < large and (len(small), len(large)) == (50, 200)
    assert sampled_blocks("a [3]", 1000, 1.0).tolist() == list(range(1000))
    assert sampled_blocks("b [3]", 1000, 0.05).tolist() != sorted(small)
    # a change of the hash would make samples of two versions differ in silence
    assert sampled_blocks("a [3]", 1000, 0.005).tolist() == [637, 656, 839, 936, 990]


def test_every_block_and_every_two_blocks_are_sampled_alike():
    names, total = 6000, 10
    drawn = np.zeros((names, total))
    for n in range(names):
        drawn[n, sampled_blocks(f"layers.{n}.weight", total, 0.3)] = 1
    assert drawn.sum(1).tolist() == [3] * names
    both = drawn.T @ drawn / names
    assert np.abs(np.diag(both) - 0.3).max() < 0.025
    off = both[~np.eye(total, dtype=bool)]
    assert np.abs(off - 3 * 2 / (10 * 9)).max() < 0.02


def test_the_estimate_is_unbiased_and_its_standard_error_right():
    """Over the samples of many tensors with the same shared bits a block."""
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 3000, 60)
    size = sample_size(60, 0.1)
    draws = [sampled_blocks(f"t{n}", 60, 0.1) for n in range(4000)]
    sums = np.array([shared[d].sum() for d in draws])
    squares = np.array([(shared[d] ** 2).sum() for d in draws])
    estimates = 60 / size * sums
    errors = standard_error(sums, squares, size, 60)
    spread = estimates.std()
    assert abs(estimates.mean() - shared.sum()) < 4 * spread / np.sqrt(len(draws))
    assert np.sqrt((errors**2).mean()) == pytest.approx(spread, rel=0.05)


def test_standard_error_at_the_edges():
    assert standard_error([0, 9, 5], [0, 81, 25], [0, 1, 1], [0, 1, 1]).tolist() == [0, 0, 0]
    numbers = np.array([3.0, 8.0, 1.0])
    want = 7 * np.sqrt((1 - 3 / 7) * numbers.var(ddof=1) / 3)
    assert standard_error(12, 74, 3, 7) == pytest.approx(want)


def test_expectations():
    rng = np.random.default_rng(1)
    masks = rng.random((4, 13, 11)) < rng.random((4, 1, 11))
    exponents = rng.integers(-5, 0, (13, 11))
    changed = masks.sum((1, 2))
    inside = [exponents == e for e in range(-5, 0)]
    strata = [
        [(e - 5, int(i.sum()), int((m & i).sum())) for e, i in enumerate(inside)] for m in masks
    ]
    tensor = expected_tensor(changed, 143)
    magnitude = expected_magnitude(strata, ["x", "x", "y", None], 143)
    margins = expected_margins(
        masks.sum(2, dtype=np.float64), masks.sum(1, dtype=np.float64), changed
    )
    for a, b in ((0, 1), (1, 3), (2, 2)):
        p, q = masks[a].astype(int), masks[b].astype(int)
        assert tensor[a, b] == pytest.approx(p.sum() * q.sum() / 143)
        rows = (p.sum(1) * q.sum(1)).sum()
        columns = (p.sum(0) * q.sum(0)).sum()
        assert margins[a, b] == pytest.approx(rows * columns / (p.sum() * q.sum()))
    want = sum((masks[0] & i).sum() * (masks[1] & i).sum() / i.sum() for i in inside)
    assert magnitude[0, 1] == pytest.approx(want)
    assert np.isnan(magnitude[0, 2:]).all() and np.isnan(magnitude[3]).all()
    assert magnitude[2, 2] > 0
