"""How far an update moved the singular values of its base."""

from rlsparse_ray.compare.spectra.findings import Findings
from rlsparse_ray.compare.spectra.spectrum import Values


def nss(base: Values, tuned: Values) -> tuple[float, float]:
    """||s(W1) - s(W0)||_2 / ||s(W0)||_2 of complete spectra, s(W0) > 0, and its error."""
    norm = base.values.norm()
    shift = (tuned.values - base.values).norm() / norm
    return float(shift), float((tuned.error + base.error).norm() / norm)


def keep_nss(found: Findings, base: Values, tuned: Values, norm: float, most: float) -> None:
    """Keep NSS and its bounds; of the first singular values only the bounds.

    Args:
        found: where they are kept.
        base: singular values of W0.
        tuned: those of W1.
        norm: ||W0||_F > 0.
        most: ||D||_F / ||W0||_F, which NSS is never above (Mirsky, 1960).
    """
    found.precision["nss"] = f"float64 {base.way}"
    if base.complete:
        value, error = nss(base, tuned)
        found.keep("nss", value, error)
        found.keep("nss_at_least", max(0.0, value - error))
        found.keep("nss_at_most", max(value, min(most, value + error)))
        return
    sure = (tuned.values - base.values).abs() - tuned.error - base.error
    found.keep("nss_at_least", min(most, float(sure.clamp(min=0).norm()) / norm))
    found.keep("nss_at_most", most)


def is_vague(base: Values, tuned: Values) -> bool:
    """Whether the error of NSS is more than a hundredth of it."""
    value, error = nss(base, tuned)
    return error > 0.01 * value
