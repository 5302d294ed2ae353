"""Errors of the randomised method on a real update: seen, stated, and those of torch.svd_lowrank.

    python benchmarks/spectra_accuracy.py BASE TUNED [--layers 2 10 20] [--depths 4 5 6]

Method. BASE and TUNED are folders with one model.safetensors each; the matrices of the layers whose
shorter side is longer than the Krylov basis are measured with k = 64, exact and randomised. For
every measure the largest error seen (against exact) and the largest that a row states.

Then the largest angle between the first 64 left singular vectors of base and tuned, the median over
the matrices: exact, randomised, and from two calls of torch.svd_lowrank in float64 with the same
block and as many products with the matrix, from the same random start and from two. And how far
the subspace of the base alone is off from the exact one, mean over its 64 angles.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from rlsparse_ray.compare.spectra import BaseMatrices, Spectra, SpectraOptions
from rlsparse_ray.compare.spectra.angles import principal_angles

MEASURES = (
    *("update_top", "stable_rank", "top_energy", "gap"),
    *("outside", "inside_left", "inside_right", "angles_left", "angles_right"),
)
K = 64


def matrices(
    base: Path, tuned: Path, layers: list[int], longer: int
) -> Iterator[tuple[Tensor, ...]]:
    """Both sides of every large enough matrix of the layers."""
    with (
        safe_open(base / "model.safetensors", "pt") as before,
        safe_open(tuned / "model.safetensors", "pt") as after,
    ):
        for name in before.keys():  # noqa: SIM118 - it is no mapping
            shape = before.get_slice(name).get_shape()
            if len(shape) == 2 and min(shape) > longer and any(f".{n}." in name for n in layers):
                yield before.get_tensor(name), after.get_tensor(name)


def left_of(matrix: Tensor, options: SpectraOptions, seed: int) -> Tensor:
    """The first left vectors by torch, from as many products as the Krylov basis takes."""
    torch.manual_seed(seed)
    block, rounds = options.k + options.oversample, options.depth - 1
    return torch.svd_lowrank(matrix.double(), block, niter=rounds)[0][:, : options.k]


def bench(pairs: list[tuple[Tensor, ...]], depth: int) -> None:
    """Both tables of one depth."""
    exact, krylov = SpectraOptions("exact", k=K), SpectraOptions("randomised", k=K, depth=depth)
    seen, angles = defaultdict(list), defaultdict(list)
    off: dict[str, list[float]] = defaultdict(list)
    for base, tuned in pairs:
        bases = {o.method: BaseMatrices(base[None], o) for o in (exact, krylov)}
        truth, found = (each.measure(tuned[None])[0] for each in bases.values())
        for name in MEASURES:
            seen[name].append((_off(name, truth, found), found.errors.get(name, 0.0)))
        u = left_of(base, krylov, 0)
        same, other = left_of(tuned, krylov, 0), left_of(tuned, krylov, 1)
        angles["exact"].append(truth.angles_left[-1])
        angles["randomised"].append(found.angles_left[-1])
        angles["svd_lowrank, one start"].append(float(principal_angles(u, same)[-1]))
        angles["svd_lowrank, two starts"].append(float(principal_angles(u, other)[-1]))
        right = bases["exact"].subspaces(0).left
        mine = bases["randomised"].subspaces(0).left
        off["randomised"].append(float(principal_angles(right, mine).mean()))
        off["svd_lowrank"].append(float(principal_angles(right, u).mean()))
    print(f"depth {depth}, {len(pairs)} matrices: largest error seen, largest stated")
    for name, errors in seen.items():
        worst, stated = (max(column) for column in zip(*errors, strict=True))
        over = sum(one > limit + 2e-9 for one, limit in errors)
        print(f"  {name:<14} {worst:.1e} {stated:.1e}" + (f"  ABOVE in {over}" if over else ""))
    print("  angle of base and tuned: " + _row(angles))
    print("  base alone, off by: " + _row(off), flush=True)


def _off(name: str, truth: Spectra, found: Spectra) -> float:
    return float(np.abs(np.array(getattr(found, name)) - np.array(getattr(truth, name))).max())


def _row(values: dict[str, list[float]]) -> str:
    return "; ".join(f"{name} {median(some):.1e}" for name, some in values.items())


def main() -> None:
    """Parse the options and run everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("base", type=Path, help="folder of the base")
    parser.add_argument("tuned", type=Path, help="folder of the tuned model")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 10, 20], help="which layers")
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 5, 6], help="Krylov blocks")
    args = parser.parse_args()
    block = K + SpectraOptions().oversample
    pairs = list(matrices(args.base, args.tuned, args.layers, block * max(args.depths)))
    if not pairs:
        parser.error(f"no matrix of these layers with sides above {block * max(args.depths)}")
    for depth in args.depths:
        bench(pairs, depth)


if __name__ == "__main__":
    main()
