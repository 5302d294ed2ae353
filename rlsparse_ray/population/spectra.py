"""The geometry of updates: a unit of work, and the tables that units become. Knows nothing of Ray.

Like the other passes, one that was killed anywhere is repeated by running it again.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rlsparse_ray.compare.spectra.measure import BaseMatrices
from rlsparse_ray.compare.spectra.options import SpectraOptions
from rlsparse_ray.compare.spectra.results import Spectra
from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.population.overlap_plan import compared_tensors
from rlsparse_ray.population.spectra_files import (
    STAGING,
    kept_rows,
    stage_rows,
    staged_rows,
    write_rows,
)
from rlsparse_ray.population.spectra_plan import SpectraPlan
from rlsparse_ray.population.spectra_rows import measured_row, row_sets, satisfies
from rlsparse_ray.population.spectra_units import Matrices, SpectraUnit, Tuned
from rlsparse_ray.population.whole_tensors import Side, read_values
from rlsparse_ray.storage.files import store_errors
from rlsparse_ray.store import Store
from rlsparse_ray.weights import Reader

Row = dict[str, Any]


@dataclass(slots=True)
class UnitReport:
    """What became of a unit: matrices that were measured, and by pair_id why others were not."""

    matrices: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def spectra_unit(unit: SpectraUnit, store_root: str, device: str = "cpu") -> UnitReport:
    """Measure the matrices of a unit; the rows wait in the staging folder.

    A model that cannot be read, or whose bytes are not those that were extracted, fails its pairs:
    no row is written of such a tensor.

    Raises:
        StoreError: the store cannot be written.
    """
    run = _UnitRun(replace(unit.options, device=device))
    with Reader() as reader:
        for batch in _batches(unit.matrices):
            run.measure(batch, reader)
    store = Store.open(store_root)
    with store_errors(store_root):
        stage_rows(store, unit.name, run.rows)
    return run.report


class _UnitRun:
    """The rows of a unit, growing batch by batch."""

    def __init__(self, options: SpectraOptions) -> None:
        self.options = options
        self.rows: dict[str, list[Row]] = defaultdict(list)
        self.report = UnitReport()

    def measure(self, batch: Sequence[Matrices], reader: Reader) -> None:
        """Measure base tensors of one shape against those of every pair, which they share."""
        pair_ids = [tuned.pair_id for tuned in batch[0].tuned]
        try:
            values = _stacked(batch, [each.base for each in batch], reader)
        except CheckpointError as error:
            self.report.failed |= dict.fromkeys(pair_ids, str(error))
            return
        bases = [
            BaseMatrices(part, self.options) for part in torch.split(values, batch[0].together)
        ]
        for place, pair_id in enumerate(pair_ids):
            try:
                self._measure_pair(batch, bases, [each.tuned[place] for each in batch], reader)
            except CheckpointError as error:
                self.report.failed[pair_id] = str(error)

    def _measure_pair(
        self,
        batch: Sequence[Matrices],
        bases: Sequence[BaseMatrices],
        tuned: Sequence[Tuned],
        reader: Reader,
    ) -> None:
        values = _stacked(batch, [each.side for each in tuned], reader)
        parts = torch.split(values, batch[0].together)
        with _maths(batch[0]):
            found = [
                one for base, part in zip(bases, parts, strict=True) for one in base.measure(part)
            ]
        for each, of, number in zip(
            batch, tuned, range(0, len(found), batch[0].count), strict=True
        ):
            mine = found[number : number + each.count]
            _check_changed(each, of, mine)
            self.rows[of.pair_id] += [
                measured_row(each.tensor, each.tensor_key, matrix, one, self.options)
                for matrix, one in enumerate(mine)
            ]
            self.report.matrices += len(mine)


def _batches(matrices: Sequence[Matrices]) -> Iterator[list[Matrices]]:
    """Neighbours of one shape and the same pairs, as many as are measured together."""
    run: list[Matrices] = []
    for each in matrices:
        if run and (_alike(run[0]) != _alike(each) or len(run) == each.together or each.count > 1):
            yield run
            run = []
        run.append(each)
    if run:
        yield run


def _alike(each: Matrices) -> tuple[object, ...]:
    return each.shape, each.compare_dtype, [tuned.pair_id for tuned in each.tuned]


def _stacked(batch: Sequence[Matrices], sides: Sequence[Side], reader: Reader) -> torch.Tensor:
    """The values of one side [matrices, rows, columns]."""
    first = batch[0]
    read = [read_values(side, reader, first.compare_dtype, first.shape) for side in sides]
    size = (-1, first.rows, first.columns)
    return read[0].view(size) if len(read) == 1 else torch.stack(read).view(size)


@contextmanager
def _maths(matrices: Matrices) -> Iterator[None]:
    """What can go wrong with a matrix, as an error of its pair."""
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise CheckpointError(
            f"tensor {matrices.tensor}: {error}: try --method randomised"
        ) from error
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            f"tensor {matrices.tensor} {list(matrices.shape)}: more memory than the GPU has: try "
            f"--method randomised, or --device cpu"
        ) from error


def _check_changed(matrices: Matrices, tuned: Tuned, found: Sequence[Spectra]) -> None:
    """NaN is never equal to itself, so where there is one the sums differ."""
    changed = sum(one.changed for one in found)
    if changed != tuned.changed and all(one.state != "nonfinite" for one in found):
        raise CheckpointError(
            f"tensor {matrices.tensor}: {changed} parameters differ, `counts` says "
            f"{tuned.changed}, of the same bytes: the table is damaged: extract the pair again"
        )


def commit_spectra(plan: SpectraPlan, store_root: str) -> None:
    """Publish what is staged and what the plan knew without reading, a file a pair; clear up.

    Rows that other passes left are published too. Where two rows are of one tensor, that which the
    plan asked for stays, else the newer one.

    Raises:
        StoreError: the store cannot be read or written.
    """
    store = Store.open(store_root)
    staged = staged_rows(store)
    for pair_id in sorted((staged.keys() | plan.told.keys()) & store.committed()):
        found = [*row_sets(kept_rows(store, pair_id)), *row_sets(staged.get(pair_id, ()))]
        found.sort(key=lambda one: satisfies(one, plan.options))
        rows = _merged(found, row_sets(plan.told.get(pair_id, ())))
        write_rows(store, pair_id, rows, list(compared_tensors(store, pair_id)))
    store.files.remove(STAGING)


def _merged(*sources: Iterable[list[Row]]) -> Iterator[Row]:
    """Of every tensor the last set of rows."""
    last = {rows[0]["tensor_key"]: rows for sets in sources for rows in sets}
    for rows in last.values():
        yield from rows
