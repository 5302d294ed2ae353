"""What a store says about the runs of a study: the rows that the claims are judged by."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import duckdb

from rlsparse_ray import sql
from rlsparse_ray.experiments.runs import Run
from rlsparse_ray.reproduce.layout import IN_FP32, Layout
from rlsparse_ray.reproduce.study import Study, Variant

Row = Mapping[str, Any]

_NAMES = ("name", "name_a", "name_b", "name_full", "trajectory")
_PAIRS = ("pair_id", "pair_a", "pair_b")


@dataclass(frozen=True, slots=True)
class Evidence:
    """The answers of the queries, as rows; each is named after its query."""

    study: Study
    run_results: tuple[Row, ...] = ()
    update_spread: tuple[Row, ...] = ()
    overlap_excess: tuple[Row, ...] = ()
    masked_runs: tuple[Row, ...] = ()
    trajectory: tuple[Row, ...] = ()
    trajectory_summary: tuple[Row, ...] = ()
    rank_by_pair: tuple[Row, ...] = ()
    unmoved: frozenset[str] = frozenset()
    """Variants with the weights of their main run, bit by bit: what they change never acted."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Runs that could not be made or measured, and why."""

    def result(self, name: str) -> Row | None:
        """What a run gave; None if it is not in the store."""
        return next((row for row in self.run_results if row["name"] == name), None)

    def run(self, name: str) -> Run:
        """How a run of all weights was trained.

        Raises:
            KeyError: the study has none of that name.
        """
        return {run.name: run for run in self.study.full}[name]

    def learned(self, name: str) -> bool:
        """Whether a run counts."""
        row = self.result(name)
        return row is not None and bool(row["learned"])

    def main(self, *algorithms: str) -> list[Row]:
        """The main runs that learned, of some algorithms or all."""
        return [
            row
            for row in self.run_results
            if row["study"] == "main"
            and row["learned"]
            and (not algorithms or row["algorithm"] in algorithms)
        ]

    def main_rl(self) -> list[Row]:
        """The main runs that learned, of every algorithm but SFT."""
        return [row for row in self.main() if row["algorithm"] != "SFT"]

    def idle(self) -> list[Row]:
        """The runs of all weights that learned nothing: they do not count."""
        kinds = ("main", "variant")
        return [r for r in self.run_results if r["study"] in kinds and not r["learned"]]

    def compared(self, varies: str) -> list[tuple[Variant, Row, Row]]:
        """The variants of a field and their main runs, where both learned."""
        return [one for one in self.tried(varies) if one[1]["learned"] and one[2]["learned"]]

    def tried(self, varies: str) -> list[tuple[Variant, Row, Row]]:
        """The variants of a field and their main runs, whether they learned or not."""
        found = []
        for variant in self.study.variants:
            one, usual = self.result(variant.name), self.result(variant.reference)
            if variant.varies == varies and one is not None and usual is not None:
                found.append((variant, one, usual))
        return found


def gather(
    layout: Layout,
    study: Study,
    made: Collection[str],
    pairs: Collection[str],
    failed: Mapping[str, str],
) -> Evidence:
    """Ask the store everything, and the models whether a variant is its main run again.

    Args:
        layout: where they are.
        study: what was asked for.
        made: names of the runs that are made; only they count.
        pairs: ids of their pairs. A store keeps what runs of these names were before.
        failed: names of the others, and why.

    Raises:
        StoreError: there is no store, or nothing in it.
    """
    ours = _Ours({*made, *(f"{name}{IN_FP32}" for name in made)}, pairs)
    with sql.connect(layout.store) as con:
        return Evidence(
            study,
            run_results=_ask(con, "run_results", ours, margin=str(study.scale.margin)),
            update_spread=_ask(con, "update_spread", ours),
            overlap_excess=_ask(con, "overlap_excess", ours),
            masked_runs=_ask(con, "masked_runs", ours),
            trajectory=_ask(con, "trajectory", ours),
            trajectory_summary=_ask(con, "trajectory_summary", ours),
            rank_by_pair=_ask(con, "rank_by_pair", ours),
            unmoved=find_unmoved(layout, study) & frozenset(made),
            failed=dict(failed),
        )


def find_unmoved(layout: Layout, study: Study) -> frozenset[str]:
    """The variants that have the weights of their main run, bit by bit."""
    return frozenset(
        variant.name
        for variant in study.variants
        if layout.same_weights(variant.name, variant.reference)
    )


@dataclass(frozen=True, slots=True)
class _Ours:
    """What a row may name to be about runs of this study as they are now."""

    names: Collection[str]
    pairs: Collection[str]

    def has(self, row: Row) -> bool:
        return all(row[key] in self.names for key in _NAMES if key in row) and all(
            row[key] in self.pairs for key in _PAIRS if key in row
        )


def _ask(
    con: duckdb.DuckDBPyConnection, query: str, ours: _Ours, **parameters: str
) -> tuple[Row, ...]:
    return tuple(row for row in sql.run_query(con, query, parameters).to_pylist() if ours.has(row))
