"""The numbers on top of the page, each with its interval and with what it is of."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import pyarrow as pa

_DOUBTS = {
    "failed": "failed",
    "suspects": "may be no pair",
    "left-out": "compared in part",
}
_CARDS = {
    "sparsity": ("Mean exact sparsity of a run", "share"),
    "lift_uniform": (
        "Lift of the overlap over chance that knows only densities, as in papers",
        "lift",
    ),
    "lift_magnitude": ("Lift of the overlap over chance that knows bf16 rounding", "lift"),
    "excess_share_magnitude": ("Way from that chance to complete overlap", "share"),
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What the store holds."""

    pairs: int
    runs: int
    weights: int
    """Compared, over all pairs."""


def facts_of(provenance: pa.Table, runs: pa.Table) -> Facts:
    """Count pairs, runs and weights."""
    weights = sum(n or 0 for n in provenance["numel"].to_pylist())
    return Facts(provenance.num_rows, len(set(runs["pair_id"].to_pylist())), weights)


def headline_html(answer: pa.Table, facts: Facts, doubts: Mapping[str, int]) -> str:
    """The cards, one a number, and a line of what is doubtful."""
    rows = {row["measure"]: row for row in answer.to_pylist()}
    cards = [_card(f"{facts.runs:,}", "training runs", _scope(facts))]
    for measure, (label, kind) in _CARDS.items():
        if measure in rows:
            cards.append(_number(rows[measure], label, kind, lead=measure == "lift_magnitude"))
    if "lift_magnitude" not in rows:
        cards.append(_card("–", "Overlap over chance", "not counted yet: see below"))
    return f'<dl class="cards">{"".join(cards)}</dl>{_doubtful(doubts)}'


def _scope(facts: Facts) -> str:
    return f"in {facts.pairs:,} pairs of models; {_short(facts.weights)} weights compared"


def _number(row: Mapping[str, Any], label: str, kind: str, *, lead: bool) -> str:
    of = f"{row['n']:,} {row['over']}"
    if row["low"] is None:
        note = f"{of}; too few for an interval"
    else:
        note = f"95 % interval {_write(row['low'], kind)} to {_write(row['high'], kind)}; {of}"
    return _card(_write(row["value"], kind), label, note, lead=lead)


def _card(value: str, label: str, note: str, *, lead: bool = False) -> str:
    style = ' class="lead"' if lead else ""
    return (
        f"<div{style}><dt>{escape(label)}</dt><dd><b>{escape(value)}</b>"
        f"<small>{escape(note)}</small></dd></div>"
    )


def _doubtful(doubts: Mapping[str, int]) -> str:
    found = [
        f'<a href="#{anchor}">{number:,} {_DOUBTS[anchor]}</a>'
        for anchor, number in doubts.items()
        if number and anchor in _DOUBTS
    ]
    if not found:
        return '<p class="doubts">No pair failed, looks unrelated or was compared in part.</p>'
    return f'<p class="doubts warn">Of the pairs: {", ".join(found)}.</p>'


def _write(value: float, kind: str) -> str:
    return f"{100 * value:.1f}\u202f%" if kind == "share" else f"{value:.3g}×"


def _short(number: int) -> str:
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M")):
        if number >= size:
            return f"{number / size:.3g}\u202f{unit}"
    return f"{number:,}"
