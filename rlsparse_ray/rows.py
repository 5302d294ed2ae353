"""From scans to rows of the small tables."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from rlsparse_ray.align import Aligned
from rlsparse_ray.compare import BaseScan, Criterion, PairScan
from rlsparse_ray.store import SMALL_TABLES
from rlsparse_ray.tables import to_table
from rlsparse_ray.weights import TensorSpec

Row = dict[str, Any]


@dataclass(slots=True)
class Rows:
    """Rows of one pair, growing tensor by tensor."""

    _rows: dict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))

    def add_compared(
        self, row: Aligned, base: BaseScan, pair: PairScan, base_xxh3: str, tuned_xxh3: str
    ) -> None:
        """Everything that was measured of one tensor."""
        facts = _measured(base, pair) | {"base_xxh3": base_xxh3, "tuned_xxh3": tuned_xxh3}
        self._rows["tensors"].append(_tensor(row, _status(row, facts), facts))
        key: Row = {"tensor": row.tensor, "tensor_key": row.tensor_key}
        for criterion in pair.request.counted:
            facts = {"numel": row.numel, "changed": pair.changed_under(criterion)}
            self._rows["counts"].append(key | {"criterion": str(criterion)} | facts)
        for criterion in pair.request.masked:
            self._add_masked(key | {"criterion": str(criterion)}, base, pair, criterion)
        for step in pair.step_buckets():
            moved = {"ulp_low": step.low, "ulp_high": step.high, "numel": step.numel}
            self._rows["steps"].append(key | moved)

    def _add_masked(self, key: Row, base: BaseScan, pair: PairScan, criterion: Criterion) -> None:
        for s in pair.strata(base, criterion):
            facts = {"exponent": s.exponent, "numel": s.numel, "changed": s.changed}
            self._rows["strata"].append(key | facts)
        margins = pair.margins_under(criterion)
        if margins is not None:
            rows, columns = margins
            arrays = {"changed_per_row": rows, "changed_per_column": columns}
            self._rows["margins"].append(key | arrays)

    def add_uncompared(self, row: Aligned) -> None:
        """A tensor that is only accounted for."""
        self._rows["tensors"].append(_tensor(row, row.status, _NOTHING))

    def tables(self) -> dict[str, pa.Table]:
        """The small tables, in the order in which tensors were added."""
        return {name: to_table(name, self._rows[name]) for name in SMALL_TABLES}


_MEASURED = (
    "base_l2",
    "update_l2",
    "update_max",
    "base_nan",
    "base_inf",
    "tuned_nan",
    "tuned_inf",
    "base_xxh3",
    "tuned_xxh3",
)
_NOTHING: Row = dict.fromkeys(_MEASURED)


def _measured(base: BaseScan, pair: PairScan) -> Row:
    return {
        "base_l2": base.l2,
        "update_l2": pair.l2,
        "update_max": pair.largest,
        "base_nan": base.nan,
        "base_inf": base.inf,
        "tuned_nan": base.nan + pair.nan,
        "tuned_inf": base.inf + pair.inf,
    }


def _status(row: Aligned, facts: Row) -> str:
    same = row.base is not None and row.tuned is not None and row.base.dtype == row.tuned.dtype
    if same and row.status == "compared" and facts["base_xxh3"] == facts["tuned_xxh3"]:
        return "identical"
    return row.status


def _tensor(row: Aligned, status: str, facts: Row) -> Row:
    return {
        "tensor": row.tensor,
        "tensor_key": row.tensor_key,
        "base_name": _name(row.base),
        "tuned_name": _name(row.tuned),
        "layer": row.layer,
        "module": row.module,
        "kind": row.kind,
        "shape": row.shape,
        "base_shape": _of(row.base, "shape"),
        "tuned_shape": _of(row.tuned, "shape"),
        "base_dtype": _of(row.base, "dtype"),
        "tuned_dtype": _of(row.tuned, "dtype"),
        "base_encoding": _of(row.base, "encoding") or None,
        "tuned_encoding": _of(row.tuned, "encoding") or None,
        "compare_dtype": row.compare_dtype,
        "status": status,
        "numel": row.numel,
        **facts,
    }


def _of(spec: TensorSpec | None, attribute: str) -> Any:
    return None if spec is None else getattr(spec, attribute)


def _name(spec: TensorSpec | None) -> str | None:
    """As stored: of a part with its rows, of a tensor that is made the first one it is made of."""
    if spec is None:
        return None
    return spec.stored_name if spec.inputs else spec.name
