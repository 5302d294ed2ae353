"""Units of work of a pass over all pairs of masks, and how a pass is cut into them."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rlsparse_ray.blocks import BLOCK_BYTES, blocks_of
from rlsparse_ray.population.mask_parts import Run, runs_of
from rlsparse_ray.store import Store
from rlsparse_ray.tables import SCHEMA_VERSION

UNIT_BYTES = 256 << 20
"""Bits that a unit reads, decompressed; one row group of every mask if that is more."""

MAX_MASKS = 256
"""Masks open in one unit, some 6 MiB each. More are done in tiles, which read a mask again."""

MAX_ROWS = 2_000_000
"""Rows in the result of a unit."""

MARGIN_BYTES = 256 << 20
"""Margins that a unit of expectations holds."""

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """A compared tensor of a pair. `base` is the hash of the bytes of the base tensor."""

    tensor_key: str
    numel: int
    rows: int
    columns: int
    base: str | None


@dataclass(frozen=True, slots=True)
class Tile:
    """Pairs to hold against each other: `wanted` are indices (a, b) into `pairs`, a before b."""

    pairs: tuple[str, ...]
    wanted: tuple[tuple[int, int], ...]

    def matrix(self) -> npt.NDArray[np.bool_]:
        """`wanted` as [pairs, pairs]."""
        found = np.zeros((len(self.pairs), len(self.pairs)), np.bool_)
        found[tuple(np.array(self.wanted).T)] = True
        return found


@dataclass(frozen=True, slots=True)
class Span:
    """Blocks first to stop of a tensor, and where each pair of the tile has its blocks.

    A pair that has no such tensor has no runs.
    """

    tensor_key: str
    blocks_total: int
    first: int
    stop: int
    runs: tuple[tuple[Run, ...], ...]

    @property
    def nbytes(self) -> int:
        """Bits to read, decompressed."""
        return (self.stop - self.first) * BLOCK_BYTES * sum(map(bool, self.runs))


@dataclass(frozen=True, slots=True)
class CountUnit:
    """A unit of work that counts shared bits in some spans of blocks."""

    criterion: str
    fraction: float
    tile: Tile
    spans: tuple[Span, ...]

    @property
    def nbytes(self) -> int:
        """Bits to read, decompressed."""
        return sum(span.nbytes for span in self.spans)

    @property
    def memory(self) -> int:
        """Bytes that a worker needs; measured peaks are below it."""
        return (500 << 20) + len(self.tile.pairs) * (7 << 20)


@dataclass(frozen=True, slots=True)
class ExpectUnit:
    """A unit of work that computes the expected overlaps of some tensors."""

    criterion: str
    fraction: float
    tile: Tile
    tensors: tuple[tuple[TensorFacts | None, ...], ...]
    """For each tensor what each pair of the tile has of that key."""

    @property
    def nbytes(self) -> int:
        """Bits to read: none."""
        return 0

    @property
    def memory(self) -> int:
        """Bytes that a worker needs."""
        sides = [f for facts in self.tensors for f in facts if f is not None]
        # Arrow's lists, their float64 copy for one tensor and its products
        return (500 << 20) + 3 * sum(4 * (f.rows + f.columns) for f in sides)


Unit = CountUnit | ExpectUnit


def staging_of(criterion: str, fraction: float) -> str:
    """Where a pass keeps its finished units, relative to the store."""
    return f"staging/overlaps/{criterion}@{fraction!r}"


def unit_key(unit: Unit) -> str:
    """Name of the result of a unit: it changes with everything that goes into it."""
    kind = "count" if isinstance(unit, CountUnit) else "expect"
    digest = hashlib.sha256(repr((unit, SCHEMA_VERSION)).encode())
    return f"{kind}-{digest.hexdigest()[:16]}"


def tiles(wanted: Sequence[Pair], limit: int = MAX_MASKS) -> Iterator[Tile]:
    """The wanted pairs of pairs in tiles of at most `limit` masks, each in exactly one tile."""
    ids = sorted({i for pair in wanted for i in pair})
    if len(ids) <= limit:
        yield _tile(wanted)
        return
    chunk = {i: n // (limit // 2) for n, i in enumerate(ids)}
    last = max(chunk.values())
    sorted_in: dict[tuple[int, int], list[Pair]] = {}
    for a, b in wanted:
        x, y = chunk[a], chunk[b]
        # both of one chunk: with the next chunk, or the last one with that before it
        place = (x, y) if x != y else (x, x + 1) if x < last else (x - 1, x)
        sorted_in.setdefault(place, []).append((a, b))
    yield from (_tile(sorted_in[place]) for place in sorted(sorted_in))


def _tile(wanted: Sequence[Pair]) -> Tile:
    ids = sorted({i for pair in wanted for i in pair})
    at = {pair_id: n for n, pair_id in enumerate(ids)}
    return Tile(tuple(ids), tuple((at[a], at[b]) for a, b in wanted))


class PartIndex:
    """Where the mask of one pair lies: its runs, and how its row groups cut its tensors."""

    def __init__(self, store: Store, row: Mapping[str, Any], criterion: str) -> None:
        self.runs: dict[str, tuple[Run, ...]] = {}
        self.groups: list[list[tuple[str, int, int]]] = []
        folder = f"masks/pair_id={row['pair_id']}/criterion={criterion}/"
        for part in row["parts"]:
            if part["path"].startswith(folder):
                self._add(*runs_of(store.files, part["path"]))

    def _add(self, runs: Sequence[Run], starts: Sequence[int]) -> None:
        for run in runs:
            self.runs[run.tensor_key] = (*self.runs.get(run.tensor_key, ()), run)
        for start, stop in zip(starts, [*starts[1:], math.inf], strict=True):
            cuts = ((run, max(start, run.row), min(stop, run.row + run.blocks)) for run in runs)
            self.groups.append(
                [
                    (run.tensor_key, run.first + low - run.row, run.first + int(high) - run.row)
                    for run, low, high in cuts
                    if low < high
                ]
            )


class _Having:
    """Which pairs of a tile have a tensor, and how many of the wanted ones that leaves."""

    def __init__(self, tile: Tile, tensors: Mapping[str, Mapping[str, TensorFacts]]) -> None:
        self.sides = [tensors[pair_id] for pair_id in tile.pairs]
        self.matrix = tile.matrix()
        self._counted: dict[bytes, int] = {}

    def facts(self, key: str) -> tuple[TensorFacts | None, ...]:
        return tuple(side.get(key) for side in self.sides)

    def wanted(self, key: str) -> int:
        have = np.array([key in side for side in self.sides])
        code = have.tobytes()
        if code not in self._counted:
            self._counted[code] = int(self.matrix[np.ix_(have, have)].sum())
        return self._counted[code]


def cut(
    tile: Tile,
    criterion: str,
    fraction: float,
    tensors: Mapping[str, Mapping[str, TensorFacts]],
    parts: Mapping[str, PartIndex],
) -> Iterator[Unit]:
    """The units of a tile; `tensors` and `parts` tell of each pair what it compared, and where.

    Expectations come first: at the end one worker would do them while the others wait, 0.3 of 2.2 s
    for 64 masks on two cores.
    """
    yield from _expect_units(tile, criterion, fraction, tensors)
    yield from _count_units(tile, criterion, fraction, tensors, parts)


def _count_units(
    tile: Tile,
    criterion: str,
    fraction: float,
    tensors: Mapping[str, Mapping[str, TensorFacts]],
    parts: Mapping[str, PartIndex],
) -> Iterator[CountUnit]:
    """Cut at the row groups of the first pair that has a tensor: pairs of a base share them."""
    having = _Having(tile, tensors)
    spans: list[Span] = []
    nbytes = rows = 0
    for group in _groups(tile, parts):
        if nbytes >= UNIT_BYTES:
            yield CountUnit(criterion, fraction, tile, tuple(spans))
            spans, nbytes, rows = [], 0, 0
        for key, first, stop in group:
            wanted = having.wanted(key)
            if not wanted:
                continue
            if spans and rows + wanted > MAX_ROWS:
                yield CountUnit(criterion, fraction, tile, tuple(spans))
                spans, nbytes, rows = [], 0, 0
            numel = next(f.numel for f in having.facts(key) if f is not None)
            runs = tuple(parts[i].runs.get(key, ()) for i in tile.pairs)
            spans.append(Span(key, blocks_of(numel), first, stop, runs))
            nbytes, rows = nbytes + spans[-1].nbytes, rows + wanted
    if spans:
        yield CountUnit(criterion, fraction, tile, tuple(spans))


def _groups(tile: Tile, parts: Mapping[str, PartIndex]) -> Iterator[list[tuple[str, int, int]]]:
    """The row groups of the first pair, then of each further pair what is new in it."""
    seen: set[str] = set()
    for pair_id in tile.pairs:
        for group in parts[pair_id].groups:
            yield [cut for cut in group if cut[0] not in seen]
        seen |= parts[pair_id].runs.keys()


def _expect_units(
    tile: Tile,
    criterion: str,
    fraction: float,
    tensors: Mapping[str, Mapping[str, TensorFacts]],
) -> Iterator[ExpectUnit]:
    having = _Having(tile, tensors)
    found: list[tuple[TensorFacts | None, ...]] = []
    nbytes = rows = 0
    for key in dict.fromkeys(key for side in having.sides for key in side):
        wanted = having.wanted(key)
        if not wanted:
            continue
        facts = having.facts(key)
        size = sum(4 * (f.rows + f.columns) for f in facts if f is not None)
        if found and (nbytes + size > MARGIN_BYTES or rows + wanted > MAX_ROWS):
            yield ExpectUnit(criterion, fraction, tile, tuple(found))
            found, nbytes, rows = [], 0, 0
        found.append(facts)
        nbytes, rows = nbytes + size, rows + wanted
    if found:
        yield ExpectUnit(criterion, fraction, tile, tuple(found))
