"""The numbers on top of the page, each with its interval and with what it is of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import pyarrow as pa

_DOUBTS = {
    "failed": "failed in the last refresh",
    "suspects": "may be no pair",
    "unsampled": "of unknown lineage",
    "left-out": "compared in part",
    "repeated": "of a tuned model that counts already",
    "uncounted": "with overlaps not counted",
}
_CARDS = {
    "sparsity": ("Mean exact sparsity of a run", "share"),
    "lift_uniform": (
        "Lift of the overlap over chance that knows only densities, as in papers",
        "lift",
    ),
    "lift_magnitude": ("Lift of the overlap over chance that knows rounding", "lift"),
    "excess_share_magnitude": ("Way from that chance to complete overlap", "way"),
}
_CHANCE = {"lift": 1.0, "way": 0.0}
"""What chance alone gives."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the store holds."""

    pairs: int
    weights: int
    """Compared, over all pairs."""
    overlaps: int
    """Of two runs, as counted."""
    refreshes: int


def facts_of(answers: Callable[[str], pa.Table]) -> Facts:
    """Count what the queries find, each asked by its name."""
    pairs = answers("provenance")
    return Facts(
        pairs=pairs.num_rows,
        weights=sum(n or 0 for n in pairs["numel"].to_pylist()),
        overlaps=answers("overlap_excess").num_rows,
        refreshes=answers("refreshes").num_rows,
    )


def headline_html(answer: pa.Table, facts: Facts, doubts: Mapping[str, int]) -> str:
    """The cards, one a number, and a line of what is doubtful."""
    rows = {row["measure"]: row for row in answer.to_pylist()}
    runs = rows["sparsity"]["runs"] if "sparsity" in rows else 0
    cards = [_card(f"{runs:,}", "training runs", _scope(facts))]
    for measure, (label, kind) in _CARDS.items():
        if measure in rows:
            cards.append(_number(rows[measure], label, kind, lead=measure == "lift_magnitude"))
    if "lift_magnitude" not in rows:
        why = _why_no_lift(runs, facts.overlaps, "excess_share_magnitude" in rows)
        cards.append(_card("–", "Overlap over chance", why))
    return f'<dl class="cards">{"".join(cards)}</dl>{_doubtful(doubts, facts.refreshes)}'


def _why_no_lift(runs: int, overlaps: int, one_base: bool) -> str:
    if runs < 2:
        return "there are no two runs to compare"
    if not overlaps:
        return "not counted yet: rlsparse overlap does"
    if not one_base:
        return "no two of the runs that were counted have the same base"
    return "no two runs on one base share a changed weight"


def _scope(facts: Facts) -> str:
    return f"in {facts.pairs:,} pairs of models; {_short(facts.weights)} weights compared"


def _number(row: Mapping[str, Any], label: str, kind: str, *, lead: bool) -> str:
    notes = [f"{row['n']:,} {row['over']}"]
    if row["low"] is None:
        notes.append("too few for an interval")
    else:
        between = f"95 % interval {_write(row['low'], kind)} to {_write(row['high'], kind)}"
        chance = _CHANCE.get(kind)
        if chance is not None and row["low"] <= chance <= row["high"]:
            none = "1×" if kind == "lift" else "0\u202f%"
            between += f", which includes {none}: that chance may explain all of it"
        notes.insert(0, between)
    if row["pairs_without"]:
        why = "share nothing" if kind == "lift" else "cannot share more than by chance"
        notes.append(f"{row['pairs_without']:,} that {why} are left out")
    if row["sample_fraction"] is not None and row["sample_fraction"] < 1:
        share = f"{100 * row['sample_fraction']:.3g}\u202f%"
        notes.append(f"estimated from a sample of {share} of the blocks")
    return _card(_write(row["value"], kind), label, "; ".join(notes), lead=lead)


def _card(value: str, label: str, note: str, *, lead: bool = False) -> str:
    style = ' class="lead"' if lead else ""
    return (
        f"<div{style}><dt>{escape(label)}</dt><dd><b>{escape(value)}</b>"
        f"<small>{escape(note)}</small></dd></div>"
    )


def _doubtful(doubts: Mapping[str, int], refreshes: int) -> str:
    found = [
        f'<a href="#{anchor}">{number:,} {_DOUBTS[anchor]}</a>'
        for anchor, number in doubts.items()
        if number and anchor in _DOUBTS
    ]
    # only a refresh keeps a record of what failed
    record = "" if refreshes else " Whether any failed is not on record: no refresh ran."
    if not found:
        known = "No failure in the last refresh, and n" if refreshes else "N"
        return (
            f'<p class="doubts">{known}o pair looks unrelated or was compared in part.{record}</p>'
        )
    return f'<p class="doubts warn">Of the pairs: {", ".join(found)}.{record}</p>'


def _write(value: float, kind: str) -> str:
    if kind != "lift":
        return f"{100 * value:.1f}\u202f%"
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}×"


def _short(number: int) -> str:
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M")):
        if number >= size:
            return f"{number / size:.3g}\u202f{unit}"
    return f"{number:,}"
