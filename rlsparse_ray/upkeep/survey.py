"""How a corpus stands against a store: what is new, what has moved on, what is as it was."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlsparse_ray.commit import stale_labels
from rlsparse_ray.corpus import Corpus
from rlsparse_ray.plan import KeptPair, Plan, PlannedPair, make_plan
from rlsparse_ray.population.overlap_plan import each, newest_of
from rlsparse_ray.storage.files import store_errors
from rlsparse_ray.store import MARKER, Store


@dataclass(frozen=True, slots=True)
class Survey:
    """How a corpus stands against a store."""

    plan: Plan
    superseded: dict[str, str]
    """Pairs that moved on, or back: name -> pair_id that is current until now."""
    stale: frozenset[str]
    """Names of unmoved pairs whose labels have changed."""

    @property
    def returned(self) -> list[KeptPair]:
        """Pairs whose models are at revisions again that were compared before."""
        return [pair for pair in self.plan.kept if pair.entry.name in self.superseded]

    @property
    def relabelled(self) -> list[KeptPair]:
        """Pairs of which only the labels have changed."""
        return [pair for pair in self.plan.kept if pair.entry.name in self.stale]

    def rows(self) -> list[dict[str, Any]]:
        """What a refresh would do to each pair: name, state, pair_id, superseded and problem."""
        found = {
            pair.entry.name: (
                "moved" if pair.entry.name in self.superseded else "new",
                pair.pair_id,
            )
            for pair in self.plan.pairs
        }
        for kept in self.plan.kept:
            name = kept.entry.name
            state = "relabelled" if name in self.stale else "unchanged"
            found[name] = ("moved" if name in self.superseded else state, kept.pair_id)
        rows = [
            {
                "name": name,
                "state": state,
                "pair_id": pair_id,
                "superseded": self.superseded.get(name),
                "problem": None,
            }
            for name, (state, pair_id) in found.items()
        ]
        return rows + [
            {"name": name, "state": "unreadable", "pair_id": None, "superseded": None, "problem": m}
            for name, m in self.plan.failed.items()
        ]


def survey(corpus: Corpus, root: str) -> Survey:
    """Find every model of a corpus, and open those of pairs that the store lacks; writes nothing.

    A pair has moved if the store has it, by name and both sources, at other revisions.

    Args:
        corpus: the pairs.
        root: a store, or where one could be made.

    Raises:
        StoreError: something else is there, or a row of it is damaged.
    """
    store = Store(root)
    with store_errors(root):
        empty = store.files.read(MARKER) is None and store.files.is_empty()
    rows = {} if empty else _rows(Store.open(root))
    plan = make_plan(corpus, rows.keys())
    current = {_key(row): row for row in newest_of(rows)}
    superseded = {
        pair.entry.name: row["pair_id"]
        for pair in plan.pairs
        if (row := current.get(_key_of(pair))) and _moved(pair, row)
    }
    stale = set()
    for kept in plan.kept:
        now = current[_key(rows[kept.pair_id])]["pair_id"]
        if now != kept.pair_id:
            superseded[kept.entry.name] = now
        elif stale_labels(kept.entry, rows[kept.pair_id]):
            stale.add(kept.entry.name)
    return Survey(plan, superseded, frozenset(stale))


def _rows(store: Store) -> dict[str, dict[str, Any]]:
    with store_errors(store.root):
        return each(store.pair_row, sorted(store.committed()))


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["name"], row["base_source"], row["tuned_source"]


def _key_of(pair: PlannedPair) -> tuple[str, ...]:
    return pair.entry.name, pair.base.source, pair.tuned.source


def _moved(pair: PlannedPair, row: Mapping[str, Any]) -> bool:
    """Else only the settings of the corpus have changed."""
    revisions = (row["base_revision"], row["tuned_revision"])
    return (pair.base.revision, pair.tuned.revision) != revisions
