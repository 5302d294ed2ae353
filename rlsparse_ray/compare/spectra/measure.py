"""The geometry of the updates of matrices, from the base to a `Spectra` each."""

from functools import cached_property

from torch import Tensor

from rlsparse_ray.compare.spectra.case import Case
from rlsparse_ray.compare.spectra.findings import Findings
from rlsparse_ray.compare.spectra.krylov import krylov_spectrum
from rlsparse_ray.compare.spectra.masks import LAYOUTS, Marks, by_magnitude, by_principal
from rlsparse_ray.compare.spectra.options import SpectraOptions
from rlsparse_ray.compare.spectra.results import Spectra, State
from rlsparse_ray.compare.spectra.spectrum import Spectrum, Subspaces, gram_spectrum, principal
from rlsparse_ray.compare.spectra.wide import Wide


def spectra(
    base: Tensor, tuned: Tensor, options: SpectraOptions, changed: Tensor | None = None
) -> Spectra:
    """The geometry of the update of one matrix.

    Args:
        base: [rows, columns], as `BaseMatrices` takes them.
        tuned: of the same shape and dtype.
        options: how to measure.
        changed: which parameters count as changed in overlaps with masks. None: those that differ.

    Raises:
        ValueError: not two matrices of one shape and one floating-point dtype.

    Example:
        >>> import torch
        >>> base = torch.eye(3)
        >>> found = spectra(base, base + torch.ones(3, 3), SpectraOptions(k=1))
        >>> found.rank, round(found.stable_rank, 6), round(found.update_top, 6)
        (1, 1.0, 3.0)
    """
    return spectra_batch(
        base[None], tuned[None], options, None if changed is None else changed[None]
    )[0]


def spectra_batch(
    bases: Tensor, tuned: Tensor, options: SpectraOptions, changed: Tensor | None = None
) -> list[Spectra]:
    """The geometry of the updates of matrices [count, rows, columns], such as a layer's experts.

    Raises:
        ValueError: as `spectra`.
    """
    return BaseMatrices(bases, options).measure(tuned, changed)


