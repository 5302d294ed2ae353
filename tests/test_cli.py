"""Every verb explains itself, answers in every format, and `verify` sees what is wrong."""

import csv
import io
import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from rlsparse_ray import __version__, sql
from rlsparse_ray.cli import app
from rlsparse_ray.console import count
from rlsparse_ray.store import Store
from tests.builders import extract_slices, id_of, plan_of, rows_of

COMMANDS = typer.main.get_command(app).commands
NAMES = ["grpo-0", "grpo-1", "sft"]
SPARSITY = "SELECT name, numel, seed FROM pairs ORDER BY name"


def read_json(answer):
    return json.loads(answer.out)


def read_csv(answer):
    return list(csv.DictReader(io.StringIO(answer.out)))


def read_parquet(answer):
    return pq.ParquetFile(pa.BufferReader(answer.raw)).read(use_threads=False).to_pylist()


@pytest.fixture
def copy(example, tmp_path):
    """The example's store, to damage."""
    return shutil.copytree(example.store, tmp_path / "store")


# Help


def test_commands():
    wanted = {"plan", "extract", "query", "sql", "status", "verify"}
    assert wanted <= COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_it_does_and_how(rlsparse, name):
    answer = rlsparse(name, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert re.search(rf"Example: +rlsparse {name}\b", answer.out)
    assert COMMANDS[name].help.splitlines()[0].rstrip(".")[:40] in answer.out
    assert [p.name for p in COMMANDS[name].params if not p.help] == []


def test_version(rlsparse):
    assert rlsparse("--version").out == f"rlsparse_ray {__version__}\n"


def test_an_unknown_command(rlsparse):
    answer = rlsparse("extrct")
    assert answer.code == 2
    assert "No such command 'extrct'" in answer.err


# Plan


def test_plan(rlsparse, example):
    answer = rlsparse("plan", example.corpus)
    assert (answer.code, answer.err) == (0, "")
    slices = len(example.plan.slices)
    end = f"3 pairs, {slices} slices, 1.6 MiB to read (a base once for all its tuned models)"
    assert answer.out.splitlines()[-1] == end
    rows = read_json(rlsparse("plan", example.corpus, "--json"))
    assert [(row["name"], row["pair_id"]) for row in rows] == [
        (pair.entry.name, pair.pair_id) for pair in example.plan.pairs
    ]
    assert {(r["tensors"], r["tensors_not_compared"], r["slices"]) for r in rows} == {
        (11, 0, slices)
    }


def test_plan_reads_no_weights(rlsparse, example, monkeypatch):
    def refuse(*_):
        raise AssertionError("a read")

    monkeypatch.setattr("rlsparse_ray.weights.reader.Reader.read_into", refuse)
    assert rlsparse("plan", example.corpus).code == 0


# Answers


def test_query_alone_lists_every_query(rlsparse):
    answer = rlsparse("query")
    assert (answer.code, answer.err) == (0, "")
    rows = read_json(rlsparse("query", "--json"))
    assert [row["query"] for row in rows] == list(sql.queries())
    for row in rows:
        assert re.search(rf"^ ?{row['query']} ", answer.out, re.MULTILINE)
        assert row["answers"].endswith((".", "?"))


def test_a_query_in_every_format(rlsparse, example):
    with sql.connect(example.store) as con:
        expected = sql.run_query(con, "sparsity_by_pair").to_pylist()
    ask = ("query", "sparsity_by_pair", "--store", example.store)
    table = rlsparse(*ask)
    assert table.code == 0
    assert all(name in table.out for name in NAMES)
    shown = read_json(rlsparse(*ask, "--format", "json"))
    assert shown == json.loads(json.dumps(expected, default=str))
    assert shown == read_json(rlsparse(*ask, "--json"))
    assert read_parquet(rlsparse(*ask, "--format", "parquet")) == expected
    lines = read_csv(rlsparse(*ask, "--format", "csv"))
    assert [line["name"] for line in lines] == [row["name"] for row in expected]
    assert [line["numel"] for line in lines] == [str(row["numel"]) for row in expected]


def test_sql_in_every_format(rlsparse, example):
    numel = example.plan.pairs[0].numel
    expected = [{"name": name, "numel": numel, "seed": None} for name in NAMES]
    ask = ("sql", SPARSITY, "--store", example.store)
    assert read_json(rlsparse(*ask, "--format", "json")) == expected
    assert read_parquet(rlsparse(*ask, "--format", "parquet")) == expected
    assert [line["numel"] for line in read_csv(rlsparse(*ask, "--format", "csv"))] == [
        str(numel)
    ] * 3
    table = rlsparse(*ask).out
    assert f"{numel:,}" in table
    assert table.splitlines()[-1] == "no value in: seed"


def test_sql_without_rows(rlsparse, example):
    ask = ("sql", "SELECT name FROM pairs WHERE name = 'x'", "--store", example.store)
    assert rlsparse(*ask).out.splitlines()[-1] == "no rows"
    assert read_json(rlsparse(*ask, "--json")) == []
    assert read_parquet(rlsparse(*ask, "--format", "parquet")) == []


def test_lists_and_maps_in_csv(rlsparse, example):
    ask = ("sql", "SELECT criteria FROM pairs LIMIT 1", "--store", example.store)
    (row,) = read_csv(rlsparse(*ask, "--format", "csv"))
    assert json.loads(row["criteria"]) == ["exact", "abs:1e-5"]


def test_parameters_reach_the_query(rlsparse, example):
    ask = ("query", "overlap", "--store", example.store, "--json", "-p", "a=grpo-0")
    (same,) = [r for r in read_json(rlsparse(*ask, "-p", "b=grpo-0")) if r["level"] == "total"]
    (other,) = [r for r in read_json(rlsparse(*ask, "-p", "b=grpo-1")) if r["level"] == "total"]
    assert same["o1"] == same["jaccard"] == 1
    assert 0 < other["jaccard"] < 0.5
    assert other["o1"] * other["changed_a"] == pytest.approx(other["shared"])


def test_the_store_may_come_from_the_environment(rlsparse, example, monkeypatch):
    monkeypatch.setenv("RLSPARSE_STORE", str(example.store))
    assert [row["name"] for row in read_json(rlsparse("sql", SPARSITY, "--json"))] == NAMES


def test_status(rlsparse, example):
    answer = rlsparse("status", "--store", example.store)
    assert (answer.code, answer.err) == (0, "")
    assert re.fullmatch(r"3 pairs, \d+\.\d KiB", answer.out.splitlines()[-1])
    for row in read_json(rlsparse("status", "--store", example.store, "--json")):
        parts = rows_of(example.store, "pairs", row["pair_id"])[0]["parts"]
        assert row["bytes"] == sum(part["bytes"] for part in parts)
        assert row["files"] == len(parts)


def test_status_tells_of_what_is_unfinished(rlsparse, example, copy):
    plan = plan_of(example.corpus)
    shutil.rmtree(copy / "pairs" / f"pair_id={id_of(plan, 'sft')}")
    extract_slices(plan.without(Store.open(copy).committed()), copy)
    last = rlsparse("status", "--store", copy).out.splitlines()[-1]
    assert last.startswith(f"{len(plan.slices)} staged files: of what runs, was stopped or has fai")


# Verify


def test_verify_a_good_store(rlsparse, example):
    answer = rlsparse("verify", "--store", example.store)
    assert (answer.code, answer.err) == (0, "")
    expected = f"{len(sql.audits())} audits and the files of 3 pairs: all is well\n"
    assert answer.out == expected
    assert read_json(rlsparse("verify", "--store", example.store, "--json")) == []


def findings(rlsparse, store):
    """The rows of `verify`, which must have some, in both forms."""
    answer = rlsparse("verify", "--store", store)
    assert answer.code == 1
    as_json = rlsparse("verify", "--store", store, "--json")
    assert as_json.code == 1
    rows = read_json(as_json)
    assert answer.out.splitlines()[-1].endswith(f"of 3 pairs: {count(len(rows), 'problem')}")
    assert all(row["pair_id"] in answer.out for row in rows)
    return rows


def mask_part(store, pair_id):
    return store / f"masks/pair_id={pair_id}/criterion=exact/part-00000.parquet"


def test_verify_sees_a_flipped_byte(rlsparse, example, copy):
    pair_id = id_of(example.plan, "grpo-1")
    path = mask_part(copy, pair_id)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    first = findings(rlsparse, copy)[0]
    assert (first["check"], first["pair_id"]) == ("files", pair_id)
    assert first["problem"] == (
        f"{path.relative_to(copy)}: contents have changed (XXH3 differs); "
        f"remove {copy}/pairs/pair_id={pair_id} and extract again"
    )


def test_verify_sees_a_missing_part(rlsparse, example, copy):
    pair_id = id_of(example.plan, "sft")
    mask_part(copy, pair_id).unlink()
    first = findings(rlsparse, copy)[0]
    assert (first["check"], first["pair_id"]) == ("files", pair_id)
    assert "part-00000.parquet: missing; remove" in first["problem"]


@pytest.mark.parametrize("table", ["counts", "strata", "tensors", "pairs"])
def test_verify_sees_a_table_cut_short(rlsparse, example, copy, table):
    pair_id = id_of(example.plan, "sft")
    path = copy / table / f"pair_id={pair_id}" / f"{table}.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    rows = findings(rlsparse, copy)
    assert (rows[0]["check"], rows[0]["pair_id"]) == ("files", pair_id)
    assert f"{table}.parquet: " in rows[0]["problem"]
    assert rows[0]["problem"].endswith("extract again")


def test_verify_sees_numbers_that_do_not_agree(rlsparse, example, copy):
    """A file that was rewritten whole, with its hash in the row of the pair."""
    pair_id = id_of(example.plan, "sft")
    path = copy / "counts" / f"pair_id={pair_id}" / "counts.parquet"
    table = pq.ParquetFile(path).read(use_threads=False)
    changed = pa.array([n + 1 for n in table["changed"].to_pylist()], pa.int64())
    store = Store.open(copy)
    part = store.write_table("counts", pair_id, table.set_column(4, table.field(4), changed))
    row = store.pair_row(pair_id)
    kept = [p for p in row["parts"] if p["path"] != part.path]
    new = {"path": part.path, "rows": part.rows, "bytes": part.bytes, "xxh3": part.xxh3}
    store.write_pair(pair_id, row | {"parts": [*kept, new]})
    store.drop_staging(pair_id)
    rows = findings(rlsparse, copy)
    assert "files" not in {row["check"] for row in rows}
    for audit in ("mask_against_counts", "strata_against_counts"):
        assert {row["pair_id"] for row in rows if row["check"] == audit} == {pair_id}


def test_a_damaged_pair_is_mended_as_verify_says(rlsparse, example, copy, local_ray):
    pair_id = id_of(example.plan, "grpo-0")
    mask_part(copy, pair_id).write_bytes(b"")
    fix = re.search(r"remove (\S+) and extract again", findings(rlsparse, copy)[0]["problem"])
    shutil.rmtree(fix[1])
    answer = rlsparse("extract", example.corpus, "--store", copy)
    assert answer.code == 0
    assert answer.out.startswith("1 extracted, 2 already there; ")
    assert rlsparse("verify", "--store", copy).code == 0
