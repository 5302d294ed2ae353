"""The geometry of updates as Ray tasks: a GPU each where there are GPUs, else a CPU."""

from collections.abc import Callable
from dataclasses import dataclass, field

from rlsparse_ray.cluster.works import run_works
from rlsparse_ray.compare.spectra.options import SpectraOptions
from rlsparse_ray.placement import Resources
from rlsparse_ray.population.named_masks import (
    MaskPart,
    commit_mask,
    making,
)
from rlsparse_ray.population.spectra import UnitReport, commit_spectra, spectra_unit
from rlsparse_ray.population.spectra_plan import SpectraPlan, plan_spectra
from rlsparse_ray.population.spectra_units import SpectraUnit
from rlsparse_ray.population.spectral_masks import MaskPlan, MaskUnit, mask_unit
from rlsparse_ray.progress import Bar, Progress, silent
from rlsparse_ray.storage.files import address_of, store_errors
from rlsparse_ray.storage.lease import hold
from rlsparse_ray.store import Store


@dataclass(slots=True)
class SpectraOutcome:
    """What became of a pass: matrices that were measured, and by name why pairs failed."""

    matrices: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def update_spectra(
    store_root: str,
    options: SpectraOptions,
    *,
    bar: Bar,
    pairs: str,
    where: str = "true",
    resources: Resources | None = None,
    address: str | None = None,
    wait: float = 0.0,
) -> SpectraOutcome:
    """Find the matrices that the store lacks and measure them, alone on the store.

    Args:
        store_root: the store.
        options: how they are measured.
        bar: shows how far it is, in floating-point operations.
        pairs: as of `plan_spectra`.
        where: as of `plan_spectra`.
        resources: where it runs.
        address: of a Ray cluster; none: this machine.
        wait: seconds to wait while another one uses the store.

    Raises:
        LeaseError: another one uses the store.
        QueryError: as `plan_spectra`.
        StoreError: as `plan_spectra` and `measure_spectra`.
        RlsparseError: as `measure_spectra`.
    """
    # two passes at once would write one file of a pair over the other's
    with hold(store_root, "spectra", wait=wait) as lease:
        plan = plan_spectra(store_root, options, pairs=pairs, where=where)
        outcome: SpectraOutcome = bar(
            "spectra",
            int(plan.flops),
            lambda advance: measure_spectra(
                plan,
                store_root,
                resources=resources,
                address=address,
                progress=lease.guard(advance),
            ),
        )
    return outcome


def measure_spectra(
    plan: SpectraPlan,
    store_root: str,
    *,
    resources: Resources | None = None,
    address: str | None = None,
    progress: Progress = silent,
) -> SpectraOutcome:
    """Measure what `plan` found missing, and keep it in the table `spectra`.

    What one run has measured is not measured again by the next, also if it was killed. A pair
    whose model cannot be read, or is not what was extracted, keeps the rows that it got; the
    others go on. `progress` is called with the floating-point operations that have been done.

    Raises:
        StoreError: the store cannot be read or written; what is finished is kept.
        RlsparseError: Ray cannot be reached, or a worker died too often on one unit.
    """
    root = address_of(store_root)
    outcome = SpectraOutcome(failed=dict(plan.failed))

    def collect(unit: SpectraUnit, report: UnitReport) -> None:
        outcome.matrices += report.matrices
        for pair_id, message in report.failed.items():
            outcome.failed.setdefault(plan.names[pair_id], message)
        progress(int(unit.flops))

    run_works(
        plan.units,
        _function(root),
        resources=resources or Resources(),
        memory=lambda unit: unit.memory,
        title=lambda unit: unit.title,
        collect=collect,
        address=address,
    )
    progress(0)
    with store_errors(root):
        commit_spectra(plan, root)
    return outcome


def keep_mask(
    plan: MaskPlan,
    store_root: str,
    *,
    resources: Resources | None = None,
    address: str | None = None,
    progress: Progress = silent,
) -> bool:
    """Make a spectral mask and keep it under its name; False if the store holds it already.

    Raises:
        CheckpointError: the base cannot be read, or is not what was extracted.
        QueryError: a matrix has no such mask.
        StoreError: the name stands for another mask, or the store cannot be written.
    """
    root = address_of(store_root)
    store = Store.open(root)
    parts: dict[int, MaskPart] = {}

    def collect(unit: MaskUnit, part: MaskPart) -> None:
        parts[unit.number] = part
        progress(unit.nbytes)

    def unit_task(unit: MaskUnit, device: str) -> MaskPart:
        return mask_unit(unit, root, device)

    with making(store, plan.mask) as lease:
        if lease is None:
            return False
        run_works(
            plan.units,
            unit_task,
            resources=resources or Resources(),
            memory=lambda unit: unit.memory,
            title=lambda unit: unit.title,
            collect=collect,
            address=address,
        )
        with store_errors(root):
            ordered = [parts[number] for number in sorted(parts)]
            lease.check()
            commit_mask(store, plan.mask, ordered, plan.tensors, plan.numel)
    return True


def _function(root: str) -> Callable[[SpectraUnit, str], UnitReport]:
    def unit_task(unit: SpectraUnit, device: str) -> UnitReport:
        return spectra_unit(unit, root, device)

    return unit_task
