"""Tables as JSON inside a page: column by column, repeated texts once, numbers as short as they are
read.

Six significant digits are more than a page shows and a sixth of what a float takes in full; 20,000
pairs of 200 runs with eight numbers each are 1.2 MB in this way.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

DIGITS = 6
"""Significant digits of a number that is no integer."""


def packed(rows: pa.Table) -> dict[str, Any]:
    """Columns by name: a list of numbers, or the different texts and a list of places in them."""
    return {
        "rows": rows.num_rows,
        "columns": {name: _column(rows[name]) for name in rows.column_names},
    }


def records(rows: pa.Table) -> list[dict[str, Any]]:
    """The same numbers row by row, as Vega takes them."""
    return [{k: plain(v) for k, v in row.items()} for row in rows.to_pylist()]


def script_json(value: Mapping[str, Any]) -> str:
    """JSON that may stand in a <script>: nothing in it ends the element or begins a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # the three characters stand in texts only, where JSON lets them be written so
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def plain(value: Any) -> Any:
    """A value as JSON knows it; NaN and infinities are null, as no axis has a place for them."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def _column(column: pa.ChunkedArray) -> Any:
    values = [plain(value) for value in column.to_pylist()]
    if not any(isinstance(value, str) for value in values):
        return values
    texts = {text: place for place, text in enumerate(dict.fromkeys(values))}
    return {"texts": list(texts), "at": [texts[value] for value in values]}