class BaseMatrices:
    """Base matrices of one shape, decomposed once for all those tuned from them.

    Nothing is computed before the first `measure` that needs it.

    Args:
        bases: [count, rows, columns] of dtype float16, bfloat16, float32 or float64, as compared:
            the strata of the magnitude baseline are the binary exponents of this dtype.
        options: how to measure.

    Raises:
        ValueError: another number of dimensions, or another dtype.
    """

    def __init__(self, bases: Tensor, options: SpectraOptions) -> None:
        if bases.ndim != 3:
            raise ValueError(
                f"shape {tuple(bases.shape)}: say [rows, columns] for one matrix and [count, rows, "
                f"columns] for many; a vector has no spectrum, a convolution is to be flattened"
            )
        if bases.dtype not in LAYOUTS:
            raise ValueError(f"dtype {bases.dtype}: cast to float16, bfloat16, float32 or float64")
        self.bases = bases.to(options.device)
        self.options = options
        self.count, self.rows, self.columns = bases.shape
        self.method = options.method_for(self.rows, self.columns)
        self.k = options.k if options.k < min(self.rows, self.columns) else None
        self._marks: dict[int, list[Marks]] = {}

    def measure(self, tuned: Tensor, changed: Tensor | None = None) -> list[Spectra]:
        """The geometry of tuned - base, one result a matrix.

        Args:
            tuned: of the shape and dtype of the bases.
            changed: bool, of that shape: which parameters count as changed in overlaps with masks.
                None: those that differ.

        Raises:
            ValueError: another shape or dtype.
        """
        if (tuned.shape, tuned.dtype) != (self.bases.shape, self.bases.dtype):
            raise ValueError(
                f"tuned {tuned.dtype} {list(tuned.shape)}, base {self.bases.dtype} "
                f"{list(self.bases.shape)}: cast both to the dtype of comparison first"
            )
        tuned = tuned.to(self.options.device)
        changed = tuned != self.bases if changed is None else changed.to(self.options.device)
        states = [self._state(index, tuned[index]) for index in range(self.count)]
        live = [index for index, state in enumerate(states) if state == "measured"]
        found = dict(zip(live, self._measured(live, tuned, changed), strict=True))
        return [
            self._spectra(state, changed[index], found.get(index) or self._told(index, state))
            for index, state in enumerate(states)
        ]

    def _spectra(self, state: State, changed: Tensor, found: Findings) -> Spectra:
        return Spectra(
            rows=self.rows,
            columns=self.columns,
            state=state,
            method=self.method,
            numel=self.rows * self.columns,
            changed=int(changed.sum()),
            **found.fields,
            precision=found.precision,
            errors=found.errors,
        )

    def _state(self, index: int, tuned: Tensor) -> State:
        if not tuned.numel():
            return "empty"
        if index not in self._places or not tuned.isfinite().all():
            return "nonfinite"
        return "measured" if (tuned != self.bases[index]).any() else "unchanged"

    def _told(self, index: int, state: State) -> Findings:
        """What is known of a matrix without a spectrum."""
        if state != "unchanged":
            return Findings()
        names = ("update_norm", "update_top", "nss", "nss_at_least", "nss_at_most")
        fields = dict.fromkeys(names, 0.0) | dict.fromkeys(("rank", "rank_at_least", "rank_1e6"), 0)
        norm = float(Wide(self.bases[index : index + 1]).squares()[0]) ** 0.5
        return Findings(fields | {"base_norm": norm})

    @cached_property
    def _places(self) -> dict[int, int]:
        """Bases without NaN and Inf, and where they stand in `_spectrum`."""
        finite = [i for i in range(self.count) if bool(self.bases[i].isfinite().all())]
        return {index: place for place, index in enumerate(finite)}

    @cached_property
    def _spectrum(self) -> Spectrum:
        return self._decompose(Wide(_take(self.bases, list(self._places))), self.k)

    def _decompose(self, matrix: Wide, k: int | None) -> Spectrum:
        if self.method == "exact":
            return gram_spectrum(matrix, k)
        o = self.options
        return krylov_spectrum(matrix, o.k, o.k + o.oversample, o.depth, o.seed)

    def _measured(self, live: list[int], tuned: Tensor, changed: Tensor) -> list[Findings]:
        """Measure those that have a spectrum: decompositions together, the rest one by one."""
        if not live:
            return []
        bases, tuned = _take(self.bases, live), _take(tuned, live)
        wide = (Wide(bases), Wide(tuned), Wide(tuned, bases))
        moved, change = self._decompose(wide[1], self.k), self._decompose(wide[2], None)
        squares = (wide[0].squares().tolist(), wide[2].squares().tolist())
        found = []
        for place, index in enumerate(live):
            base, after, update = (matrix.only(place) for matrix in wide)
            before = self._spectrum.of(self._places[index])
            case = Case(
                base,
                after,
                update,
                (before, moved.of(place), change.of(place)),
                (squares[0][place], squares[1][place]),
                (self.subspaces(index), self._principal(moved, place)),
            )
            each = Findings()
            case.keep_numbers(each, self.options)
            case.keep_directions(each)
            self._keep_overlaps(each, index, changed[index])
            found.append(each)
        return found

    def subspaces(self, index: int) -> Subspaces | None:
        """The first k singular vectors of one base; None where it has no principal subspace."""
        return None if self.k is None else self._principal(self._spectrum, self._places[index])

    def _principal(self, spectrum: Spectrum, place: int) -> Subspaces | None:
        return principal(spectrum, place, self.rows > self.columns)

    def _keep_overlaps(self, found: Findings, index: int, changed: Tensor) -> None:
        base, alphas = self.bases[index], self.options.alphas
        if index not in self._marks:
            subspaces = self.subspaces(index)
            rankings = [] if subspaces is None else [by_principal(base, subspaces.right)]
            rankings.append(by_magnitude(base))
            self._marks[index] = [Marks.of(ranking, alphas) for ranking in rankings]
        marks = self._marks[index]
        found.fields["overlaps"] = tuple(o for m in marks for o in m.overlaps(base, changed))
        found.precision |= {m.ranking.kind: "float32" for m in marks}


def _take(matrices: Tensor, indices: list[int]) -> Tensor:
    """Some of the matrices; all of them without a copy."""
    return matrices if len(indices) == len(matrices) else matrices[indices]
