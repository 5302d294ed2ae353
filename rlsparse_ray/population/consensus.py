"""Consensus of a group of pairs: which parameters changed in c of N, against chance.

    found = consensus("./store", "algorithm = 'GRPO' AND family = 'tiny-llama'")
    found.histogram                                   # an Arrow table, c = 0 .. N
    consensus("./store", "seed < 5", keep=3, name="grpo-3-of-5")

The group is every pair for which a condition over the view `pairs` holds. The condition is SQL of
the user's own, run as `SELECT pair_id FROM pairs WHERE ...`, exactly as `rlsparse sql` would.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rlsparse_ray.blocks import BLOCK, BLOCK_BYTES, blocks_of
from rlsparse_ray.compare.consensus import Words, at_least, count_masks, histogram
from rlsparse_ray.compare.criteria import parse_criterion
from rlsparse_ray.compare.popcount import gather
from rlsparse_ray.errors import QueryError, StoreError
from rlsparse_ray.population.groups import Group, expected_of, group_of
from rlsparse_ray.population.mask_parts import MaskStream
from rlsparse_ray.population.named_masks import (
    MaskPartWriter,
    NamedMask,
    commit_mask,
    consensus_mask,
    making,
)
from rlsparse_ray.population.overlap_units import PartIndex
from rlsparse_ray.progress import Progress, silent
from rlsparse_ray.sql import connect
from rlsparse_ray.storage.files import store_errors
from rlsparse_ray.store import Store

Keep = int | str

_RUN_BYTES = 16 << 20
"""Bytes of bits of all masks together that are looked at in one step."""


@dataclass(frozen=True, slots=True)
class Consensus:
    """What a group agrees on.

    `histogram` has one row for c = 0 .. N: `changed_in` (c), `parameters` that changed in exactly
    c masks and `share` of all, `at_least` (changed in c masks or more), and for each baseline the
    `expected_` parameters and the `lift_` (parameters / expected).
    """

    group: Group
    histogram: pa.Table
    undefined: str
    """Why there is no magnitude baseline; empty if there is."""
    kept: NamedMask | None = None
    """The mask that the store now holds."""

    def remarks(self) -> list[str]:
        """What the histogram is of, and what it leaves out, in words."""
        group = self.group
        lines = [
            f"{len(group.members)} masks ({group.criterion}) of {len(group.tensors)} tensors, "
            f"{group.numel:,} parameters: {', '.join(group.names)}"
        ]
        if group.left_out:
            lines.append(
                f"left out: {len(group.left_out)} tensors, {sum(group.left_out.values()):,} "
                f"parameters, that not all of them compared in the same shape"
            )
        if self.undefined:
            lines.append(f"no magnitude baseline: {self.undefined}")
        if self.kept:
            lines.append(f"kept: {self.kept.rule}, as {self.kept.name}")
        return lines


def consensus(
    store_root: str | Path,
    where: str = "true",
    criterion: str = "exact",
    *,
    keep: Keep | None = None,
    name: str | None = None,
    progress: Progress = silent,
) -> Consensus:
    """Count in how many masks of a group every parameter changed.

    Args:
        store_root: the store.
        where: SQL condition over the view `pairs`; it is run as it stands.
        criterion: the rule that says "changed".
        keep: keep the mask "changed in at least this many" (`all`, `any` or a number) ...
        name: ... under this name, in the tables named_masks and named_mask_bits.
        progress: called with the bytes of bits looked at since the last call.

    Raises:
        QueryError: the condition is wrong, fewer than two pairs meet it, or they have no tensor
            in common.
        StoreError: a member keeps no such masks, or the name stands for another mask.
    """
    store = Store.open(store_root)
    if (keep is None) != (name is None):
        raise QueryError("keep (how many masks) and name (of the kept mask) go together")
    try:
        criterion = str(parse_criterion(criterion))
    except ValueError as error:
        raise QueryError(str(error)) from error
    with connect(store_root) as con:
        group = group_of(con, where, criterion)
        expected, undefined = expected_of(con, group)
    kept = None
    if keep is not None and name is not None:
        k = _threshold(keep, len(group.members))
        kept = consensus_mask(name, k, criterion, group.members, where)
    with store_errors(store_root):
        observed = _count(store, group, kept, progress)
    return Consensus(group, _table(observed, expected), undefined, kept)


def histogram_of(store: Store, con: duckdb.DuckDBPyConnection, group: Group) -> pa.Table:
    """The histogram of a group in an open session, as `Consensus.histogram` has it.

    Raises:
        StoreError: masks that should be there are not.
    """
    expected, _ = expected_of(con, group)
    with store_errors(store.root):
        return _table(_count(store, group, None, silent), expected)


def _threshold(keep: Keep, masks: int) -> int:
    text = str(keep)
    k = {"all": masks, "any": 1}.get(text, int(text) if text.isdecimal() else 0)
    if not 1 <= k <= masks:
        raise QueryError(f"keep {keep!r}: say all, any or a number from 1 to {masks}")
    return k


def _count(
    store: Store, group: Group, kept: NamedMask | None, progress: Progress
) -> npt.NDArray[np.int64]:
    """The histogram; the mask is kept on the way unless the store holds it."""
    if kept is None or kept.at_least is None:
        return _histogram(store, group, progress)
    with making(store, kept) as lease:
        if lease is None:
            return _histogram(store, group, progress)
        writer = MaskPartWriter(store, kept)
        try:
            total = _histogram(store, group, progress, writer, kept.at_least)
            lease.check()
            commit_mask(store, kept, [writer.publish()], len(group.tensors), group.numel)
        except BaseException:
            writer.close()
            raise
    return total


def _histogram(
    store: Store,
    group: Group,
    progress: Progress,
    writer: MaskPartWriter | None = None,
    least: int = 0,
) -> npt.NDArray[np.int64]:
    """The histogram; `writer` takes what changed in `least` masks or more."""
    masks = len(group.members)
    total = np.zeros(masks + 1, np.int64)
    for key, first, words, numel in _words(store, group):
        planes = count_masks(words)
        total += histogram(planes, masks, numel)
        if writer is not None:
            writer.add(key, first, numel, at_least(planes, least))
        progress(words.nbytes)
    return total


def _words(store: Store, group: Group) -> Iterator[tuple[str, int, Words, int]]:
    """Runs of blocks, in the order in which the first member has them.

    Yields:
        Tensor key, first block, the bits of all members [N, W], and the parameters of the run.
    """
    rows = [store.pair_row(i) | {"pair_id": i} for i in group.members]
    indexes = [PartIndex(store, row, group.criterion) for row in rows]
    streams = [MaskStream(store.files) for _ in rows]
    limit = max(1, _RUN_BYTES // (len(rows) * BLOCK_BYTES))
    missing = group.tensors.keys() - indexes[0].runs.keys()
    if missing:
        raise StoreError(f"no mask of {min(missing)} is stored: run rlsparse verify")
    for key in indexes[0].runs:
        blocks = blocks_of(group.tensors.get(key, 0))
        for first in range(0, blocks, limit):
            chosen = np.arange(first, min(blocks, first + limit))
            numel = min(group.tensors[key] - first * BLOCK, len(chosen) * BLOCK)
            found = [
                stream.find(index.runs.get(key, ()), chosen)
                for index, stream in zip(indexes, streams, strict=True)
            ]
            if any(each.numel != numel for each in found):
                raise StoreError(f"masks of {key} differ in length: run rlsparse verify")
            words = gather(np.stack([each.addresses for each in found]), BLOCK_BYTES // 8)
            yield key, first, words.reshape(len(rows), -1), numel


def _table(
    observed: npt.NDArray[np.int64], expected: dict[str, npt.NDArray[np.float64] | None]
) -> pa.Table:
    numel = int(observed.sum())
    columns: dict[str, Any] = {
        "changed_in": pa.array(range(len(observed)), pa.int32()),
        "parameters": pa.array(observed, pa.int64()),
        "share": _ratio(observed, np.full(len(observed), float(numel))),
        "at_least": pa.array(observed[::-1].cumsum()[::-1], pa.int64()),
    }
    for baseline, values in expected.items():
        nothing = pa.nulls(len(observed), pa.float64())
        columns[f"expected_{baseline}"] = nothing if values is None else pa.array(values)
        columns[f"lift_{baseline}"] = nothing if values is None else _ratio(observed, values)
    return pa.table(columns)


def _ratio(observed: npt.NDArray[np.int64], expected: npt.NDArray[np.float64]) -> pa.Array:
    possible = expected > 0
    return pa.array(observed / np.where(possible, expected, 1.0), mask=~possible)
