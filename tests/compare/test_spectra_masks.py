"""Principal and low-magnitude masks against a sort, and their overlaps against a loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsparse_ray.compare.spectra import (
    SpectraOptions,
    low_magnitude_mask,
    masks,
    principal_mask,
    spectra,
)

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def random(shape, seed, dtype=torch.float32, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (values * spread).to(dtype)


def smallest(values, alpha):
    """The smallest round(alpha n) of them and all their ties, by a sort."""
    keep = max(1, round(alpha * values.size))
    return values <= np.sort(values, axis=None)[keep - 1]


@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    alpha=st.floats(0.001, 0.999),
    dtype=st.sampled_from(DTYPES),
    spread=st.sampled_from([1e-6, 1.0, 1e3]),
    levels=st.sampled_from([None, 1, 2, 5]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150)
def test_low_magnitude_against_a_sort(shape, alpha, dtype, spread, levels, seed):
    base = random(shape, seed, dtype, spread)
    if levels is not None:
        base = base.sign() * (base.abs() * levels / spread).ceil().clamp(max=levels).to(dtype)
    found = low_magnitude_mask(base, alpha)
    want = smallest(base.float().abs().numpy(), alpha)
    assert found.dtype == torch.bool and np.array_equal(found.numpy(), want)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
def test_principal_against_an_svd(shape, alpha):
    base = random(shape, 3)
    found = principal_mask(base, 5, alpha)
    left, values, right = np.linalg.svd(base.double().numpy(), full_matrices=False)
    image = np.abs((left[:, :5] * values[:5]) @ right[:5])
    assert np.array_equal(found.numpy(), ~smallest(image, 1 - alpha))
    assert int(found.sum()) == round(alpha * 3600)


def test_ties_do_not_favour_the_first_rows():
    base = torch.ones(50, 20)
    base[:, ::2] = 2.0
    mask = low_magnitude_mask(base, 0.3)
    assert torch.equal(mask, base == 1)
    assert torch.equal(low_magnitude_mask(base.flip(0), 0.3), mask.flip(0))


def test_pieces_do_not_matter(monkeypatch):
    base, step = random((64, 48), 4, torch.bfloat16), random((64, 48), 5, torch.bfloat16, 1e-2)
    whole = spectra(base, base + step, SpectraOptions(k=4)).overlaps
    monkeypatch.setattr(masks, "PIECE", 48 * 5)
    assert spectra(base, base + step, SpectraOptions(k=4)).overlaps == whole


def by_hand(base, changed, mask):
    """Sizes and expectations with a loop over the exponents that numpy finds."""
    _, exponent = np.frexp(base.double().numpy())
    tiny = torch.finfo(base.dtype).tiny
    exponent[np.abs(base.double().numpy()) < tiny] = -9999
    expected = 0.0
    for level in np.unique(exponent):
        held = exponent == level
        expected += (changed & held).sum() * (mask & held).sum() / held.sum()
    numel = changed.size
    return mask.sum(), (mask & changed).sum(), mask.sum() * changed.sum() / numel, expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 70), (70, 40)])
def test_overlaps_against_a_loop(dtype, shape):
    spread = 1e-6 if dtype == torch.float16 else 1.0  # subnormals of float16 begin at 6e-5
    base = random(shape, 6, dtype, spread)
    base[0, :5] = 0
    changed = torch.rand(shape, generator=torch.Generator().manual_seed(7)) < 0.2
    tuned = torch.where(changed, base + spread, base)
    alphas = (0.5, 0.1, 0.25)
    found = spectra(base, tuned, SpectraOptions(k=6, alphas=alphas)).overlaps
    kinds = [(each.kind, each.alpha) for each in found]
    assert kinds == [(k, a) for k in ("principal", "low_magnitude") for a in sorted(alphas)]
    moved = (tuned != base).numpy()
    for each in found:
        mask = (
            principal_mask(base, 6, each.alpha)
            if each.kind == "principal"
            else low_magnitude_mask(base, each.alpha)
        )
        size, shared, uniform, magnitude = by_hand(base, moved, mask.numpy())
        assert (each.size, each.shared, each.changed) == (size, shared, moved.sum())
        assert each.expected_uniform == pytest.approx(uniform, rel=1e-12)
        assert each.expected_magnitude == pytest.approx(magnitude, rel=1e-12)
        assert each.share_of_mask == pytest.approx(shared / size)
        assert each.share_of_update == pytest.approx(shared / moved.sum())
        assert each.lift_uniform == pytest.approx(shared / uniform)
        assert each.lift_magnitude == pytest.approx(shared / magnitude)


def test_changed_may_be_another_criterion():
    base = random((30, 40), 8)
    changed = random((30, 40), 9) > 1
    found = spectra(base, base + 1e-3, SpectraOptions(k=3), changed)
    assert found.changed == int(changed.sum()) == found.overlaps[0].changed
    mask = principal_mask(base, 3, 0.5)
    assert found.overlaps[2].shared == int((mask & changed).sum())
    nothing = spectra(base, base + 1e-3, SpectraOptions(k=3), torch.zeros_like(changed))
    assert nothing.overlaps[0].lift_uniform is nothing.overlaps[0].share_of_update is None


def test_planted_low_magnitude_update():
    base = random((50, 60), 10)
    mask = low_magnitude_mask(base, 0.25)
    found = spectra(base, base + mask * 1e-3, SpectraOptions(k=5)).overlaps
    overlap = {(each.kind, each.alpha): each for each in found}
    low = overlap["low_magnitude", 0.25]
    assert (low.share_of_mask, low.share_of_update) == (1, 1)
    assert low.lift_uniform == pytest.approx(4)
    assert overlap["low_magnitude", 0.1].share_of_mask == 1


def test_rounding_alone_shuns_principal_weights_but_not_beyond_magnitude():
    """The same step for all weights changes small ones in bf16: the uniform lift is far below 1,
    the lift over exponents is 1."""
    base = random((400, 500), 11, torch.bfloat16, 0.02)
    # a strong direction, so that principal weights are large ones
    base += (random((400, 1), 12, spread=0.04) @ random((1, 500), 13)).to(torch.bfloat16)
    tuned = (base.float() + random((400, 500), 14, spread=3e-5)).to(torch.bfloat16)
    found = spectra(base, tuned, SpectraOptions(k=1)).overlaps
    half = found[2]
    assert (half.kind, half.alpha) == ("principal", 0.5)
    assert 0.05 < half.changed / half.numel < 0.5
    assert half.lift_uniform < 0.8
    assert half.lift_magnitude == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("base", "k", "message"),
    [
        (torch.zeros(4), 1, "a vector has no spectrum"),
        (torch.full((4, 5), torch.nan), 1, "NaN or Inf"),
        (torch.zeros(0, 5), 1, "needs entries"),
        (torch.eye(4), 4, "choose a smaller k"),
        (torch.ones(4, 5), 2, "rank of the matrix is below it"),
    ],
)
def test_masks_refuse(base, k, message):
    with pytest.raises(ValueError, match=message):
        principal_mask(base, k, 0.5)


def test_low_magnitude_refuses():
    with pytest.raises(ValueError, match="NaN or Inf"):
        low_magnitude_mask(torch.full((4, 5), torch.inf), 0.5)
    with pytest.raises(ValueError, match="alphas"):
        low_magnitude_mask(torch.ones(4, 5), 1.5)
