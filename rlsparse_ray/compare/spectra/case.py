"""One update, once it is decomposed: what follows from its spectra and subspaces."""

from dataclasses import dataclass

from rlsparse_ray.compare.spectra.angles import keep_angles, keep_shares
from rlsparse_ray.compare.spectra.findings import SMALL, Findings
from rlsparse_ray.compare.spectra.options import SpectraOptions
from rlsparse_ray.compare.spectra.ranks import keep_ranks, torch_tolerance
from rlsparse_ray.compare.spectra.shifts import is_vague, keep_nss
from rlsparse_ray.compare.spectra.spectrum import Subspaces, Values, svd_values
from rlsparse_ray.compare.spectra.wide import Wide


@dataclass(frozen=True, slots=True)
class Case:
    """W0, W1 and D = W1 - W0 != 0 as batches of one.

    values: singular values of each.
    squares: squared Frobenius norms of W0 and D.
    subspaces: principal ones of W0 and W1; None where there are none.
    """

    base: Wide
    tuned: Wide
    update: Wide
    values: tuple[Values, Values, Values]
    squares: tuple[float, float]
    subspaces: tuple[Subspaces | None, Subspaces | None]

    def keep_numbers(self, found: Findings, options: SpectraOptions) -> None:
        """Norms, ranks and NSS; by an SVD where the Gram matrix leaves one open."""
        before, after, update = self.values
        base_squares, squares = self.squares
        found.keep("base_norm", base_squares**0.5)
        found.keep("update_norm", squares**0.5)
        if update.complete and self._is_open(update):
            update = svd_values(self.update).of(0)
        shape = (self.base.long, self.base.short)
        keep_ranks(found, update, squares, shape, options)
        if base_squares:
            if before.complete and is_vague(before, after):
                before, after = (svd_values(each).of(0) for each in (self.base, self.tuned))
            most = (squares / base_squares) ** 0.5
            keep_nss(found, before, after, base_squares**0.5, most)

    def keep_directions(self, found: Findings) -> None:
        """Angles and shares, where there is a principal subspace."""
        base, tuned = self.subspaces
        if base is None:
            return
        found.fields["k"] = base.left.shape[-1]
        found.keep("gap", base.gap, base.gap_error)
        if base.drift > SMALL:
            found.errors["subspace"] = base.drift
        if tuned is not None:
            keep_angles(found, base, tuned)
        swap = self.update.transposed
        short, long = (base.right, base.left) if swap else (base.left, base.right)
        inner = self.update.transposed_times(short[None])[0]
        outer = self.update.times(long[None])[0]
        left, right = (outer, inner) if swap else (inner, outer)
        keep_shares(found, left, right, base, self.squares[1])

    def _is_open(self, update: Values) -> bool:
        """Whether a singular value of the update lies too close to a tolerance to be counted."""
        shares = (torch_tolerance(self.update.short, self.update.long), 1e-6)
        return any(update.doubtful(share) for share in shares)
