"""The geometry of updates against numpy and scipy in float64, on random and on planted updates."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from rlsparse_ray.compare.spectra import (
    BaseMatrices,
    SpectraOptions,
    flops,
    spectra,
    spectra_batch,
    working_bytes,
)

EPS32 = 2.0**-23


def orthogonal(rng, n, k):
    # torch uses one thread in tests, numpy all cores: ten times slower where they are busy
    return torch.linalg.qr(torch.from_numpy(rng.standard_normal((n, k)))).Q.numpy()


def matrix(rng, rows, columns, values):
    """A matrix with these singular values, and its singular vectors."""
    n = len(values)
    left, right = orthogonal(rng, rows, n), orthogonal(rng, columns, n)
    return (left * values) @ right.T, left, right


def falling(n, last=0.05):
    """Singular values that fall as those of trained weights do."""
    return 30 * np.geomspace(1, last, n)


def tensor(values, dtype=torch.float64):
    return torch.tensor(np.asarray(values), dtype=dtype)


def measure(base, tuned, changed=None, **options):
    return spectra(tensor(base), tensor(tuned), SpectraOptions(**options), changed)


def oracle(base, tuned, k, energies):
    """Every measure by its definition."""
    update = tuned - base
    shape = update.shape
    before, after, s = (np.linalg.svd(a, compute_uv=False) for a in (base, tuned, update))
    left, _, right = np.linalg.svd(base)
    left, right = left[:, :k], right[:k].T
    left1, _, right1 = np.linalg.svd(tuned)
    squares = (update**2).sum()
    inner = left @ left.T @ update @ right @ right.T
    shares = s[s > 0] / s.sum()
    held = np.cumsum(s**2) / squares
    return {
        "update_norm": squares**0.5,
        "base_norm": np.linalg.norm(base),
        "update_top": s[0],
        "rank": (s > max(shape) * EPS32 * s[0]).sum(),
        "rank_at_least": (s > max(shape) * EPS32 * s[0]).sum(),
        "rank_1e6": (s > 1e-6 * s[0]).sum(),
        "stable_rank": squares / s[0] ** 2,
        "effective_rank": np.exp(-(shares * np.log(shares)).sum()),
        "energy_ranks": tuple(int((held < share).sum()) + 1 for share in energies),
        "top_energy": held[k - 1],
        "nss": np.linalg.norm(after - before) / np.linalg.norm(before),
        "angles_left": subspace_angles(left, left1[:, :k])[::-1],
        "angles_right": subspace_angles(right, right1[:k].T)[::-1],
        "gap": 1 - before[k] / before[k - 1],
        "outside": ((update - inner) ** 2).sum() / squares,
        "inside_left": ((left.T @ update) ** 2).sum() / squares,
        "inside_right": ((update @ right) ** 2).sum() / squares,
    }


@given(
    shape=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    k=st.integers(1, 12),
    scale=st.sampled_from([1e-6, 1e-3, 1.0]),
    rank=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=80)
def test_every_measure_agrees_with_its_definition(shape, k, scale, rank, seed):
    rng = np.random.default_rng(seed)
    short = min(shape)
    k = min(k, short - 1)
    base = matrix(rng, *shape, falling(short))[0]
    update = scale * matrix(rng, *shape, rng.uniform(0.1, 1, min(rank, short)))[0]
    tuned = base + update
    energies = (0.25, 0.9, 0.99)
    found = measure(base, tuned, k=k, energies=energies)
    assert (found.state, found.method, found.k) == ("measured", "exact", k)
    for name, want in oracle(base, tuned, k, energies).items():
        error = found.errors.get(name, 0) + 2e-9
        got = np.array(getattr(found, name))
        np.testing.assert_allclose(got, want, rtol=1e-8, atol=error, err_msg=name)
    assert found.rank == min(rank, short)
    assert found.nss_at_least <= found.nss <= found.nss_at_most


@pytest.mark.parametrize("rank", [1, 7, 60])
@pytest.mark.parametrize("shape", [(60, 200), (200, 60), (60, 60)])
def test_planted_ranks(rank, shape):
    rng = np.random.default_rng(rank)
    values = np.full(rank, 0.3)
    update = matrix(rng, *shape, values)[0]
    found = measure(np.zeros(shape), update, k=8, energies=(0.893, 0.99))
    assert (found.rank, found.rank_1e6, found.rank_at_least) == (rank, rank, rank)
    assert found.rank_share == found.rank_1e6_share == rank / 60
    assert found.stable_rank == pytest.approx(rank, rel=1e-9)
    assert found.effective_rank == pytest.approx(rank, rel=1e-6)
    assert found.energy_ranks == (math.ceil(0.893 * rank), rank)
    assert found.top_energy == pytest.approx(min(1, 8 / rank))
    # a base of zeros has no spectrum to move and no directions
    assert found.nss is found.nss_at_most is found.k is found.angles_left is found.outside is None


def test_ranks_at_both_tolerances():
    values = np.array([1.0, 1e-3, 3e-5, 2e-6, 5e-7, 1e-9])
    update = matrix(np.random.default_rng(0), 200, 100, values)[0]
    found = measure(np.zeros((200, 100)), update)
    # torch's tolerance is 200 x 2^-23 = 2.4e-5 here
    assert (found.rank, found.rank_1e6) == (3, 4)
    assert found.precision["ranks"] == "float64 gram"
    assert int(torch.linalg.matrix_rank(tensor(update, torch.float32))) == 3


def test_a_value_at_the_tolerance_is_settled_by_an_svd():
    values = np.array([1.0, 1e-3, 1e-6 * (1 + 1e-8), 1e-6 * (1 - 1e-8), 1e-9])
    update = matrix(np.random.default_rng(0), 30, 40, values)[0]
    found = measure(np.zeros((30, 40)), update)
    assert found.precision["ranks"] == "float64 svd"
    assert found.rank_1e6 == 3
    assert "rank_1e6" not in found.errors


def test_planted_principal_updates():
    rng = np.random.default_rng(1)
    base, left, right = matrix(rng, 50, 90, falling(50))
    u, v = left[:, :6], right[:, :6]
    mixed = rng.standard_normal((6, 6))
    inside = measure(base, base + 1e-3 * u @ mixed @ v.T, k=6)
    assert inside.outside == pytest.approx(0, abs=1e-9)
    assert inside.inside_left == pytest.approx(1) and inside.inside_right == pytest.approx(1)
    beyond = left[:, 6:] @ rng.standard_normal((44, 44)) @ right[:, 6:].T
    away = measure(base, base + 1e-3 * beyond, k=6)
    assert away.outside == pytest.approx(1, abs=1e-12)
    assert away.inside_left == pytest.approx(0, abs=1e-12)
    half = left[:, 6:] @ rng.standard_normal((44, 6)) @ v.T
    one_side = measure(base, base + 1e-3 * half, k=6)
    shares = (one_side.outside, one_side.inside_left, one_side.inside_right)
    assert shares == pytest.approx((1, 0, 1), abs=1e-9)


def test_random_updates_lie_in_the_subspace_as_often_as_chance():
    rng = np.random.default_rng(2)
    base = matrix(rng, 120, 200, falling(120))[0]
    found = measure(base, base + 1e-3 * rng.standard_normal(base.shape), k=30)
    assert 1 - found.outside == pytest.approx(30 * 30 / (120 * 200), rel=0.15)
    assert found.inside_left == pytest.approx(30 / 120, rel=0.05)
    assert found.inside_right == pytest.approx(30 / 200, rel=0.05)


@pytest.mark.parametrize("angle", [1.2, 1e-3, 1e-7])
@pytest.mark.parametrize("tall", [False, True])
def test_planted_angles(angle, tall):
    """The k-th left vector is turned towards the next one; the right ones stay."""
    rng = np.random.default_rng(3)
    values = falling(40)
    values[4:] /= 3
    base, left, right = matrix(rng, 40, 80, values)
    turned = left.copy()
    turned[:, 4] = np.cos(angle) * left[:, 4] + np.sin(angle) * left[:, 5]
    turned[:, 5] = np.cos(angle) * left[:, 5] - np.sin(angle) * left[:, 4]
    tuned = (turned * values) @ right.T
    # the values of 4 and 5 must differ, or turning between them is no change
    sides = (base.T, tuned.T) if tall else (base, tuned)
    found = measure(*sides, k=5)
    moved, still = found.angles_left, found.angles_right
    if tall:
        moved, still = still, moved
    assert moved[-1] == pytest.approx(angle, rel=1e-5)
    assert max(*moved[:-1], *still) < 1e-11
    assert found.errors["angles_left"] < 1e-10
    assert found.nss < 1e-13


def test_a_subspace_without_a_gap_says_so():
    values = np.ones(20)
    rng = np.random.default_rng(4)
    base = matrix(rng, 20, 30, values)[0]
    found = measure(base, base + 1e-9 * rng.standard_normal(base.shape), k=5)
    assert found.gap == pytest.approx(0, abs=1e-12)
    assert found.errors["angles_left"] == pytest.approx(np.pi / 2)
    assert found.errors["subspace"] == 1


class TestFloat32:
    """Where an SVD in float32 misleads, on an update as small as those of RL."""

    rng = np.random.default_rng(5)
    base, left, right = matrix(rng, 200, 300, falling(200))
    base = base.astype(np.float32)
    step = 1e-6 * (rng.random(base.shape) < 0.05) * rng.standard_normal(base.shape)
    tuned = (base.astype(np.float64) + step).astype(np.float32)
    found = spectra(tensor(base, torch.float32), tensor(tuned, torch.float32), SpectraOptions(k=20))
    want = oracle(base.astype(np.float64), tuned.astype(np.float64), 20, (0.9,))

    def test_float64_does_not(self):
        assert self.found.nss == pytest.approx(self.want["nss"], rel=1e-2)
        for name in ("angles_left", "angles_right"):
            got = getattr(self.found, name)
            off = np.abs(np.array(got) - self.want[name]).max()
            assert off < 1e-2 * self.want[name].max()
            assert off < self.found.errors[name]

    def test_nss(self):
        before, after = (torch.linalg.svdvals(tensor(a, torch.float32)) for a in self.sides)
        single = float((after - before).norm() / before.norm())
        assert single > 3 * self.want["nss"]

    def test_angles(self):
        first, second = (torch.linalg.svd(tensor(a, torch.float32))[0] for a in self.sides)
        cosines = torch.linalg.svdvals(first[:, :20].T @ second[:, :20])
        single = float(cosines.clamp(max=1).acos().max())
        assert single > 10 * self.want["angles_left"].max()

    def test_small_singular_values(self):
        planted = matrix(self.rng, 300, 6000, np.ones(150))[0]
        update = tensor(planted, torch.float32)
        s = torch.linalg.svdvals(update)
        assert int((s > 1e-6 * s[0]).sum()) > 150
        assert spectra(torch.zeros_like(update), update, SpectraOptions()).rank_1e6 == 150

    sides = (base, tuned)


@given(seed=st.integers(0, 2**32 - 1), last=st.sampled_from([1.0, 0.1, 1e-3, 1e-7, 1e-12]))
@settings(max_examples=20)
def test_the_gram_matrix_is_as_good_as_it_claims(seed, last):
    from rlsparse_ray.compare.spectra.spectrum import gram_spectrum
    from rlsparse_ray.compare.spectra.wide import Wide

    rng = np.random.default_rng(seed)
    values = np.sort(np.geomspace(1, last, 60) * rng.uniform(0.5, 1, 60))[::-1]
    stored = matrix(rng, 60, 90, values)[0]
    found = gram_spectrum(Wide(tensor(stored)[None]), 9)
    off = np.abs(found.values[0].numpy() - values)
    assert (off <= found.error[0].numpy()).all()
    left = np.linalg.svd(stored, full_matrices=False)[0][:, :9]
    sine = np.sin(subspace_angles(left, found.short[0].numpy()).max())
    assert sine <= found.drift.item() + 1e-14


def test_a_tiny_shift_is_settled_by_an_svd():
    """The rank of the base is 30 of 40: its Gram matrix leaves ten values of 1e-8 to doubt."""
    rng = np.random.default_rng(6)
    values = falling(30)
    base, left, right = matrix(rng, 40, 60, values)
    tuned = (left * (values * (1 + 1e-9))) @ right.T
    found = measure(base, tuned, k=4)
    assert found.precision["nss"] == "float64 svd"
    assert found.nss == pytest.approx(1e-9, rel=1e-4)


def test_states():
    rng = np.random.default_rng(7)
    bases = tensor(rng.standard_normal((5, 12, 20)), torch.bfloat16)
    tuned = bases.clone()
    tuned[1, 3, 4] = torch.nan
    tuned[2, 3, 4] += 1
    bases[3, 0, 0] = tuned[3, 0, 0] = torch.inf
    bases[4, 0, 0], tuned[4, 0, 0] = 0.0, -0.0
    found = spectra_batch(bases, tuned, SpectraOptions(k=3))
    states = [each.state for each in found]
    assert states == ["unchanged", "nonfinite", "measured", "nonfinite", "unchanged"]
    assert found[0].rank == found[0].nss == found[0].update_norm == 0
    assert found[0].stable_rank is found[0].angles_left is found[0].outside is None
    assert found[0].base_norm == pytest.approx(float(bases[0].double().norm()))
    assert found[1].rank is found[1].nss is found[1].update_norm is None
    assert [each.changed for each in found] == [0, 1, 1, 1 - 1, 0]
    assert found[2].rank == 1 and len(found[2].overlaps) == 6
    (empty,) = spectra_batch(bases[:1, :0], bases[:1, :0], SpectraOptions())
    assert (empty.state, empty.rank, empty.rank_share, empty.changed) == ("empty", None, None, 0)


def test_a_matrix_no_larger_than_k_has_no_principal_subspace():
    rng = np.random.default_rng(8)
    base = rng.standard_normal((8, 30))
    found = measure(base, base + 1e-3 * rng.standard_normal(base.shape), k=8)
    assert found.k is found.gap is found.angles_left is found.outside is None
    assert found.top_energy == 1
    assert {each.kind for each in found.overlaps} == {"low_magnitude"}
    assert found.rank == 8 and found.nss > 0


def test_a_row_is_a_matrix_of_rank_one():
    base = np.array([[3.0, 4.0]])
    found = measure(base, 2 * base)
    assert (found.rank, found.stable_rank, found.nss) == (1, pytest.approx(1), pytest.approx(1))


def test_a_batch_is_what_its_matrices_are():
    rng = np.random.default_rng(9)
    bases = tensor(rng.standard_normal((6, 30, 50)), torch.bfloat16)
    tuned = bases + tensor(1e-2 * rng.standard_normal((6, 30, 50)), torch.bfloat16)
    tuned[2] = bases[2]
    options = SpectraOptions(k=5)
    together = BaseMatrices(bases, options)
    for _ in range(2):
        for one, base, after in zip(together.measure(tuned), bases, tuned, strict=True):
            alone = spectra(base, after, options)
            assert one.overlaps == alone.overlaps
            assert (one.rank, one.state) == (alone.rank, alone.state)
            for name in ("stable_rank", "effective_rank", "nss", "outside", "angles_left"):
                want = getattr(alone, name)
                assert getattr(one, name) == (want and pytest.approx(want, rel=1e-9))


def test_a_transposed_matrix_swaps_its_sides():
    rng = np.random.default_rng(10)
    base = rng.standard_normal((30, 50))
    tuned = base + 1e-2 * rng.standard_normal(base.shape)
    one, other = measure(base, tuned, k=5), measure(base.T, tuned.T, k=5)
    assert one.angles_left == pytest.approx(other.angles_right, rel=1e-9)
    assert one.inside_left == pytest.approx(other.inside_right, rel=1e-9)
    assert (one.nss, one.outside) == pytest.approx((other.nss, other.outside), rel=1e-9)
    shared = [[each.shared for each in found.overlaps] for found in (one, other)]
    assert shared[0] == shared[1]


@pytest.mark.parametrize(
    ("base", "tuned", "message"),
    [
        (torch.zeros(3), torch.zeros(3), "a vector has no spectrum"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), "convolution is to be flattened"),
        (torch.zeros(3, 4), torch.zeros(4, 3), "cast both"),
        (torch.zeros(3, 4), torch.zeros(3, 4).bfloat16(), "cast both"),
        (torch.zeros(3, 4).int(), torch.zeros(3, 4).int(), "float16, bfloat16"),
    ],
)
def test_what_is_no_pair_of_matrices_is_refused(base, tuned, message):
    with pytest.raises(ValueError, match=message):
        spectra(base, tuned, SpectraOptions())


@pytest.mark.parametrize(
    "wrong",
    [{"k": 0}, {"alphas": (0.5, 1.0)}, {"energies": (0.0,)}, {"depth": 1}, {"method": "fast"}],
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SpectraOptions(**wrong)


def test_method_by_size():
    options = SpectraOptions()
    assert options.method_for(4096, 14336) == "exact"
    assert options.method_for(28672, 8192) == "randomised"
    assert SpectraOptions(device="cuda").method_for(28672, 8192) == "exact"
    assert SpectraOptions(method="randomised").method_for(80, 14336) == "exact"
    assert SpectraOptions(method="exact").method_for(28672, 8192) == "exact"


def test_products_that_torch_counts_are_in_the_estimate():
    from torch.utils.flop_counter import FlopCounterMode

    base = torch.randn(256, 700)
    tuned = base + 1e-3 * torch.randn(256, 700)
    for method in ("exact", "randomised"):
        options = SpectraOptions(method=method, k=10, depth=4)
        with FlopCounterMode(display=False) as counter:
            spectra(base, tuned, options)
        # the counter knows products only; the estimate has the factorisations too
        assert counter.get_total_flops() < flops(256, 700, options) < 6 * counter.get_total_flops()
    assert flops(256, 700, options) == flops(700, 256, options)
    assert working_bytes(256, 700, options) > 256 * 700 * 5
