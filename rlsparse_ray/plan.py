"""From a corpus to slices: which bytes of which files are compared, before any weight is read."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rlsparse_ray.align import Aligned, align
from rlsparse_ray.blocks import BLOCK
from rlsparse_ray.compare.criteria import parse_criterion
from rlsparse_ray.corpus import Corpus, PairEntry, Settings
from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.tables import SCHEMA_VERSION
from rlsparse_ray.weights import Checkpoint, TensorSpec, open_checkpoint

MAX_TUNED = 16
"""Tuned models in one slice: each holds a row group of 8 MiB a mask. The base is read once for
all of them; beyond 16 reading it again costs 6 % at most."""


@dataclass(frozen=True, slots=True)
class SliceTensor:
    """One base tensor and the pairs in which it is compared: (pair_id, alignment)."""

    base: TensorSpec
    pairs: tuple[tuple[str, Aligned], ...]

    @property
    def nbytes(self) -> int:
        """Bytes to read: the base once, every tuned side."""
        tuned = sum(row.tuned.nbytes for _, row in self.pairs if row.tuned is not None)
        return self.base.nbytes + tuned


@dataclass(frozen=True, slots=True)
class Slice:
    """The unit of extraction. Its cut depends on the base and `slice_bytes` alone.

    So the parts of a pair are the same bytes whatever else the corpus holds.
    """

    number: int
    criteria: tuple[str, ...]
    tensors: tuple[SliceTensor, ...]

    @property
    def pair_ids(self) -> tuple[str, ...]:
        """The pairs of the slice."""
        return tuple(dict.fromkeys(i for tensor in self.tensors for i, _ in tensor.pairs))

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def memory(self) -> int:
        """Bytes that a worker needs, by the sizes of its buffers; measured peaks are below it."""
        return (600 << 20) + len(self.pair_ids) * len(self.criteria) * (24 << 20)

    def key(self, pair_id: str) -> str:
        """Name of the pair's share of this slice; it changes with anything that is read."""
        rows = [(row.tensor_key, row.base, row.tuned) for row in self.rows_of(pair_id)]
        digest = hashlib.sha256(repr((rows, self.criteria, SCHEMA_VERSION)).encode())
        return f"slice-{self.number:05d}-{digest.hexdigest()[:12]}"

    def rows_of(self, pair_id: str) -> tuple[Aligned, ...]:
        """What is compared for one pair."""
        return tuple(row for t in self.tensors for i, row in t.pairs if i == pair_id)

    def only(self, pair_ids: Iterable[str]) -> "Slice":
        """The same slice for some of its pairs."""
        wanted = set(pair_ids)
        cut = (
            SliceTensor(t.base, tuple((i, row) for i, row in t.pairs if i in wanted))
            for t in self.tensors
        )
        return replace(self, tensors=tuple(t for t in cut if t.pairs))


@dataclass(frozen=True, slots=True)
class PlannedPair:
    """A pair whose two sides have been opened and aligned."""

    pair_id: str
    entry: PairEntry
    settings: Settings
    base: Checkpoint
    tuned: Checkpoint
    rows: tuple[Aligned, ...]

    @property
    def numel(self) -> int:
        """Parameters to compare."""
        return sum(row.numel for row in self.rows)


