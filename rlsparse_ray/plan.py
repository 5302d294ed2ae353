"""From a corpus to slices: which bytes of which files are compared, before any weight is read."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from rlsparse_ray.align import Aligned, align
from rlsparse_ray.blocks import BLOCK
from rlsparse_ray.compare.criteria import parse_criterion
from rlsparse_ray.corpus import Corpus, PairEntry, Settings
from rlsparse_ray.discovery.rules import expand
from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.tables import PAIR_VERSION
from rlsparse_ray.values import values_of
from rlsparse_ray.weights import (
    Checkpoint,
    FileRef,
    Located,
    TensorSpec,
    applied,
    apply_adapter,
    distinct_nbytes,
    locate,
)

T = TypeVar("T")

MAX_TUNED = 16
"""Tuned models in one slice: each holds a row group of 8 MiB a mask. The base is read once for
all of them; beyond 16 reading it again costs 6 % at most."""

_AT_ONCE = 16
"""Models found or opened at the same time: each is a round trip or more to where it is."""


@dataclass(frozen=True, slots=True)
class SliceTensor:
    """One base tensor and the pairs in which it is compared: (pair_id, alignment)."""

    base: TensorSpec
    pairs: tuple[tuple[str, Aligned], ...]

    @property
    def nbytes(self) -> int:
        """Bytes to read: the base once, every tuned side, but what several share only once."""
        return distinct_nbytes([self.base, *(row.tuned for _, row in self.pairs if row.tuned)])

    @property
    def pair_nbytes(self) -> dict[str, int]:
        """Bytes that the numbers of each pair rest on, as if it were alone."""
        sides = {pair_id: [self.base] for pair_id, _ in self.pairs}
        for pair_id, row in self.pairs:
            sides[pair_id] += [row.tuned] if row.tuned else []
        return {pair_id: distinct_nbytes(specs) for pair_id, specs in sides.items()}


@dataclass(frozen=True, slots=True)
class Slice:
    """The unit of extraction. Its cut depends on the base and `slice_bytes` alone.

    So the parts of a pair are the same bytes whatever else the corpus holds.
    """

    number: int
    criteria: tuple[str, ...]
    tensors: tuple[SliceTensor, ...]

    @property
    def title(self) -> str:
        """Its name in messages."""
        return f"slice {self.number}"

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
        sides = ([t.base, *(row.tuned for _, row in t.pairs if row.tuned)] for t in self.tensors)
        made = max(
            sum({s.content: values_of(s).working for s in specs}.values()) for specs in sides
        )
        return (600 << 20) + len(self.pair_ids) * len(self.criteria) * (24 << 20) + made

    @property
    def files(self) -> dict[FileRef, set[str]]:
        """The files that are read, and the pairs that need each."""
        found: dict[FileRef, set[str]] = defaultdict(set)
        for tensor in self.tensors:
            for pair_id, row in tensor.pairs:
                for side in (tensor.base, *([row.tuned] if row.tuned else [])):
                    for leaf in side.inputs or (side,):
                        found[leaf.file].add(pair_id)
        return found

    def key(self, pair_id: str) -> str:
        """Name of the pair's share of this slice; it changes with anything that is read."""
        rows = [(row.tensor_key, row.base, row.tuned) for row in self.rows_of(pair_id)]
        digest = hashlib.sha256(repr((rows, self.criteria, PAIR_VERSION)).encode())
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
class KeptPair:
    """A pair that the store has already: its models are what they were."""

    pair_id: str
    entry: PairEntry


