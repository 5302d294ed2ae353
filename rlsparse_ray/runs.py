"""The bookkeeping of an extraction: what waits, what each commit waits for, what has failed.

Knows no Ray and reads no weights: whoever runs the work tells it what came of it.
"""

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.lineage import Lineage
from rlsparse_ray.plan import Plan, PlannedPair, Slice
from rlsparse_ray.slices import SliceReport


@dataclass(slots=True)
class Outcome:
    """What an extraction did: names of pairs, and why some failed."""

    committed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    relabelled: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    doubts: dict[str, str] = field(default_factory=dict)
    """Why the base of a pair may not be its base; it is measured all the same."""
    nbytes: int = 0

    @property
    def ok(self) -> bool:
        """Whether no pair failed."""
        return not self.failed


@dataclass(frozen=True, slots=True)
class LineageCheck:
    """A pair of which a few ranges are sampled, before its slices."""

    pair: PlannedPair

    @property
    def title(self) -> str:
        """Its name in messages."""
        return f"lineage of {self.pair.entry.name}"


@dataclass(frozen=True, slots=True)
class Commit:
    """A pair whose slices are all done: their keys in order, and what its lineage scored."""

    pair: PlannedPair
    keys: tuple[str, ...]
    lineage_score: float | None

    @property
    def title(self) -> str:
        """Its name in messages."""
        return self.pair.entry.name


class Ledger:
    """What is to be done for a plan. Pairs that fail are left out of the slices that follow."""

    def __init__(self, plan: Plan, outcome: Outcome) -> None:
        self.outcome = outcome
        self.dropped: set[str] = set()
        """Ids of pairs that failed."""
        self.skipped = 0
        """Bytes that are not read because their pairs have failed."""
        self._waiting = deque(_with_checks(plan))
        self._pairs = {pair.pair_id: pair for pair in plan.pairs}
        self._keys = _keys(plan)
        # a commit waits for the slices of its pair and for its lineage
        self._missing = {pair_id: len(keys) + 1 for pair_id, keys in self._keys.items()}
        self._scores: dict[str, float | None] = {}

    @property
    def waits(self) -> int:
        """How much is still to be taken."""
        return len(self._waiting)

    def take(self) -> Slice | LineageCheck | None:
        """What to do next; None if nothing is left of it because its pairs have failed."""
        work = self._waiting.popleft()
        if isinstance(work, LineageCheck):
            return None if work.pair.pair_id in self.dropped else work
        left = work.only(set(work.pair_ids) - self.dropped)
        self.skipped += work.nbytes - left.nbytes
        return left if left.tensors else None

    def judged(self, check: LineageCheck, found: Lineage | CheckpointError) -> list[Commit]:
        """Take down what a lineage check found; the commit that can be made now, if any."""
        pair = check.pair
        if isinstance(found, CheckpointError):
            self._fail(pair.pair_id, str(found))
            return []
        self._scores[pair.pair_id] = found.score
        if found.doubt is not None:
            self.outcome.doubts[pair.entry.name] = found.doubt
        return self._advance([pair.pair_id])

    def done(self, piece: Slice, report: SliceReport) -> list[Commit]:
        """Take down what became of a slice; the commits that can be made now."""
        self.outcome.nbytes += report.nbytes
        for pair_id, message in report.failed.items():
            self._fail(pair_id, message)
        return self._advance([i for i in piece.pair_ids if i not in report.failed])

    def committed(self, commit: Commit) -> None:
        """Take down that a pair is visible."""
        self.outcome.committed.append(commit.pair.entry.name)

    def _fail(self, pair_id: str, message: str) -> None:
        """Take down a failure; of several, the first one counts."""
        self.outcome.failed.setdefault(self._pairs[pair_id].entry.name, message)
        self.dropped.add(pair_id)

    def _advance(self, pair_ids: list[str]) -> list[Commit]:
        """One thing less that the commits of some pairs wait for."""
        ready = []
        for pair_id in pair_ids:
            self._missing[pair_id] -= 1
            if not self._missing[pair_id]:
                keys = tuple(self._keys[pair_id])
                ready.append(Commit(self._pairs[pair_id], keys, self._scores[pair_id]))
        return ready


def largest_first(slices: tuple[Slice, ...]) -> Iterator[Slice]:
    """Slices in the order in which they are done, so that no large one is alone in the end.

    Those that were cut from one base for the same pairs stay together: its pairs are committed
    soon, and its files are warm wherever they are cached.
    """
    groups: list[list[Slice]] = []
    for piece in slices:
        # numbers grow within a cut
        if not groups or piece.number <= groups[-1][-1].number:
            groups.append([])
        groups[-1].append(piece)
    ordered = [sorted(group, key=lambda piece: -piece.nbytes) for group in groups]
    for group in sorted(ordered, key=lambda group: -group[0].nbytes):
        yield from group


def _with_checks(plan: Plan) -> Iterator[Slice | LineageCheck]:
    """The slices, and before the first one of each pair the check of its lineage."""
    unchecked = {pair.pair_id: pair for pair in plan.pairs}
    for piece in largest_first(plan.slices):
        for pair_id in piece.pair_ids:
            if pair_id in unchecked:
                yield LineageCheck(unchecked.pop(pair_id))
        yield piece


def _keys(plan: Plan) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = defaultdict(list)
    for piece in plan.slices:
        for pair_id in piece.pair_ids:
            keys[pair_id].append(piece.key(pair_id))
    return keys
