"""The models of committed pairs, opened again where they were and as they were."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from rlsparse_ray.corpus import Corpus, PairEntry, Settings
from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.plan import PlannedPair, make_plan
from rlsparse_ray.weights.hub_address import parse_address

Row = Mapping[str, Any]


def reopen_pairs(rows: Iterable[Row]) -> tuple[dict[str, PlannedPair], dict[str, str]]:
    """Open both models of committed pairs at their revisions, and align them as they were compared.

    Args:
        rows: of the table `pairs`, with their pair_id.

    Returns:
        The pairs by pair_id, and by pair_id why others cannot be opened: a model is gone, has
        moved on or was changed in place.
    """
    by_dtype: dict[str | None, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        by_dtype[row["compare_dtype"]][row["pair_id"]] = row
    pairs: dict[str, PlannedPair] = {}
    failed: dict[str, str] = {}
    for dtype, chosen in by_dtype.items():
        entries = tuple(_entry(row) for row in chosen.values())
        settings = Settings(compare_dtype=dtype)
        # each entry bears the pair_id as its name: names may stand twice in a store
        plan = make_plan(Corpus(version=1, settings=settings, pairs=entries))
        failed |= plan.failed
        for pair in plan.pairs:
            try:
                _check_unmoved(pair, chosen[pair.entry.name])
                pairs[pair.entry.name] = pair
            except CheckpointError as error:
                failed[pair.entry.name] = str(error)
    return pairs, failed


def _entry(row: Row) -> PairEntry:
    return PairEntry(
        name=row["pair_id"],
        base=_pinned(row["base_source"], row["base_revision"]),
        tuned=_pinned(row["tuned_source"], row["tuned_revision"]),
    )


def _pinned(source: str, revision: str) -> str:
    """The address of a model at its revision; only the hub keeps older ones.

    >>> _pinned("hf://org/repo/step-10", "0a1b+2c3d"), _pinned("/models/base", "0a1b")
    ('hf://org/repo@0a1b/step-10', '/models/base')
    """
    if not source.startswith("hf://"):
        return source
    # the revision of an adapter is its own and that of its base
    return str(replace(parse_address(source), revision=revision.partition("+")[0]))


def _check_unmoved(pair: PlannedPair, row: Row) -> None:
    for side in ("base", "tuned"):
        now, then = getattr(pair, side).revision, row[f"{side}_revision"]
        if now != then:
            raise CheckpointError(
                f"{side} {row[f'{side}_source']}: moved, copied or changed since it was "
                f"extracted (revision {now} now, {then} then): put the old model back, or extract "
                f"again: it will be a new pair"
            )
