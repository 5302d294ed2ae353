"""The geometry of one update: what was measured, in which precision, and how far it may be off."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

State = Literal["measured", "unchanged", "nonfinite", "empty"]
MaskKind = Literal["principal", "low_magnitude"]


@dataclass(frozen=True, slots=True)
class MaskOverlap:
    """The changed parameters that lie in a mask of the base, and how many would by chance.

    `shared` / `size` is what some papers print, with the density of the update as its chance;
    `shared` / `changed` has the size of the mask (alpha) as its chance. The lift is the same.
    """

    kind: MaskKind
    alpha: float
    size: int
    """Parameters in the mask. At least alpha of the matrix: ties at the threshold are all in it."""
    numel: int
    changed: int
    shared: int
    expected_uniform: float
    """size x changed / numel."""
    expected_magnitude: float
    """Sum over binary exponents e of the base of size_e x changed_e / numel_e. A low-magnitude mask
    takes whole exponents but for one, so that its lift over this is near 1 whatever the update."""

    @property
    def share_of_mask(self) -> float | None:
        """shared / size; by chance changed / numel (the density). None for an empty mask."""
        return self.shared / self.size if self.size else None

    @property
    def share_of_update(self) -> float | None:
        """shared / changed; by chance size / numel (alpha). None where nothing changed."""
        return self.shared / self.changed if self.changed else None

    @property
    def lift_uniform(self) -> float | None:
        """shared / expected_uniform; None where nothing is expected."""
        return self.shared / self.expected_uniform if self.expected_uniform else None

    @property
    def lift_magnitude(self) -> float | None:
        """shared / expected_magnitude; None where nothing is expected."""
        return self.shared / self.expected_magnitude if self.expected_magnitude else None


@dataclass(frozen=True, slots=True)
class Spectra:
    """The geometry of the update D = W1 - W0 of one matrix; s are singular values, descending.

    State: `measured`; `unchanged` (D = 0: ranks, NSS and norms of D are 0, the rest None);
    `nonfinite` (NaN or Inf in W0 or W1) and `empty` (no entries): every measure None.
    """

    rows: int
    columns: int
    state: State
    method: Literal["exact", "randomised"]
    numel: int
    changed: int
    k: int | None = None
    """Dimension of the principal subspace. None, and all that needs it, where a side is no longer
    than it or where the rank of W0 is below it."""

    update_norm: float | None = None
    """||D||_F, exact in every method."""
    base_norm: float | None = None
    """||W0||_F, exact in every method."""
    update_top: float | None = None
    """s_1(D) = ||D||_2."""

    rank: int | None = None
    """Singular values of D above max(rows, columns) x 2^-23 x s_1: torch.linalg.matrix_rank's
    tolerance for float32. With `randomised` None: see `rank_at_least`."""
    rank_at_least: int | None = None
    """Those known to be above that tolerance; the rank itself with `exact`."""
    rank_1e6: int | None = None
    """Singular values of D above 1e-6 s_1; None with `randomised`. At 4,096 columns torch's
    tolerance is 4.9e-4 s_1, so this is far the stricter of the two."""
    stable_rank: float | None = None
    """||D||_F^2 / s_1^2."""
    effective_rank: float | None = None
    """exp(entropy of s / sum s) (Roy and Vetterli, 2007); None with `randomised`."""
    energy_ranks: tuple[int | None, ...] = ()
    """Fewest singular values that hold each share of ||D||_F^2, in the order of
    `SpectraOptions.energies`; None where the randomised method saw too few of them."""
    top_energy: float | None = None
    """Share of ||D||_F^2 in the first k singular values of D; 1 where a side is not longer."""

    nss: float | None = None
    """||s(W1) - s(W0)||_2 / ||s(W0)||_2; None with `randomised`: see its bounds. None, and the
    bounds too, where W0 is 0."""
    nss_at_least: float | None = None
    nss_at_most: float | None = None
    """NSS is at most ||D||_F / ||W0||_F (Mirsky), which is what is given with `randomised`."""

    angles_left: tuple[float, ...] | None = None
    """Principal angles between the first k left singular vectors of W0 and W1, in radians,
    ascending."""
    angles_right: tuple[float, ...] | None = None
    """The same of the right singular vectors."""
    gap: float | None = None
    """(s_k - s_k+1) / s_k of W0. A principal subspace is as well defined as this is large: the
    largest angle of a matrix without a gap says little."""

    outside: float | None = None
    """||D - U U^T D V V^T||_F^2 / ||D||_F^2, U and V the first k singular vectors of W0. By chance
    1 - k^2 / (rows x columns)."""
    inside_left: float | None = None
    """||U^T D||_F^2 / ||D||_F^2: the share in the span of U alone; by chance k / rows."""
    inside_right: float | None = None
    """||D V||_F^2 / ||D||_F^2; by chance k / columns."""

    overlaps: tuple[MaskOverlap, ...] = ()

    precision: Mapping[str, str] = field(default_factory=dict)
    """How `ranks`, `nss`, `angles`, `shares`, `low_magnitude` and `principal` were computed: the
    floating-point type, and for spectra `gram`, `svd` or `krylov` (spectrum.py)."""
    errors: Mapping[str, float] = field(default_factory=dict)
    """How far a field may be off, absolute, by its name; what is below 1e-9 of a value is left out.
    For a rank: how many singular values lie too close to its tolerance. `subspace`: sine of the
    largest angle that the principal subspace of W0 may be off by, which principal masks inherit."""

    @property
    def full_rank(self) -> int:
        """The largest rank there can be: the shorter side."""
        return min(self.rows, self.columns)

    @property
    def rank_share(self) -> float | None:
        """rank / full rank: what papers print as "% of maximum"."""
        return None if self.rank is None or not self.full_rank else self.rank / self.full_rank

    @property
    def rank_1e6_share(self) -> float | None:
        """rank_1e6 / full rank."""
        return (
            None if self.rank_1e6 is None or not self.full_rank else self.rank_1e6 / self.full_rank
        )