@dataclass(frozen=True, slots=True)
class Plan:
    """What an extraction will do. `failed` maps names of pairs to why they cannot be compared."""

    pairs: tuple[PlannedPair, ...]
    slices: tuple[Slice, ...]
    failed: dict[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return sum(piece.nbytes for piece in self.slices)

    def without(self, pair_ids: Iterable[str]) -> "Plan":
        """The plan for the other pairs."""
        dropped = set(pair_ids)
        pairs = tuple(pair for pair in self.pairs if pair.pair_id not in dropped)
        kept = {pair.pair_id for pair in pairs}
        slices = (piece.only(kept) for piece in self.slices)
        return Plan(pairs, tuple(piece for piece in slices if piece.tensors), self.failed)


def make_plan(corpus: Corpus) -> Plan:
    """Open every model of the corpus (headers only), align the pairs and cut the slices.

    A checkpoint that cannot be opened or compared fails its pairs; the others are planned.
    """
    opened = _Checkpoints()
    pairs: dict[str, PlannedPair] = {}
    failed: dict[str, str] = {}
    for entry in corpus.entries():
        try:
            pair = _plan_pair(entry, corpus.settings, opened)
            _check_new(pair, pairs)
            pairs[pair.pair_id] = pair
        except CheckpointError as error:
            failed[entry.name] = str(error)
    slices = tuple(_slices(list(pairs.values()), corpus.settings))
    return Plan(tuple(pairs.values()), slices, failed)


class _Checkpoints:
    """Opens each model once, also one that cannot be opened."""

    def __init__(self) -> None:
        self._known: dict[str, Checkpoint | CheckpointError] = {}

    def open(self, source: str) -> Checkpoint:
        if source not in self._known:
            try:
                self._known[source] = open_checkpoint(source)
            except CheckpointError as error:
                self._known[source] = error
        found = self._known[source]
        if isinstance(found, CheckpointError):
            raise found
        return found


def _plan_pair(entry: PairEntry, settings: Settings, opened: _Checkpoints) -> PlannedPair:
    base, tuned = opened.open(entry.base), opened.open(entry.tuned)
    rows = align(base, tuned, settings.compare_dtype)
    pair_id = make_pair_id(entry.name, base.identity, tuned.identity, settings)
    return PlannedPair(pair_id, entry, settings, base, tuned, rows)


def _check_new(pair: PlannedPair, pairs: Mapping[str, PlannedPair]) -> None:
    if pair.pair_id in pairs:
        raise CheckpointError(
            f"the same models as pair {pairs[pair.pair_id].entry.name!r} and nearly its name, so "
            f"both would be {pair.pair_id}: remove one, or rename it"
        )


def make_pair_id(name: str, base: str, tuned: str, settings: Settings) -> str:
    """A readable slug and a short hash of what determines the pair's numbers.

    >>> make_pair_id("GRPO, seed 0", "local@1", "local@2", Settings())
    'grpo-seed-0-6c6f4bb1'
    """
    criteria = [str(parse_criterion(text)) for text in settings.criteria]
    facts = repr((base, tuned, criteria, settings.compare_dtype, BLOCK, SCHEMA_VERSION))
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "pair"
    return f"{slug[:60]}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"


def _slices(pairs: Sequence[PlannedPair], settings: Settings) -> Iterable[Slice]:
    criteria = tuple(str(parse_criterion(text)) for text in settings.criteria)
    by_base: dict[str, dict[str, PlannedPair]] = defaultdict(dict)
    for pair in pairs:
        by_base[pair.base.identity][pair.pair_id] = pair
    for same_base in by_base.values():
        ordered = sorted(same_base.values(), key=lambda pair: pair.pair_id)
        for first in range(0, len(ordered), MAX_TUNED):
            yield from _cut(ordered[first : first + MAX_TUNED], criteria, settings.slice_bytes)


def _cut(pairs: Sequence[PlannedPair], criteria: tuple[str, ...], limit: int) -> Iterable[Slice]:
    rows: dict[str, list[tuple[str, Aligned]]] = defaultdict(list)
    for pair in pairs:
        for row in pair.rows:
            if row.compared and row.base is not None:
                rows[row.base.name].append((pair.pair_id, row))
    for number, names in enumerate(_cut_base(pairs[0].base, limit)):
        found = [SliceTensor(base, tuple(rows[base.name])) for base in names if rows[base.name]]
        if found:
            yield Slice(number, criteria, tuple(found))


def _cut_base(base: Checkpoint, limit: int) -> Iterable[list[TensorSpec]]:
    """Runs of neighbouring tensors of at most `limit` bytes, or one tensor that is larger."""
    run: list[TensorSpec] = []
    size = 0
    for tensor in base.tensors:
        if run and size + tensor.nbytes > limit:
            yield run
            run, size = [], 0
        run.append(tensor)
        size += tensor.nbytes
    if run:
        yield run
