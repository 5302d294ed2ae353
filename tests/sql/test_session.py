"""The session: what it refuses and what it says."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlsparse_ray import sql, tables
from rlsparse_ray.errors import QueryError, StoreError


def test_a_folder_that_is_no_store(tmp_path):
    with pytest.raises(StoreError, match=r"no store there.*rlsparse extract CORPUS --store"):
        sql.connect(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("[]", "not written by rlsparse_ray"),
        ('{"format": "parquet"}', "not written by rlsparse_ray"),
        ('{"format": "rlsparse_ray"}', "no schema version"),
        ('{"format": "rlsparse_ray", "schema_version": 9}', "reads up to 3: pip install --upgrade"),
    ],
)
def test_a_store_json_of_another_kind(tmp_path, text, message):
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(StoreError, match=message):
        sql.connect(tmp_path)


def test_a_store_without_pairs(tmp_path):
    facts = {"format": "rlsparse_ray", "schema_version": tables.SCHEMA_VERSION}
    (tmp_path / "store.json").write_text(json.dumps(facts))
    with pytest.raises(StoreError, match=r"no committed pairs in .*: run rlsparse extract"):
        sql.connect(str(tmp_path))


def test_a_pair_of_a_newer_schema_version(damaged):
    def raise_version(rows):
        return [r | {"schema_version": tables.SCHEMA_VERSION + 1} for r in rows]

    damaged.edit("pairs/pair_id=dpo-0/pairs.parquet", raise_version)
    with pytest.raises(StoreError, match=r"schema version 4, but .* pip install --upgrade"):
        sql.connect(damaged.place)


def without_new_columns(path):
    """As a version 1 store has it."""
    table = pq.ParquetFile(path).read()
    if "schema_version" in table.column_names:
        place = table.schema.get_field_index("schema_version")
        old = pa.array([1] * len(table), pa.int32())
        table = table.set_column(place, table.schema.field(place), old)
    table = table.replace_schema_metadata({b"rlsparse_schema_version": b"1"})
    added = {"lineage_score", "base_encoding", "tuned_encoding"} & set(table.column_names)
    pq.write_table(table.drop_columns(sorted(added)), path, compression="zstd")


@pytest.mark.parametrize("which", ["*", "dpo-0", "grpo-seed0-0"])
def test_pairs_of_version_1_can_still_be_asked(damaged, con, which):
    """All of a store, or some of it: whether the first file of a view is an old or a new one."""
    for table in ("pairs", "tensors"):
        found = list((damaged.place / table).glob(f"pair_id={which}/*.parquet"))
        assert found
        for path in found:
            without_new_columns(path)
    old = sql.connect(damaged.place)
    for question in (
        "FROM tensors ORDER BY ALL",
        "SELECT * EXCLUDE schema_version FROM pairs ORDER BY pair_id",
    ):
        assert sql.run_sql(old, question).equals(sql.run_sql(con, question))
    assert sql.run_query(old, "overlap_matrix").num_rows == 3


def test_a_file_that_is_no_parquet(damaged):
    (damaged.place / "pairs/pair_id=dpo-0/pairs.parquet").write_bytes(b"PAR1, or so it seems")
    with pytest.raises(StoreError, match=r"cannot read the store .*pairs.parquet"):
        sql.connect(damaged.place)


def test_a_place_with_the_characters_of_globs(store, tmp_path):
    place = tmp_path / "run[1]*?" / "env=prod"
    shutil.copytree(store.place, place)
    con = sql.connect(place)
    assert sql.run_query(con, "overlap_matrix").num_rows == 3
    assert [n for n, rows in sql.run_audits(con) if rows.num_rows] == []


def test_a_session_sees_what_was_committed_when_it_began(damaged):
    con = sql.connect(damaged.place, threads=1)
    before = sql.run_sql(con, "FROM tensors").num_rows
    for table in tables.SCHEMAS:
        source = damaged.place / table / "pair_id=other-0"
        shutil.copytree(source, damaged.place / table / "pair_id=late")
    damaged.edit(
        "pairs/pair_id=late/pairs.parquet", lambda rows: [r | {"name": "late"} for r in rows]
    )
    assert sql.run_sql(con, "FROM tensors").num_rows == before
    assert sql.run_sql(con, "SELECT current_setting('threads') AS n").to_pylist() == [{"n": 1}]
    assert sql.run_sql(sql.connect(damaged.place), "FROM tensors").num_rows == before + 1


def test_parameters_do_not_leak(con):
    sql.run_query(con, "sparsity_by_kind", {"pair": "dpo", "criterion": "abs:1e-5"})
    rows = sql.run_query(con, "sparsity_by_pair").to_pylist()
    assert {r["criterion"] for r in rows} == {"exact"}
    assert len(sql.run_query(con, "step_sizes").to_pylist()) > 8
    sql.run_query(con, "overlap", {"a": "dpo", "b": "grpo-seed0"})
    with pytest.raises(QueryError, match="needs parameter 'a'"):
        sql.run_query(con, "overlap", {"b": "dpo"})


def test_values_are_bound(con):
    with pytest.raises(QueryError, match="no pair named x'; DROP VIEW pairs; --; FROM pairs"):
        sql.run_query(con, "sparsity_by_kind", {"pair": "x'; DROP VIEW pairs; --"})


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("sparsity_by_pear", {}, "no query named 'sparsity_by_pear'; did you mean 'sparsity_by_pa"),
        ("zzz", {}, "no query named 'zzz'; there are: .*, overlap, "),
        ("setup", {}, "no query named 'setup'"),
        ("overlap", {"a": "dpo"}, "needs parameter 'b'; its parameters:\n  a [(]required[)]: name"),
        ("overlap_matrix", {"pair": "x"}, r"no parameter 'pair'; .*\n  criterion \(default exact"),
        ("overlap_matrix", {"store": "x"}, "has no parameter 'store'"),
        ("overlap", {"a": "dpo", "b": "x"}, "no pair named x; FROM pairs lists them"),
        ("overlap", {"a": "dpo", "b": "dpo", "criterion": "abs:1e-5"}, "dpo keeps no masks of cri"),
        ("overlap_matrix", {"criterion": "abs:9"}, "no pair counts criterion abs:9; counted are: "),
        *(
            (name, {"criterion": "abs:1e-4"}, "no pair keeps masks of abs:1e-4, only of .*exact")
            for name in ("overlap_lifts", "overlap_matrix", "consensus_core", "trajectory_summary")
        ),
        ("sparsity_by_pair", {"criterion": "abs:9"}, "no pair counts criterion abs:9"),
        ("tolerance_sweep", {"pair": "x"}, "no pair named x"),
    ],
)
def test_what_a_query_refuses(con, name, params, message):
    with pytest.raises(QueryError, match=message):
        sql.run_query(con, name, params)


def test_an_ambiguous_name(damaged):
    commit = "pairs/pair_id=grpo-seed0-1/pairs.parquet"
    damaged.edit(commit, lambda rows: [r | {"base_source": "./elsewhere"} for r in rows])
    con = sql.connect(damaged.place)
    with pytest.raises(QueryError, match="ambiguous: ids grpo-seed0-0, grpo-seed0-1"):
        sql.run_sql(con, "FROM overlap_total('grpo-seed0', 'dpo')")
    assert sql.run_sql(con, "FROM overlap_total('grpo-seed0-1', 'dpo')").num_rows == 1


def test_a_superseded_pair_has_no_name(con):
    with pytest.raises(QueryError, match="no pair named grpo-seed0-1"):
        sql.run_sql(con, "SELECT pair_id_of('grpo-seed0-1')")


def test_free_sql(con):
    assert sql.run_sql(con, "SELECT count(*) AS n FROM pairs").to_pylist() == [{"n": 4}]
    assert sql.run_sql(con, "SET threads = 2").num_rows == 0
    with pytest.raises(QueryError, match='syntax error at or near "SELEKT"'):
        sql.run_sql(con, "SELEKT 1")
    with pytest.raises(QueryError, match="nowhere"):
        sql.run_sql(con, "FROM nowhere")


def test_a_damaged_file_names_the_audit(damaged):
    (damaged.place / "strata/pair_id=other-0/strata.parquet").write_bytes(b"not Parquet at all")
    with pytest.raises(QueryError, match=r"audit 'changed_exceeds_numel': .*strata.parquet"):
        sql.run_audits(sql.connect(damaged.place))


def test_a_lost_file_is_no_smaller_sum(damaged):
    (damaged.place / "counts/pair_id=other-0/counts.parquet").unlink()
    with pytest.raises(StoreError, match=r"cannot read the store .*other-0/counts.parquet"):
        sql.connect(damaged.place)
