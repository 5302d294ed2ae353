"""Masks made of the base weights of a pair, and kept under a name to train with. Knows no Ray."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rlsparse_ray.compare.spectra import SpectraOptions
from rlsparse_ray.errors import CheckpointError, QueryError
from rlsparse_ray.plan import PlannedPair
from rlsparse_ray.population.named_masks import MaskPart, MaskPartWriter, NamedMask
from rlsparse_ray.population.overlap_plan import current_pairs
from rlsparse_ray.population.reopen import reopen_pairs
from rlsparse_ray.population.spectra_plan import pairs_named, selected_tensors
from rlsparse_ray.population.spectra_rows import is_matrix
from rlsparse_ray.population.spectra_units import Matrices
from rlsparse_ray.population.spectral_rules import SpectralRule, parse_rule
from rlsparse_ray.population.whole_tensors import Side, read_values
from rlsparse_ray.sql import connect
from rlsparse_ray.storage.files import store_errors
from rlsparse_ray.store import Store
from rlsparse_ray.weights import Reader

UNIT_BYTES = 256 << 20
"""Bytes of base weights whose masks go into one file."""


@dataclass(frozen=True, slots=True)
class MaskUnit:
    """A unit of work: base matrices whose masks become one file."""

    mask: NamedMask
    rule: SpectralRule
    number: int
    matrices: tuple[Matrices, ...]

    @property
    def title(self) -> str:
        """Its name in messages."""
        return f"mask {self.mask.name} of {self.matrices[0].tensor}, ..."

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return sum(each.nbytes for each in self.matrices)

    @property
    def memory(self) -> int:
        """Bytes that a worker needs: torch, the bits and the largest of its matrices."""
        options = SpectraOptions(k=self.rule.k)
        return (800 << 20) + max(each.memory(options) for each in self.matrices)


@dataclass(frozen=True, slots=True)
class MaskPlan:
    """A spectral mask and the units that make it. What cannot be masked is in `left_out`."""

    mask: NamedMask
    units: tuple[MaskUnit, ...]
    left_out: int
    """Selected tensors that are no matrices of floats."""

    @property
    def tensors(self) -> int:
        """Tensors of the mask."""
        return sum(len(unit.matrices) for unit in self.units)

    @property
    def numel(self) -> int:
        """Parameters of these tensors."""
        return sum(int(np.prod(each.shape)) for unit in self.units for each in unit.matrices)

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return sum(unit.nbytes for unit in self.units)


def plan_mask(store_root: str, name: str, pair: str, rule: str, where: str = "true") -> MaskPlan:
    """Find the base matrices of a pair, and open its models.

    Args:
        store_root: the store.
        name: of the mask.
        pair: name or id of the pair whose base is used.
        rule: which parameters are set, as `spectral_rules` has them.
        where: SQL condition over `tensors`, run as it stands; of them the compared matrices.

    Raises:
        QueryError: no such rule, no such pair, or no matrix meets the condition.
        CheckpointError: a model of the pair is gone, has moved on or was changed in place.
        StoreError: there is no store, or nothing is committed in it.
    """
    parsed = parse_rule(rule)
    store = Store.open(store_root)
    with connect(store_root) as con:
        found = pairs_named(con, pair)
        if len(found) != 1:
            raise QueryError(f"pair {pair!r}: give the name or id of one; FROM pairs lists them")
        (pair_id,) = found
        selected = selected_tensors(con, [pair_id], where)
    wanted = [row for row in selected if is_matrix(row)]
    if not wanted:
        raise QueryError(f"no matrix of {pair} meets the condition ({where})")
    with store_errors(store_root):
        row = next(r for r in current_pairs(store) if r["pair_id"] == pair_id)
        opened, failed = reopen_pairs([row])
    if failed:
        raise CheckpointError(failed[pair_id])
    source, revision = row["base_source"], row["base_revision"]
    mask = NamedMask(name, "spectral", str(parsed), (pair_id,), where, None, None, source, revision)
    units = _cut(mask, parsed, _matrices(opened[pair_id], wanted))
    return MaskPlan(mask, tuple(units), len(selected) - len(wanted))


def _matrices(pair: PlannedPair, wanted: Sequence[dict[str, Any]]) -> Iterator[Matrices]:
    by_key = {row["tensor_key"]: row for row in wanted}
    for aligned in pair.rows:
        row = by_key.get(aligned.tensor_key)
        if row is not None and aligned.base is not None:
            base = Side(aligned.base, row["base_xxh3"], pair.base.source)
            shape = tuple(row["shape"])
            yield Matrices(row["tensor"], row["tensor_key"], shape, row["compare_dtype"], base, ())


def _cut(mask: NamedMask, rule: SpectralRule, every: Iterator[Matrices]) -> Iterator[MaskUnit]:
    run: list[Matrices] = []
    number = 0
    for each in every:
        if run and sum(one.nbytes for one in [*run, each]) > UNIT_BYTES:
            yield MaskUnit(mask, rule, number, tuple(run))
            run, number = [], number + 1
        run.append(each)
    yield MaskUnit(mask, rule, number, tuple(run))


def mask_unit(unit: MaskUnit, store_root: str, device: str = "cpu") -> MaskPart:
    """Make the masks of a unit and publish their file.

    Raises:
        CheckpointError: the base cannot be read, or is not what was extracted.
        QueryError: a matrix has no such mask.
        StoreError: the store cannot be written.
    """
    with store_errors(store_root):
        writer = MaskPartWriter(Store.open(store_root), unit.mask, unit.number)
        try:
            with Reader() as reader:
                for each in unit.matrices:
                    words, numel = _words(each, unit.rule, reader, device)
                    writer.add(each.tensor_key, 0, numel, words)
            return writer.publish()
        except BaseException:
            writer.close()
            raise


def _words(
    each: Matrices, rule: SpectralRule, reader: Reader, device: str
) -> tuple[npt.NDArray[np.uint64], int]:
    """The bits of a tensor as words [ceil(numel / 64)], and its parameters."""
    base = read_values(each.base, reader, each.compare_dtype, each.shape)
    try:
        found = [rule.mask(one, device) for one in base.view(-1, each.rows, each.columns)]
    except ValueError as error:
        raise QueryError(f"tensor {each.tensor}: {error}; or leave it out with --where") from error
    bits = np.packbits(torch.stack(found).view(-1).numpy(), bitorder="little")
    words = np.zeros(-(-bits.size // 8), np.uint64)
    words.view(np.uint8)[: bits.size] = bits
    return words, base.numel()
