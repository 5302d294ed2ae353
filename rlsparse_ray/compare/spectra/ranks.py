"""Ranks of an update from its singular values."""

import math

import torch

from rlsparse_ray.compare.spectra.findings import Findings
from rlsparse_ray.compare.spectra.options import SpectraOptions
from rlsparse_ray.compare.spectra.spectrum import Values

EPS32 = 2.0**-23


def torch_tolerance(rows: int, columns: int) -> float:
    """The tolerance of torch.linalg.matrix_rank for float32, as a share of s_1."""
    return max(rows, columns) * EPS32


def keep_ranks(
    found: Findings, update: Values, squares: float, shape: tuple[int, int], options: SpectraOptions
) -> None:
    """Keep every rank of an update that its singular values tell.

    Args:
        found: where they are kept.
        update: singular values of the update, s_1 > 0.
        squares: its squared Frobenius norm.
        shape: rows and columns.
        options: k and the shares of energy ranks.
    """
    found.precision["ranks"] = f"float64 {update.way}"
    values, error = update.values, update.error
    top, off = float(values[0]), float(error[0])
    found.keep("update_top", top, off)
    found.keep("stable_rank", squares / top**2, squares / top**2 - squares / (top + off) ** 2)
    tolerance = torch_tolerance(*shape)
    if update.complete:
        for name, share in (("rank", tolerance), ("rank_1e6", 1e-6)):
            found.keep(name, update.above(share), update.doubtful(share))
        found.keep("rank_at_least", found.fields["rank"])
        found.keep("effective_rank", *effective_rank(update))
    else:
        # those found are never above the true ones, but s_1 may be
        found.keep("rank_at_least", int((values > tolerance * (top + off)).sum()))
    held, most = values.square().cumsum(0), (values + error).square().cumsum(0)
    k = min(options.k, len(values))
    share = min(1.0, float(held[k - 1]) / squares)
    found.keep("top_energy", share, min(1.0, float(most[k - 1]) / squares) - share)
    places = torch.tensor(options.energies, dtype=torch.float64) * squares
    ranks = [int(n) + 1 for n in torch.searchsorted(held, places)]
    found.fields["energy_ranks"] = tuple(n if n <= len(values) else None for n in ranks)
    fewest = torch.searchsorted(most, places)
    doubt = [n - int(low) - 1 for n, low in zip(ranks, fewest, strict=True) if n <= len(values)]
    if any(doubt):
        found.errors["energy_ranks"] = max(doubt)


def effective_rank(update: Values) -> tuple[float, float]:
    """exp(entropy of s / sum s), and how far it may be off.

    The error of the entropy follows from that of the shares (Fannes and Audenaert, 2007).
    """
    total = update.values.sum()
    shares = update.values[update.values > 0] / total
    rank = math.exp(float(-(shares * shares.log()).sum()))
    distance = min(0.5, float(update.error.sum() / total))
    mixed = -distance * math.log(distance) - (1 - distance) * math.log1p(-distance)
    entropy = distance * math.log(max(1, len(update.values) - 1)) + mixed
    return rank, rank * math.expm1(entropy)
