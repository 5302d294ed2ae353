"""Rules of spectral masks: which parameters of a base matrix are set.

principal:k=64,alpha=0.5                       the largest half of |rank-64 SVD of the base|
low_magnitude:alpha=0.5                        the smallest half of |base|
principal:k=64,alpha=0.1+low_magnitude:alpha=0.2     either of them
not(principal:k=64,alpha=0.5)                  everything else
"""

import re
from dataclasses import dataclass

from torch import Tensor

from rlsparse_ray.compare.spectra import low_magnitude_mask, principal_mask
from rlsparse_ray.errors import QueryError

_TERM = re.compile(
    r"(?:principal:k=(?P<k>\d+),alpha=(?P<share>[\d.]+)|low_magnitude:alpha=(?P<low>[\d.]+))\Z"
)
_FORMS = (
    "write principal:k=64,alpha=0.5, low_magnitude:alpha=0.5, several of them joined by +, or "
    "not(...) around it all"
)


@dataclass(frozen=True, slots=True)
class Term:
    """A principal mask if `k` is given, else a low-magnitude mask."""

    alpha: float
    k: int | None = None

    def __str__(self) -> str:
        if self.k is None:
            return f"low_magnitude:alpha={self.alpha:g}"
        return f"principal:k={self.k},alpha={self.alpha:g}"

    def mask(self, base: Tensor, device: str) -> Tensor:
        """The mask of a matrix [rows, columns], bool."""
        if self.k is None:
            return low_magnitude_mask(base, self.alpha, device)
        return principal_mask(base, self.k, self.alpha, device)


@dataclass(frozen=True, slots=True)
class SpectralRule:
    """The union of some terms, or its complement."""

    terms: tuple[Term, ...]
    complement: bool = False

    def __str__(self) -> str:
        text = "+".join(map(str, self.terms))
        return f"not({text})" if self.complement else text

    @property
    def k(self) -> int:
        """The largest principal subspace that is needed; 1 if none is."""
        return max([1, *(term.k for term in self.terms if term.k)])

    def mask(self, base: Tensor, device: str = "cpu") -> Tensor:
        """Which parameters of a base matrix [rows, columns] are set, bool, on the CPU.

        Raises:
            ValueError: the matrix has NaN or Inf, or no principal subspace of a k.
        """
        found = self.terms[0].mask(base, device)
        for term in self.terms[1:]:
            found |= term.mask(base, device)
        return (~found if self.complement else found).cpu()


def parse_rule(text: str) -> SpectralRule:
    """The rule that a text says, in any order of its terms; equal rules have equal texts.

    Raises:
        QueryError: it is none.

    >>> str(parse_rule("not( low_magnitude:alpha=0.50 + principal:k=8,alpha=.1 )"))
    'not(low_magnitude:alpha=0.5+principal:k=8,alpha=0.1)'
    """
    inner = text.replace(" ", "")
    complement = inner.startswith("not(") and inner.endswith(")")
    if complement:
        inner = inner[4:-1]
    terms = {_term(part, text) for part in inner.split("+")}
    return SpectralRule(tuple(sorted(terms, key=str)), complement)


def _term(part: str, text: str) -> Term:
    found = _TERM.match(part)
    if found is None:
        raise QueryError(f"rule {text!r}: {part or 'nothing'} is no mask: {_FORMS}")
    share = found["share"] or found["low"]
    try:
        alpha = float(share)
    except ValueError:
        alpha = 0.0
    if not 0 < alpha < 1 or found["k"] == "0":
        raise QueryError(f"rule {text!r}: in {part} alpha lies between 0 and 1, and k is 1 or more")
    return Term(alpha, int(found["k"]) if found["k"] else None)
