"""A DuckDB session over a store, and the named queries and audits of `queries/`.

Everything asked here can be asked in a plain `duckdb` shell too: this module only finds the files,
binds their parameters as variables and turns DuckDB's errors into messages with a fix.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import duckdb
import pyarrow as pa

from rlsparse_ray.errors import QueryError, StoreError
from rlsparse_ray.storage.buckets import is_object
from rlsparse_ray.storage.duckdb_files import reach_bucket
from rlsparse_ray.store import Store
from rlsparse_ray.tables import check_version

_PARAMETER = re.compile(r"(?P<name>[a-z_]+)(?: = (?P<default>[^\s:]+(?::[^\s:]+)*))?: (?P<help>.+)")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A variable that a query reads; without a default it must be given."""

    name: str
    default: str | None
    help: str


@dataclass(frozen=True, slots=True)
class Query:
    """A file of `queries/`: its header says what it answers, what it can be told, and in `notes`
    what to know of the answer."""

    name: str
    path: Path
    summary: str
    parameters: tuple[Parameter, ...]
    notes: tuple[str, ...]
    text: str


def connect(store: str | Path, threads: int | None = None) -> duckdb.DuckDBPyConnection:
    """An in-memory session with the views and macros of `setup.sql` over `store`.

    The session sees the pairs that are committed now, and none that are committed later.

    Raises:
        StoreError: not a store, one of a newer schema version or without a committed pair, or a
            bucket that does not answer.
    """
    place = Store.open(store).root
    con = duckdb.connect(
        config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    )
    try:
        if threads is not None:
            con.execute("SET threads = $1", [threads])
        if is_object(place):
            reach_bucket(con, place)
        con.execute("SET VARIABLE store = $1", [_literal_glob(place)])
        _check_pairs(con, place)
        con.execute((queries_dir() / "setup.sql").read_text())
    except duckdb.Error as error:
        con.close()
        raise StoreError(f"cannot read the store {place}: {error}") from error
    except StoreError:
        con.close()
        raise
    return con


def queries_dir() -> Path:
    """The folder of the .sql files: inside an installed package, beside it in a checkout."""
    here = Path(__file__).parent
    packaged = here / "queries"
    return packaged if packaged.is_dir() else here.parent / "queries"


@cache
def queries() -> dict[str, Query]:
    """The named queries, in the order of their names."""
    paths = sorted(queries_dir().glob("*.sql"))
    return {p.stem: parse_query(p) for p in paths if p.stem != "setup"}


@cache
def audits() -> dict[str, Query]:
    """The audits: queries without parameters that give no row when all is well."""
    return {p.stem: parse_query(p) for p in sorted((queries_dir() / "audits").glob("*.sql"))}


def parse_query(path: Path) -> Query:
    """Read the header of a query file: a summary, then a block with one parameter a line.

    The blocks of the header are parted by a line `--`. A parameter is `name: help` if it must be
    given and `name = default: help` if it need not.
    """
    text = path.read_text()
    header: list[str] = []
    for line in text.splitlines():
        if not line.startswith("--"):
            break
        header.append(line.removeprefix("--").strip())
    blocks = [block.splitlines() for block in "\n".join(header).split("\n\n")]
    matches = [_PARAMETER.fullmatch(line) for line in (blocks[1] if len(blocks) > 1 else [])]
    parameters = tuple(Parameter(**m.groupdict()) for m in matches if m) if all(matches) else ()
    notes = blocks[2 if parameters else 1 :]
    words = tuple(" ".join(block) for block in notes)
    return Query(path.stem, path, " ".join(blocks[0]), parameters, words, text)


def run_query(
    con: duckdb.DuckDBPyConnection, name: str, params: Mapping[str, str] | None = None
) -> pa.Table:
    """The answer of the query `name`. Parameters of earlier queries are forgotten first.

    Raises:
        QueryError: no such query, a missing or unknown parameter, or what DuckDB has to say.
    """
    query = queries().get(name)
    if query is None:
        raise QueryError(f"no query named {name!r}; {nearest(name, queries())}")
    given = dict(params or {})
    _check_parameters(query, given)
    try:
        for variable in {p.name for q in queries().values() for p in q.parameters}:
            con.execute(f"RESET VARIABLE {variable}")
        for variable, value in given.items():
            con.execute(f"SET VARIABLE {variable} = $1", [value])
    except duckdb.Error as error:
        raise QueryError(f"query {name!r}: {error}") from error
    return _fetch(con, query.text, f"query {name!r}: ")


def run_sql(con: duckdb.DuckDBPyConnection, text: str) -> pa.Table:
    """The answer of any SQL over the views and macros; an empty table for one without an answer.

    Raises:
        QueryError: with DuckDB's message.
    """
    return _fetch(con, text, "")


def run_audits(con: duckdb.DuckDBPyConnection) -> list[tuple[str, pa.Table]]:
    """Every audit with the rows that it found: none where all is well.

    Raises:
        QueryError: an audit cannot run, e.g. on a file that is cut short.
    """
    return [(name, _fetch(con, a.text, f"audit {name!r}: ")) for name, a in audits().items()]


def _fetch(con: duckdb.DuckDBPyConnection, text: str, where: str) -> pa.Table:
    try:
        answer = con.sql(text)
        return pa.table({}) if answer is None else answer.to_arrow_table()
    except duckdb.Error as error:
        raise QueryError(f"{where}{error}") from error


def _check_pairs(con: duckdb.DuckDBPyConnection, place: str) -> None:
    files = "getvariable('store') || '/pairs/*/pairs.parquet'"
    if con.execute(f"SELECT count(*) FROM glob({files})").fetchall() == [(0,)]:
        raise StoreError(f"no committed pairs in {place}: run rlsparse extract")
    newest = con.execute(f"SELECT max(schema_version) FROM read_parquet({files})").fetchall()
    check_version(newest[0][0], f"{place}/pairs")


def _literal_glob(place: str) -> str:
    """The path with the characters that a glob would take as patterns made literal."""
    return re.sub(r"[*?\[]", r"[\g<0>]", place)


def _check_parameters(query: Query, given: Mapping[str, str]) -> None:
    known = {p.name: p for p in query.parameters}
    unknown = sorted(given.keys() - known.keys())
    missing = sorted(n for n, p in known.items() if p.default is None and n not in given)
    if not unknown and not missing:
        return
    what = f"has no parameter {unknown[0]!r}" if unknown else f"needs parameter {missing[0]!r}"
    listed = "".join(f"\n  {_usage(p)}" for p in query.parameters)
    raise QueryError(f"query {query.name!r} {what}; its parameters:{listed or ' none'}")


def _usage(parameter: Parameter) -> str:
    default = "required" if parameter.default is None else f"default {parameter.default}"
    return f"{parameter.name} ({default}): {parameter.help}"


def nearest(name: str, known: Collection[str]) -> str:
    """What to say of a name that is none: the nearest that is one, or all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
