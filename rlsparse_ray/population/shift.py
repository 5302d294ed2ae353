"""The shift baseline of chosen pairs of runs: what they share when the blocks of one are rotated.

The same numbers as `lift_shift` of the query `overlap_lifts`, which has the definition. SQL copies
the blocks of both masks once for every rotation; here they are counted where Arrow decoded them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from rlsparse_ray.blocks import BLOCK, BLOCK_BYTES
from rlsparse_ray.compare.popcount import Addresses, Counts, shared_bits
from rlsparse_ray.population.mask_parts import MaskStream
from rlsparse_ray.population.overlap_plan import compared_tensors, each
from rlsparse_ray.population.overlap_units import Pair, PartIndex, Tile, tiles
from rlsparse_ray.storage.files import store_errors
from rlsparse_ray.store import Store

TURNS = (1, 2, 3, 5, 8)
"""Blocks by which a tensor is turned, as in the macro `rotated_blocks` of queries/setup.sql."""


@dataclass(frozen=True, slots=True)
class Shift:
    """Sums over the full blocks of the tensors that have two or more of them.

    Attributes:
        shared: weights that changed in both runs.
        smaller: weights that changed in the run that changed fewer.
        expected: `shared` with the blocks of the second run rotated, mean of the rotations.
    """

    shared: int
    smaller: int
    expected: float

    @property
    def lift(self) -> float | None:
        """How many times what is expected was observed; None if nothing is expected."""
        return self.shared / self.expected if self.expected else None

    @property
    def excess_share(self) -> float | None:
        """The way from chance, 0, to complete, 1: see the query `overlap_excess`. None if chance
        alone would fill the smaller mask."""
        possible = self.smaller - self.expected
        return (self.shared - self.expected) / possible if possible > 0 else None


def count_shift(
    store: Store, wanted: Sequence[Pair], criterion: str = "exact"
) -> dict[Pair, Shift]:
    """Count the shift baseline of pairs of runs, on one core.

    Memory: the bits of one tensor of all these runs, or of 256 of them if they are more.

    Args:
        store: the store.
        wanted: (pair_a, pair_b), pair_a before pair_b in the order of their texts.
        criterion: the rule that says "changed".

    Returns:
        Those pairs of runs that have a tensor of two full blocks in common.

    Raises:
        StoreError: a mask is not there or damaged.
    """
    found: dict[Pair, Shift] = {}
    with store_errors(store.root):
        for tile in tiles(wanted) if wanted else ():
            found |= _of_tile(store, tile, criterion)
    return found


def _of_tile(store: Store, tile: Tile, criterion: str) -> dict[Pair, Shift]:
    tensors = each(partial(_full_blocks, store), tile.pairs)
    large = [i for i in tile.pairs if tensors[i]]
    parts = each(lambda i: PartIndex(store, store.pair_row(i) | {"pair_id": i}, criterion), large)
    streams = {i: MaskStream(store.files) for i in large}
    wanted = tile.matrix()
    shared, rotated, changed_a, changed_b = np.zeros((4, *wanted.shape), np.int64)
    compared = np.zeros_like(wanted)
    # in the order of the masks, so that each of them is read once
    for key in dict.fromkeys(key for part in parts.values() for key in part.runs):
        have = np.flatnonzero([key in tensors[i] for i in tile.pairs])
        here = np.ix_(have, have)
        if not wanted[here].any():
            continue
        ids = [tile.pairs[n] for n in have]
        chosen = np.arange(tensors[ids[0]][key])
        masks = [streams[i].find(parts[i].runs.get(key, ()), chosen) for i in ids]
        changed = np.array([mask.changed for mask in masks])
        blocks = np.stack([mask.addresses for mask in masks], axis=1)
        for total, bits in zip((shared, rotated), _count(blocks, wanted[here]), strict=True):
            total[here] += bits
        changed_a[here] += changed[:, None]
        changed_b[here] += changed[None, :]
        compared[here] = True
    smaller, expected = np.minimum(changed_a, changed_b), rotated / len(TURNS)
    return {
        (tile.pairs[a], tile.pairs[b]): Shift(
            int(shared[a, b]), int(smaller[a, b]), float(expected[a, b])
        )
        for a, b in tile.wanted
        if compared[a, b]
    }


def _full_blocks(store: Store, pair_id: str) -> dict[str, int]:
    """By tensor_key the full blocks of the tensors that can be turned."""
    counts = {key: facts.numel // BLOCK for key, facts in compared_tensors(store, pair_id).items()}
    return {key: count for key, count in counts.items() if count >= 2}


def _count(blocks: Addresses, wanted: npt.NDArray[np.bool_]) -> tuple[Counts, Counts]:
    """Bits shared in blocks [blocks, masks] as they lie, and with those of the second mask turned,
    all rotations together."""
    full, masks = blocks.shape
    words = BLOCK_BYTES // 8
    shared, _ = shared_bits(blocks, words, wanted)
    # masks as they lie, then the same turned: only the former with the latter
    across = np.zeros((2 * masks, 2 * masks), np.bool_)
    across[:masks, masks:] = wanted
    rotated = np.zeros_like(shared)
    for turn in TURNS:
        turned = np.roll(blocks, -(1 + (turn - 1) % (full - 1)), axis=0)
        both, _ = shared_bits(np.hstack([blocks, turned]), words, across)
        rotated += both[:masks, masks:]
    return shared, rotated
