"""The tables of a store: one explicit Arrow schema each, with a sentence on every column.

These names are a contract: SQL that users keep depends on them. `pair_id` (and `criterion` of
`masks`) are Hive partitions, so they stand in the path and not in the files.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from rlsparse_ray.errors import StoreError
from rlsparse_ray.tables.columns import PAIR_VERSION, PART, SCHEMA_VERSION, VERSION_KEY
from rlsparse_ray.tables.pairs import COUNTS, MARGINS, MASKS, PAIRS, STEPS, STRATA, TENSORS
from rlsparse_ray.tables.passes import NAMED_MASKS, OVERLAPS, REFRESHES, SPECTRA

__all__ = [
    "COUNTS",
    "MARGINS",
    "MASKS",
    "NAMED_MASKS",
    "NAMED_SCHEMAS",
    "OVERLAPS",
    "PAIRS",
    "PAIR_VERSION",
    "PART",
    "REFRESHES",
    "SCHEMAS",
    "SCHEMA_VERSION",
    "SPECTRA",
    "STEPS",
    "STRATA",
    "TENSORS",
    "check_file",
    "check_version",
    "to_table",
]

SCHEMAS: Mapping[str, pa.Schema] = {
    "pairs": PAIRS,
    "tensors": TENSORS,
    "counts": COUNTS,
    "masks": MASKS,
    "strata": STRATA,
    "margins": MARGINS,
    "steps": STEPS,
}
"""The tables that have one file, or one folder, a pair."""

NAMED_SCHEMAS: Mapping[str, pa.Schema] = {"named_masks": NAMED_MASKS, "named_mask_bits": MASKS}
"""Tables of masks that were made from those of pairs; the Hive partition `mask` is their name."""

_ALL: Mapping[str, pa.Schema] = {
    **SCHEMAS,
    **NAMED_SCHEMAS,
    "overlaps": OVERLAPS,
    "spectra": SPECTRA,
    "refreshes": REFRESHES,
}


def to_table(name: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows (dicts with every column, no others) as an Arrow table of the schema `name`.

    Raises:
        StoreError: a row lacks a column or has one that the schema does not know.
    """
    schema = _ALL[name]
    columns: dict[str, list[Any]] = {field.name: [] for field in schema}
    for row in rows:
        if row.keys() != columns.keys():
            odd = sorted(set(row) ^ set(columns))
            raise StoreError(f"a row for table {name!r} has missing or unknown columns: {odd}")
        for column, value in row.items():
            columns[column].append(value)
    return pa.table({f.name: pa.array(columns[f.name], type=f.type) for f in schema}, schema=schema)


def check_file(schema: pa.Schema, place: str) -> None:
    """Refuse a file that a newer rlsparse_ray wrote, or that is none of ours.

    Raises:
        StoreError: naming the file and the fix.
    """
    raw = (schema.metadata or {}).get(VERSION_KEY)
    check_version(int(raw) if raw else None, place)


def check_version(version: object, place: str) -> None:
    """Refuse a schema version that this software does not know.

    Raises:
        StoreError: naming the place and the fix.
    """
    if not isinstance(version, int):
        raise StoreError(f"{place}: not written by rlsparse_ray (it has no schema version)")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{place}: schema version {version}, but this rlsparse_ray reads up to "
            f"{SCHEMA_VERSION}: pip install --upgrade rlsparse-ray"
        )
