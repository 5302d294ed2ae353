"""Do the tables still say what the models hold? A sample of tensors is extracted again to see.

Each pair is planned anew from its sources at their revisions, and a few of its tensors go through
`extract_slice` into a store of their own that is thrown away: what is compared is made by the same
code as what was committed. A source that is gone or has moved on is no damage; it is told apart.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from rlsparse_ray.errors import QueryError
from rlsparse_ray.plan import PlannedPair, Slice, SliceTensor
from rlsparse_ray.population.reopen import reopen_pairs
from rlsparse_ray.progress import Progress, silent
from rlsparse_ray.slices import extract_slice
from rlsparse_ray.sql import connect
from rlsparse_ray.store import Store
from rlsparse_ray.upkeep.checks import Finding
from rlsparse_ray.weights import DTYPES

Row = Mapping[str, Any]

_COMPARED = """
SELECT pair_id, tensor_key, base_xxh3, tuned_xxh3, base_shape, tuned_shape, base_dtype, tuned_dtype
FROM tensors
WHERE base_xxh3 IS NOT NULL AND tuned_xxh3 IS NOT NULL
ORDER BY pair_id, tensor_key
"""
_COUNTS = "SELECT criterion, changed FROM counts WHERE pair_id = $1 AND tensor_key = $2"
_PAIRS = """
SELECT pair_id, name, base_source, base_revision, tuned_source, tuned_revision, criteria,
    compare_dtype
FROM pairs
ORDER BY pair_id
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """What is checked of one pair: rows of `pairs` and `tensors`, and the counts by criterion."""

    pair: Row
    tensors: tuple[Row, ...]
    counts: Mapping[str, Mapping[str, int]]
    """By tensor_key."""

    @property
    def nbytes(self) -> int:
        """Bytes of the sampled tensors of both sides."""
        return sum(
            prod(row[f"{side}_shape"]) * DTYPES[row[f"{side}_dtype"]]
            for row in self.tensors
            for side in ("base", "tuned")
        )


@dataclass(slots=True)
class DeepReport:
    """What a deep check found."""

    tensors: int = 0
    """Checked."""
    damaged: list[Finding] = field(default_factory=list)
    unchecked: list[Finding] = field(default_factory=list)
    """Pairs and tensors that could not be checked, and why."""


class _UncheckedError(Exception):
    """Why a pair cannot be checked."""


def choose(store_root: str, tensors: int, seed: int) -> list[Sample]:
    """Draw up to `tensors` compared tensors of each current pair; a seed draws the same again.

    Raises:
        StoreError: there is no store, or nothing is committed in it.
        QueryError: a table cannot be read.
    """
    with connect(store_root) as con:
        by_pair: dict[str, list[Row]] = defaultdict(list)
        for row in _rows(con, _COMPARED):
            by_pair[row["pair_id"]].append(row)
        samples = []
        for pair in _rows(con, _PAIRS):
            pair_id, known = pair["pair_id"], by_pair[pair["pair_id"]]
            drawn = random.Random(f"{seed} {pair_id}").sample(known, min(tensors, len(known)))
            counts = {
                key: {row["criterion"]: row["changed"] for row in _rows(con, _COUNTS, pair_id, key)}
                for key in (row["tensor_key"] for row in drawn)
            }
            samples.append(Sample(pair, tuple(drawn), counts))
    return samples


def _rows(con: duckdb.DuckDBPyConnection, text: str, *values: str) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = con.sql(text, params=values).to_arrow_table().to_pylist()
    except duckdb.Error as error:
        raise QueryError(f"tables for the deep check cannot be read: {error}") from error
    return found


def deep_verify(samples: Sequence[Sample], progress: Progress = silent) -> DeepReport:
    """Extract the samples again from their sources and compare.

    `progress` is called with the bytes of the samples done since the last call.
    """
    report = DeepReport()
    for sample in samples:
        _check(sample, report)
        progress(sample.nbytes)
    return report


def _check(sample: Sample, report: DeepReport) -> None:
    pair_id = sample.pair["pair_id"]
    try:
        pair = _planned(sample.pair)
        piece, missing = _piece(pair, sample)
        found = _extract(pair, piece)
    except _UncheckedError as error:
        report.unchecked.append(Finding("not checked", pair_id, str(error)))
        return
    for key in missing:
        text = f"tensor {key}: not compared by this version under that name"
        report.unchecked.append(Finding("not checked", pair_id, text))
    for row in sample.tensors:
        if row["tensor_key"] in found:
            report.tensors += 1
            for problem in _problems(row, sample, *found[row["tensor_key"]]):
                report.damaged.append(Finding("deep", pair_id, problem))


def _planned(pair: Row) -> PlannedPair:
    """A committed pair, from its sources as they are now."""
    pairs, failed = reopen_pairs([pair])
    if failed:
        raise _UncheckedError(failed[pair["pair_id"]])
    return pairs[pair["pair_id"]]


def _piece(pair: PlannedPair, sample: Sample) -> tuple[Slice, list[str]]:
    """A slice with the sampled tensors, and the keys of those that the pair does not have."""
    wanted = [row["tensor_key"] for row in sample.tensors]
    known = {row.tensor_key: row for row in pair.rows if row.compared}
    tensors = tuple(
        SliceTensor(row.base, ((pair.pair_id, row),))
        for row in (known[key] for key in wanted if key in known)
        if row.base is not None
    )
    criteria = tuple(sample.pair["criteria"])
    return Slice(0, criteria, tensors), [key for key in wanted if key not in known]


def _extract(pair: PlannedPair, piece: Slice) -> dict[str, tuple[Row, dict[str, int]]]:
    """By tensor_key: the new row of `tensors` and the new counts."""
    if not piece.tensors:
        return {}
    with TemporaryDirectory(prefix="rlsparse-deep-") as scratch:
        store = Store.create(scratch)
        failed = extract_slice(piece, scratch).failed
        if failed:
            raise _UncheckedError(failed[pair.pair_id])
        result = store.staged(pair.pair_id, piece.key(pair.pair_id))
    if result is None:
        raise _UncheckedError(f"{scratch}: emptied while it was in use: run again")
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for row in result.tables["counts"].to_pylist():
        counts[row["tensor_key"]][row["criterion"]] = row["changed"]
    rows = {row["tensor_key"]: row for row in result.tables["tensors"].to_pylist()}
    return {key: (row, counts[key]) for key, row in rows.items()}


def _problems(row: Row, sample: Sample, new: Row, new_counts: Mapping[str, int]) -> Iterator[str]:
    key, pair = row["tensor_key"], sample.pair
    damaged = False
    for side in ("base", "tuned"):
        now, then = new[f"{side}_xxh3"], row[f"{side}_xxh3"]
        if now != then:
            damaged = True
            yield (
                f"tensor {key}: the bytes in {side} {pair[f'{side}_source']} have XXH3 {now}, "
                f"`tensors` says {then}: the model was damaged or changed in place (check it "
                f"against its publisher), or the table was: then extract the pair again"
            )
    if damaged:
        return
    for criterion, changed in sample.counts[key].items():
        now = new_counts.get(criterion)
        if now is not None and now != changed:
            yield (
                f"tensor {key}: {now} parameters changed under {criterion}, `counts` says "
                f"{changed}, of the same bytes: the table is damaged: extract the pair again"
            )
