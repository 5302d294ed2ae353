"""docs/tables.md: every table and column, and the views and macros that SQL starts from."""

import pyarrow as pa

from reference.markdown import escaped, table
from reference.setup_sql import Definition, definitions
from rlsparse_ray.tables import NAMED_SCHEMAS, OVERLAPS, REFRESHES, SCHEMA_VERSION, SCHEMAS, SPECTRA

_TABLES: dict[str, pa.Schema] = {
    **SCHEMAS,
    "overlaps": OVERLAPS,
    "spectra": SPECTRA,
    **NAMED_SCHEMAS,
    "refreshes": REFRESHES,
}
_PARTITIONS = {
    "masks": ("pair_id", "criterion"),
    "overlaps": ("pair_b",),
    "named_masks": ("mask",),
    "named_mask_bits": ("mask",),
    "refreshes": ("refresh",),
}
"""The columns that stand in the path and not in the files; `pair_id` where a table is not here."""
_VIEWS = {"pairs": "all_pairs", "overlaps": "pair_overlaps"}
"""The view that shows every row of a table, where it has another name."""

_STARTING_POINTS = {
    "Views": (
        *("pairs", "runs", "training_runs", "trajectory_pairs", "tensor_counts"),
        "spectra_tensors",
    ),
    "Formulas": (
        *("density", "sparsity", "lift", "expected_uniform", "jaccard", "phi"),
        *("weighted_mean", "cells"),
    ),
    "Macros": (
        *(
            "pair_id_of",
            "overlap_total",
            "overlap",
            "overlap_lifts",
            "overlap_baselines",
            "overlap_summary",
        ),
        *("overlap_of_runs", "trajectory_sets", "selected_pairs", "selected_runs"),
    ),
}
"""What people ask from; the rest of setup.sql is made for these."""

_HEAD = f"""\
# Tables and columns

Made by `docs/generate.py` from the Arrow schemas (version {SCHEMA_VERSION}) and the comments of
`queries/setup.sql`: change those, not this page.

A store is a folder, or a prefix of a bucket, of Parquet files. Columns marked *path* are Hive
partitions: they stand in the names of folders, and DuckDB, Polars and Spark make columns of them.
Tensors of two pairs are joined on `tensor_key`, never on the name alone: it holds the compared
shape too. Density is changed / all, sparsity is 1 - density.

Through `rlsparse sql`, `open_store` and `.read queries/setup.sql` the tables are views of the same
names that show committed, current pairs only. OVERLAPS is a word of SQL: that view is called
`pair_overlaps`.
"""


def page() -> str:
    """The whole page."""
    known = definitions()
    parts = [_HEAD]
    for name, schema in _TABLES.items():
        parts.append(_table(name, schema, known[_VIEWS.get(name, name)]))
    parts.append("## Where SQL starts\n\nWhat `queries/setup.sql` makes of the tables.\n")
    for title, names in _STARTING_POINTS.items():
        write = _formulas if title == "Formulas" else _comments
        parts.append(f"### {title}\n\n{write([known[name] for name in names])}")
    return "\n".join(parts)


def _table(name: str, schema: pa.Schema, view: Definition) -> str:
    in_path = _PARTITIONS.get(name, ("pair_id",))
    rows = [(f"`{column}`", "text, *path*", escaped(view.columns[column])) for column in in_path]
    for field in schema:
        doc = field.metadata[b"doc"].decode()
        rows.append((f"`{field.name}`", escaped(_type(field.type)), escaped(doc)))
    folders = "".join(f"{column}=.../" for column in in_path)
    note = f"Files: `{name}/{folders}*.parquet`"
    about = f"{_comment(view)}\n\n" if view.comment else ""
    return f"## {name}\n\n{about}{note}\n\n{table(('column', 'type', 'meaning'), rows)}"


def _formulas(macros: list[Definition]) -> str:
    rows = [(f"`{m.call}`", f"`{m.formula}`", _comment(m)) for m in macros]
    return table(("call", "formula", "what it is"), rows)


def _comments(found: list[Definition]) -> str:
    """Their comments as they stand: some have lists and formulas that want their lines."""
    return "\n".join(f"`{d.call}`\n\n```text\n{d.comment}\n```\n" for d in found)


def _comment(definition: Definition) -> str:
    return escaped(" ".join(definition.comment.split()))


_TYPES = {"string": "text", "bool": "boolean", "double": "float64", "binary": "bytes"}


def _type(kind: pa.DataType) -> str:
    """An Arrow type in the words of this page."""
    if pa.types.is_dictionary(kind):
        return _type(kind.value_type)
    if pa.types.is_list(kind):
        return f"list of {_type(kind.value_type)}"
    if pa.types.is_map(kind):
        return f"map of {_type(kind.key_type)} to {_type(kind.item_type)}"
    if pa.types.is_struct(kind):
        return f"({', '.join(f'{f.name} {_type(f.type)}' for f in kind)})"
    if pa.types.is_timestamp(kind):
        return "time in UTC"
    return _TYPES.get(str(kind), str(kind))
