"""The .sql files need nothing of ours: a bare DuckDB connection and `setup.sql` will do."""

import re
import shutil

import duckdb
import pytest

from rlsparse_ray import sql, tables

FILES = {**sql.queries(), **sql.audits()}
SETUP = sql.queries_dir() / "setup.sql"


@pytest.fixture
def shell(store):
    con = duckdb.connect()
    con.execute("SET VARIABLE store = $1", [str(store.place)])
    con.execute(SETUP.read_text())
    return con


@pytest.mark.parametrize("name", FILES)
def test_file_runs_unchanged(shell, name):
    given = {"a": "grpo-seed0", "b": "dpo"}
    for parameter in FILES[name].parameters:
        if parameter.default is None:
            shell.execute(f"SET VARIABLE {parameter.name} = '{given[parameter.name]}'")
    rows = shell.sql(FILES[name].text).to_arrow_table()
    # the store has no trajectory, no run that says its reward, no three runs of one base, and
    # nothing failed in its last refresh; every overlap is counted, and every tuned model there once
    empty = ("trajectory", "trajectory_summary", "temporal_locality", "run_results", "masked_runs")
    empty += ("consensus_groups", "failed_pairs", "repeated_runs", "uncounted_overlaps")
    assert bool(rows.num_rows) == (name in sql.queries() and name not in empty)


@pytest.mark.parametrize("name", FILES)
def test_header_agrees_with_the_sql(name):
    query = FILES[name]
    body = "\n".join(line for line in query.text.splitlines() if not line.startswith("--"))
    assert query.summary.endswith((".", "?"))
    assert set(re.findall(r"getvariable\('(\w+)'\)", body)) - {"store"} == {
        p.name for p in query.parameters
    }
    for p in query.parameters:
        defaults = set(re.findall(rf"coalesce\(getvariable\('{p.name}'\), '([^']*)'\)", body))
        if p.default is None:
            assert f"coalesce(getvariable('{p.name}'), error('SET VARIABLE {p.name} = ''" in body
        assert defaults == ({p.default} if p.default is not None else set())


@pytest.mark.parametrize(
    "name", [q.name for q in FILES.values() if any(p.default is None for p in q.parameters)]
)
def test_missing_parameter_says_what_to_set(shell, name):
    with pytest.raises(duckdb.Error, match=r"SET VARIABLE [ab] = '"):
        shell.execute(FILES[name].text)


def test_views_have_the_columns_of_the_schemas(shell):
    partitions = {"masks": ["pair_id", "criterion"]}
    for table, schema in tables.SCHEMAS.items():
        described = shell.execute(f"DESCRIBE {table}").fetchall()
        assert [r[0] for r in described] == partitions.get(table, ["pair_id"]) + schema.names


def test_column_comments_are_the_docs_of_the_schemas():
    text = re.sub(r"\n +-- ", " ", SETUP.read_text())
    for schema in tables.SCHEMAS.values():
        for column in schema:
            doc = re.escape(column.metadata[b"doc"].decode())
            assert re.search(rf"\n    {column.name},? +-- {doc}\n", text), column.name


def test_overlaps_have_their_schema_and_two_names(shell):
    described = shell.execute('DESCRIBE "overlaps"').fetchall()
    assert described == shell.execute("DESCRIBE pair_overlaps").fetchall()
    assert [r[0] for r in described] == ["pair_b", *tables.OVERLAPS.names]
    text = re.sub(r"\n +-- ", " ", SETUP.read_text())
    for column in tables.OVERLAPS:
        doc = re.escape(column.metadata[b"doc"].decode())
        assert re.search(rf"\n    {column.name},? +-- {doc}\n", text), column.name


def test_a_store_without_overlaps_has_the_view(store, tmp_path):
    place = tmp_path / "store"
    shutil.copytree(store.place, place, ignore=shutil.ignore_patterns("overlaps"))
    con = duckdb.connect()
    con.execute("SET VARIABLE store = $1", [str(place)])
    con.execute(SETUP.read_text())
    described = [r[:2] for r in con.execute('DESCRIBE "overlaps"').fetchall()]
    assert con.execute("FROM pair_overlaps").fetchall() == []
    con.execute("SET VARIABLE store = $1", [str(store.place)])
    con.execute(SETUP.read_text())
    assert [r[:2] for r in con.execute('DESCRIBE "overlaps"').fetchall()] == described


def test_setup_can_be_read_twice_and_writes_nothing(shell, store):
    before = sorted(store.place.rglob("*"))
    shell.execute(SETUP.read_text())
    assert shell.execute("SELECT count(*) FROM pairs").fetchall() == [(4,)]
    assert sorted(store.place.rglob("*")) == before


@pytest.mark.parametrize("view", tables.SCHEMAS)
def test_views_show_current_pairs_only(shell, view):
    ids = {i for (i,) in shell.execute(f"SELECT DISTINCT pair_id FROM {view}").fetchall()}
    assert ids == {"grpo-seed0-0", "grpo-seed1-0", "dpo-0", "other-0"}


def test_superseded_pairs_stay_in_all_pairs(shell):
    ids = {i for (i,) in shell.execute("SELECT pair_id FROM all_pairs").fetchall()}
    assert ids == {"grpo-seed0-0", "grpo-seed0-1", "grpo-seed1-0", "dpo-0", "other-0"}


def test_overlap_reads_the_masks_of_its_two_pairs_only(store, tmp_path):
    """The masks of all others are not Parquet here, and the overlap does not notice."""
    place = tmp_path / "store"
    shutil.copytree(store.place, place)
    for path in place.glob("masks/*/*/*.parquet"):
        wanted = {"pair_id=dpo-0", "pair_id=grpo-seed1-0", "criterion=exact"}
        if len(wanted.intersection(path.parts)) < 2:
            path.write_bytes(b"not Parquet")
    con = duckdb.connect()
    con.execute("SET VARIABLE store = $1", [str(place)])
    con.execute(SETUP.read_text())
    assert len(con.execute("FROM overlap_total('dpo', 'grpo-seed1')").fetchall()) == 1
