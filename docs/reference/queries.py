"""docs/queries.md: every named query and audit, from the headers of their files."""

from reference.markdown import escaped, table
from rlsparse_ray import sql
from rlsparse_ray.sql import Parameter, Query

_HEAD = """\
# Queries

Made by `docs/generate.py` from the headers of `queries/*.sql`: change those, not this page.

Each is a file of plain SQL. `rlsparse query NAME --store STORE -p parameter=value` runs it,
`store.query("NAME", parameter=value)` gives a DuckDB relation in Python, and any `duckdb` shell
reads the file after `.read queries/setup.sql` and a `SET VARIABLE` for each parameter. With
`--format csv`, `json` or `parquet` the rows go to other tools. [cookbook.md](cookbook.md) has
questions beyond these, [tables.md](tables.md) the columns that they stand on.
"""
_AUDITS = """\
## Audits

`rlsparse verify` and `rlsparse refresh` run them. Each gives no row when all is well, and else one
row a finding: `check`, `pair_id`, `problem`.
"""


def page() -> str:
    """The whole page."""
    found = sql.queries()
    index = table(
        ("query", "what it answers"),
        [(f"[`{n}`](#{n})", escaped(q.summary)) for n, q in found.items()],
    )
    audits = table(
        ("audit", "what it finds"),
        [(f"`{n}`", escaped(q.summary)) for n, q in sql.audits().items()],
    )
    sections = [_section(query) for query in found.values()]
    return "\n".join([_HEAD, index, *sections, _AUDITS, audits])


def _section(query: Query) -> str:
    parts = [f"## {query.name}", escaped(query.summary)]
    if query.parameters:
        head = ("parameter", "default", "meaning")
        parts.append(table(head, map(_row, query.parameters)).rstrip())
    parts += [escaped(note) for note in query.notes]
    return "\n\n".join(parts) + "\n"


def _row(parameter: Parameter) -> tuple[str, str, str]:
    default = "must be given" if parameter.default is None else f"`{parameter.default}`"
    return f"`{parameter.name}`", default, escaped(parameter.help)