@dataclass(frozen=True, slots=True)
class Plan:
    """What an extraction will do.

    `failed` maps names of pairs to why they cannot be compared; `kept` are those that are done.
    """

    pairs: tuple[PlannedPair, ...]
    slices: tuple[Slice, ...]
    failed: dict[str, str]
    kept: tuple[KeptPair, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return sum(piece.nbytes for piece in self.slices)

    @property
    def shared_files(self) -> frozenset[FileRef]:
        """The files that several slices read: worth keeping whole on a node."""
        uses = Counter(file for piece in self.slices for file in piece.files)
        return frozenset(file for file, times in uses.items() if times > 1)

    def without(self, pair_ids: Iterable[str]) -> "Plan":
        """The plan for the other pairs."""
        dropped = set(pair_ids)
        pairs = tuple(pair for pair in self.pairs if pair.pair_id not in dropped)
        kept = {pair.pair_id for pair in pairs}
        slices = (piece.only(kept) for piece in self.slices)
        slices_left = tuple(piece for piece in slices if piece.tensors)
        return Plan(pairs, slices_left, self.failed, self.kept)


def make_plan(corpus: Corpus, committed: Collection[str] = ()) -> Plan:
    """Open every model of the corpus (headers only), align the pairs and cut the slices.

    Rules of the corpus are asked first. Models are found, and then opened, many at the same time.
    A checkpoint that cannot be opened or compared fails its pairs; the others are planned.

    Args:
        corpus: the pairs, and the rules that find more; a rule that fails is in `Plan.failed` too.
        committed: ids of pairs that need no plan: they become `Plan.kept`, and models that no
            other pair needs are not opened where a commit says which revision they are.
    """
    corpus, failed = expand(corpus)
    models = _Models()
    models.find({side for entry in corpus.entries() for side in (entry.base, entry.tuned)})
    kept = _by_commits(corpus, models, committed)
    rest = [entry for entry in corpus.entries() if entry.name not in kept]
    models.open({side for entry in rest for side in (entry.base, entry.tuned)})
    pairs: dict[str, PlannedPair | KeptPair] = {}
    for entry in corpus.entries():
        try:
            pair = kept.get(entry.name) or _plan_pair(entry, corpus.settings, models, committed)
            _check_new(pair, pairs)
            pairs[pair.pair_id] = pair
        except CheckpointError as error:
            failed[entry.name] = str(error)
    planned = tuple(pair for pair in pairs.values() if isinstance(pair, PlannedPair))
    return Plan(
        planned,
        tuple(_slices(planned, corpus.settings)),
        failed,
        tuple(pair for pair in pairs.values() if isinstance(pair, KeptPair)),
    )


class _Models:
    """The models of a corpus: each is found once, and opened once, also one that cannot be."""

    def __init__(self) -> None:
        self._found: dict[str, Located | CheckpointError] = {}
        self._opened: dict[str, Checkpoint | CheckpointError] = {}

    def find(self, sources: Iterable[str]) -> None:
        """Find some models."""
        self._found |= _each(locate, sources)

    def open(self, sources: Iterable[str]) -> None:
        """Open some of those that were found."""
        self._opened |= _each(lambda source: _raised(self._found[source]).open(), sources)

    def bare(self, source: str) -> Checkpoint | None:
        """A model that was found, without its tensors, if its commit alone tells which it is."""
        found = self._found[source]
        return found.bare if isinstance(found, Located) else None

    def __getitem__(self, source: str) -> Checkpoint:
        return _raised(self._opened[source])


def _each(function: Callable[[str], T], sources: Iterable[str]) -> dict[str, T | CheckpointError]:
    """What a function finds out about each model, or why it cannot."""

    def ask(source: str) -> T | CheckpointError:
        try:
            return function(source)
        except CheckpointError as error:
            return error

    ordered = sorted(sources)
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="rlsparse-model") as pool:
        return dict(zip(ordered, pool.map(ask, ordered), strict=True))


def _raised(found: T | CheckpointError) -> T:
    if isinstance(found, CheckpointError):
        raise found
    return found


def _by_commits(corpus: Corpus, models: _Models, committed: Collection[str]) -> dict[str, KeptPair]:
    """The pairs, by their names, that are committed as their two commits alone say."""
    kept = {}
    for entry in corpus.entries():
        base, tuned = models.bare(entry.base), models.bare(entry.tuned)
        if base is None or tuned is None:
            continue
        # whether a commit is an adapter only its files tell: then it has the base's revision too
        for side in (tuned, applied(tuned, base)):
            pair_id = make_pair_id(entry.name, base.identity, side.identity, corpus.settings)
            if pair_id in committed:
                kept[entry.name] = KeptPair(pair_id, entry)
    return kept


def _plan_pair(
    entry: PairEntry, settings: Settings, models: _Models, committed: Collection[str]
) -> PlannedPair | KeptPair:
    base, tuned = models[entry.base], models[entry.tuned]
    if base.adapter:
        raise CheckpointError(
            f"{base.source}: the base of a pair cannot be an adapter: name the model that it adapts"
        )
    if tuned.adapter:
        tuned = apply_adapter(tuned, base)
    pair_id = make_pair_id(entry.name, base.identity, tuned.identity, settings)
    if pair_id in committed:
        return KeptPair(pair_id, entry)
    rows = align(base, tuned, settings.compare_dtype)
    return PlannedPair(pair_id, entry, settings, base, tuned, rows)


def _check_new(pair: PlannedPair | KeptPair, pairs: Mapping[str, PlannedPair | KeptPair]) -> None:
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
    facts = repr((base, tuned, criteria, settings.compare_dtype, BLOCK, PAIR_VERSION))
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
    rows: dict[str, dict[TensorSpec, list[tuple[str, Aligned]]]]
    rows = defaultdict(lambda: defaultdict(list))
    for pair in pairs:
        for row in pair.rows:
            if row.compared and row.base is not None:
                rows[row.base.stored_name][row.base].append((pair.pair_id, row))
    for number, stored in enumerate(_cut_base(pairs[0].base, limit)):
        found = [
            SliceTensor(base, tuple(mine))
            for tensor in stored
            for base, mine in sorted(rows[tensor.name].items(), key=lambda item: item[0].offset)
        ]
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
