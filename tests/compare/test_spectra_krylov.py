"""The randomised method against the exact one, within the errors that it claims."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from rlsparse_ray.compare.spectra import SpectraOptions, spectra
from rlsparse_ray.compare.spectra.angles import principal_angles
from rlsparse_ray.compare.spectra.krylov import krylov_spectrum
from rlsparse_ray.compare.spectra.spectrum import gram_spectrum
from rlsparse_ray.compare.spectra.wide import Wide

SPECTRA = {
    "weights": 30 * np.geomspace(1, 0.03, 120),
    "flat": np.linspace(1, 0.8, 120),
    "cliff": np.where(np.arange(120) < 12, 1.0, 1e-4),
    "clusters": np.repeat([1.0, 0.5, 0.1, 0.01], 30),
    "noise": None,
}


def random(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def stored(kind, seed, shape=(120, 200)):
    sides = [random((n, 120), seed) for n in shape]
    if SPECTRA[kind] is None:
        return random(shape, seed)
    left, right = (torch.linalg.qr(side).Q for side in sides)
    return (left * torch.from_numpy(SPECTRA[kind])) @ right.T


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("depth", [2, 3, 6])
def test_singular_values_and_subspaces_within_their_errors(kind, depth):
    for seed in range(6):
        matrix = Wide(stored(kind, seed)[None])
        exact = gram_spectrum(matrix, 12)
        found = krylov_spectrum(matrix, 12, 20, depth, seed)
        off = exact.values[0, :13] - found.values[0]
        rounding = exact.error[0, :13] + 1e-12 * exact.values[0, 0]
        assert (off >= -rounding).all()
        assert (off <= found.error[0] + rounding).all()
        for mine, truth in ((found.short, exact.short), (found.long, exact.long)):
            apart = mine[0] - truth[0] @ (truth[0].T @ mine[0])
            assert torch.linalg.matrix_norm(apart, 2) <= found.drift[0] + exact.drift[0] + 1e-12


def test_depth_buys_accuracy():
    matrix = Wide(stored("weights", 0)[None])
    drifts = [float(krylov_spectrum(matrix, 12, 20, depth, 0).drift) for depth in (2, 4, 5)]
    assert drifts[0] == 1 > 2 * drifts[1] > 100 * drifts[2]


def test_block_krylov_where_svd_lowrank_does_not_see_a_small_turn():
    """Why it is not torch.svd_lowrank: the same block and as many products."""
    base, tuned = pair("weights", 0, 1e-5)
    k, block, depth = 12, 20, 5
    exact, found = (
        [make(Wide(one[None])).short[0] for one in (base, tuned)]
        for make in (
            lambda wide: gram_spectrum(wide, k),
            lambda wide: krylov_spectrum(wide, k, block, depth, 0),
        )
    )

    def by_torch(one, seed):
        torch.manual_seed(seed)
        return torch.svd_lowrank(one, block, niter=depth - 1)[0][:, :k]

    def largest(first, second):
        return float(principal_angles(first, second)[-1])

    true = largest(*exact)
    assert true < 1e-3
    assert largest(*found) == pytest.approx(true, rel=0.1)
    assert largest(by_torch(base, 0), by_torch(tuned, 1)) > 100 * true
    assert largest(exact[0], by_torch(base, 0)) > 100 * largest(exact[0], found[0])


def pair(kind, seed, scale):
    base = stored(kind, seed)
    return base, base + scale * random(base.shape, seed + 1000)


def assert_within_errors(found, exact, k):
    """Every measure of a randomised result against the exact one, and what it cannot know."""
    told = {"update_norm", "base_norm", "update_top", "stable_rank", "top_energy", "gap"}
    told |= {"outside", "inside_left", "inside_right", "angles_left", "angles_right"}
    for name in told:
        off = np.abs(np.array(getattr(found, name)) - np.array(getattr(exact, name)))
        limit = found.errors.get(name, 0) + exact.errors.get(name, 0) + 2e-9
        assert off.max() <= limit, name
    assert found.rank is found.rank_1e6 is found.effective_rank is found.nss is None
    assert k < found.rank_at_least <= exact.rank
    assert found.nss_at_least <= exact.nss <= found.nss_at_most


@pytest.mark.parametrize("kind", ["weights", "flat", "cliff"])
@pytest.mark.parametrize("scale", [1e-6, 1e-2])
@pytest.mark.parametrize("transposed", [False, True])
def test_every_measure_within_its_error(kind, scale, transposed):
    base, tuned = pair(kind, 1, scale)
    if transposed:
        base, tuned = base.T, tuned.T
    exact = spectra(base, tuned, SpectraOptions("exact", k=12))
    found = spectra(base, tuned, SpectraOptions("randomised", k=12, oversample=8, depth=4))
    assert found.method == "randomised"
    assert found.precision["ranks"] == "float64 krylov"
    assert_within_errors(found, exact, 12)


def test_overlaps_are_those_of_the_exact_method_where_the_subspace_is():
    base, tuned = pair("cliff", 2, 1e-6)
    base, tuned = base.float(), tuned.float()
    exact = spectra(base, tuned, SpectraOptions("exact", k=12))
    found = spectra(base, tuned, SpectraOptions("randomised", k=12, depth=4))
    assert found.errors.get("subspace", 0) < 1e-6
    for mine, truth in zip(found.overlaps, exact.overlaps, strict=True):
        assert (mine.kind, mine.alpha, mine.changed) == (truth.kind, truth.alpha, truth.changed)
        assert mine.shared == pytest.approx(truth.shared, abs=3)


def test_energy_ranks_of_a_cliff():
    base = stored("flat", 3)
    tuned = base + 1e-2 * stored("cliff", 4)
    options = {"k": 16, "energies": (0.45, 0.9, 0.99999995)}
    exact = spectra(base, tuned, SpectraOptions("exact", **options))
    found = spectra(base, tuned, SpectraOptions("randomised", depth=3, **options))
    assert found.energy_ranks[:2] == exact.energy_ranks[:2] == (6, 11)
    assert found.energy_ranks[2] is None and exact.energy_ranks[2] > 16


def test_the_same_seed_gives_the_same_numbers():
    base, tuned = pair("weights", 5, 1e-3)
    first, again, other = (
        spectra(base, tuned, SpectraOptions("randomised", k=12, depth=2, seed=seed))
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first.update_top != other.update_top


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU: spectra not run on CUDA")
@pytest.mark.parametrize("method", ["exact", "randomised"])
def test_a_gpu_finds_the_same(method):
    base, tuned = (each.to(torch.bfloat16) for each in pair("weights", 6, 1e-2))
    here, there = (
        spectra(base, tuned, SpectraOptions(method, k=12, depth=6, device=device))
        for device in ("cpu", "cuda")
    )
    for name in (field.name for field in fields(here)):
        mine, theirs = getattr(here, name), getattr(there, name)
        if name == "overlaps":
            for one, other in zip(mine, theirs, strict=True):
                assert other.shared == pytest.approx(one.shared, abs=5)
        elif name in ("angles_left", "angles_right"):
            assert theirs == pytest.approx(mine, rel=1e-6, abs=1e-9)
        elif name not in ("precision", "errors"):
            assert theirs == (mine and mine if isinstance(mine, str) else pytest.approx(mine, 1e-7))
