"""The baseline that no table holds: shift, counted from the masks for figures of overlaps."""

import duckdb
import pyarrow as pa

from rlsparse_ray.population.overlap_units import Pair
from rlsparse_ray.population.shift import count_shift
from rlsparse_ray.store import Store

_BITS = 4_000_000_000
"""Mask bits that are read for a page: 0.2 to 0.4 ns each on one core, and so a second or two."""
_COUNTING = 1 / 16
"""What it costs to count a weight of two runs, all rotations together, in bits read: 0.01 ns. In
SQL that is 1.7 ns, which leaves the switch of most pages without shift."""


def with_shift(answer: pa.Table, con: duckdb.DuckDBPyConnection, store: str) -> pa.Table:
    """`overlap_excess` with lift_shift and excess_share_shift: null where it was not counted."""
    found = count_shift(Store.open(store), affordable(answer, _BITS))
    pairs = zip(answer["pair_a"].to_pylist(), answer["pair_b"].to_pylist(), strict=True)
    shifts = [found.get(pair) for pair in pairs]
    columns = {
        "lift_shift": [None if s is None else s.lift for s in shifts],
        "excess_share_shift": [None if s is None else s.excess_share for s in shifts],
    }
    for name, values in columns.items():
        answer = answer.append_column(name, pa.array(values, pa.float64()))
    return answer


def affordable(answer: pa.Table, bits: float) -> list[Pair]:
    """The pairs of runs that so many bits are enough for: those of the smallest models, in the
    order of the answer. A mask is read once however many others it is held against."""
    read: set[str] = set()
    found: list[Pair] = []
    rows = answer.select(["numel", "pair_a", "pair_b"]).to_pylist()
    for row in sorted(rows, key=lambda r: r["numel"]):
        pair = (row["pair_a"], row["pair_b"])
        bits -= row["numel"] * (len({*pair} - read) + _COUNTING)
        if bits < 0:
            break
        read.update(pair)
        found.append(pair)
    return found
