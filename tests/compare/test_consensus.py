"""Consensus of N masks against numpy on unpacked bits, and its expectation against enumeration."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rlsparse_ray.compare.consensus import at_least, count_masks, expected_histogram, histogram


def packed(bits):
    """Masks [N, n] of booleans as words [N, ceil(n / 64)]."""
    width = -(-bits.shape[1] // 64)
    raw = np.zeros((len(bits), width * 8), np.uint8)
    small = np.packbits(bits, axis=1, bitorder="little")
    raw[:, : small.shape[1]] = small
    return raw.view(np.uint64)


def unpacked(words, numel):
    return np.unpackbits(words.view(np.uint8), bitorder="little")[:numel].astype(bool)


@given(
    masks=st.integers(1, 40),
    numel=st.integers(0, 9000),
    density=st.sampled_from([0.0, 0.02, 0.5, 0.97, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_counters_agree_with_unpacked_bits(masks, numel, density, seed):
    bits = np.random.default_rng(seed).random((masks, numel)) < density
    planes = count_masks(packed(bits))
    counts = bits.sum(axis=0)
    want = np.bincount(counts, minlength=masks + 1)
    assert histogram(planes, masks, numel).tolist() == want.tolist()
    for k in {1, 2, (masks + 1) // 2, masks, masks + 1, 2 * masks + 2}:
        words = at_least(planes, k)
        assert np.array_equal(unpacked(words, numel), counts >= k)
        assert int(np.bitwise_count(words).sum()) == int((counts >= k).sum())


@pytest.mark.parametrize("masks", [63, 64, 65, 200])
def test_many_masks(masks):
    bits = np.random.default_rng(masks).random((masks, 1111)) < np.linspace(0, 1, 1111)
    counts = bits.sum(axis=0)
    planes = count_masks(packed(bits))
    assert (
        histogram(planes, masks, 1111).tolist() == np.bincount(counts, minlength=masks + 1).tolist()
    )
    assert np.array_equal(unpacked(at_least(planes, masks // 2), 1111), counts >= masks // 2)


def test_at_least_none_is_refused():
    with pytest.raises(ValueError, match="1 or more"):
        at_least(np.zeros((1, 1), np.uint64), 0)


def enumerated(p):
    """Poisson-binomial by all 2^N outcomes."""
    found = np.zeros(len(p) + 1)
    for outcome in itertools.product((0, 1), repeat=len(p)):
        found[sum(outcome)] += np.prod([q if o else 1 - q for o, q in zip(outcome, p, strict=True)])
    return found


def test_expectation_against_enumeration():
    rng = np.random.default_rng(3)
    numel = np.array([100, 1, 7, 0, 65_536])
    changed = np.array([rng.integers(0, n + 1, 6) for n in numel])
    want = sum(n * enumerated(c / n) for n, c in zip(numel.tolist(), changed, strict=True) if n)
    found = expected_histogram(changed, numel)
    np.testing.assert_allclose(found, want, rtol=1e-12, atol=1e-9)
    assert found.sum() == pytest.approx(numel.sum())
    assert found @ np.arange(7) == pytest.approx(changed.sum())


@pytest.mark.parametrize("masks", [2, 9, 31])
def test_expectation_against_scipy(masks):
    rng = np.random.default_rng(masks)
    numel = rng.integers(1, 10**6, 20)
    shares = [stats.poisson_binom, stats.binom]
    changed = (numel[:, None] * rng.random((20, masks))).astype(np.int64)
    c = np.arange(masks + 1)
    want = sum(
        n * shares[0](row / n).pmf(c) for n, row in zip(numel.tolist(), changed, strict=True)
    )
    np.testing.assert_allclose(expected_histogram(changed, numel), want, rtol=1e-9, atol=1e-6)
    even = np.repeat(changed[:, :1], masks, axis=1)
    want = sum(
        n * shares[1](masks, k / n).pmf(c) for n, k in zip(numel.tolist(), even[:, 0], strict=True)
    )
    np.testing.assert_allclose(expected_histogram(even, numel), want, rtol=1e-9, atol=1e-6)


def test_expectation_does_not_depend_on_its_steps():
    rng = np.random.default_rng(5)
    numel = rng.integers(1, 1000, 20_000)
    changed = (numel[:, None] * rng.random((20_000, 3))).astype(np.int64)
    whole = expected_histogram(changed, numel)
    pieces = sum(expected_histogram(changed[i::7], numel[i::7]) for i in range(7))
    np.testing.assert_allclose(whole, pieces, rtol=1e-12)
    scaled = expected_histogram(changed[:1], numel[:1])
    assert scaled == pytest.approx(numel[0] * enumerated(changed[0] / numel[0]))
