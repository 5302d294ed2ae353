"""What a matrix costs, before anything is read."""

from rlsparse_ray.compare.spectra.options import SpectraOptions
from rlsparse_ray.compare.spectra.wide import BANDS, PIECE


def flops(rows: int, columns: int, options: SpectraOptions, tuned: int = 1) -> float:
    """Floating-point operations for one base and so many tuned from it: products, factorisations.

    exact: a Gram matrix of each of base, tuned and update, eigenvalues of the update (4/3 s^3, s
    the shorter side) and eigenvectors of the others (9 s^3; Golub and Van Loan, 8.3). randomised:
    two products with a block for each of `depth`, reorthogonalisation and a small eigenproblem.
    The rates differ: products run at the machine's speed, eigensolvers at a fraction of it
    (benchmarks/spectra.py).
    """
    short, long = sorted((rows, columns))
    k = min(options.k, short)
    size = float(rows * columns)
    if options.method_for(rows, columns) == "exact":
        gram = size * short * (1 + 1 / BANDS)
        values, vectors = 4 / 3 * short**3, 9.0 * short**3
    else:
        basis = min((k + options.oversample) * options.depth, short)
        gram = 4 * size * basis + 10.0 * short * basis**2 + 9.0 * basis**3 + 2.0 * long * basis * k
        values = vectors = 0.0
    # vectors of the longer side; the rank-k matrix of a base in three readings
    base = gram + vectors + 2 * size * k * 5
    # vectors of the longer side, U^T D and D V; the rank-k matrix in one reading
    each = 2 * gram + vectors + values + 2 * size * k * 4
    return base + tuned * each


def working_bytes(rows: int, columns: int, options: SpectraOptions, itemsize: int = 2) -> int:
    """Peak memory for one matrix, the two stored ones (itemsize bytes an entry) included."""
    short, long = sorted((rows, columns))
    stored = rows * columns * (2 * itemsize + 1)
    k = min(options.k, short)
    thin = 8 * (short + long) * k * 6
    if options.method_for(rows, columns) == "exact":
        work = 8 * short * short * 9
    else:
        work = 8 * (3 * short + 5 * long) * min((k + options.oversample) * options.depth, short)
    return stored + thin + work + 8 * PIECE * 6
