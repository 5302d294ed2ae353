"""Every question has the same answer over a store in a bucket as over the same store on the disk:
through our own file system, and through DuckDB's httpfs."""

import json
import math
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlsparse_ray import sql
from rlsparse_ray.errors import QueryError, StoreError
from rlsparse_ray.storage import httpfs
from rlsparse_ray.storage.duckdb_files import ObjectFileSystem
from rlsparse_ray.storage.files import files_at
from tests.builders import extract_directly, weights, write_corpus, write_model
from tests.sql.test_trajectory_queries import make_trajectories

HTTPFS = "1.5.5"
"""The newest DuckDB whose httpfs is a package: a wheel can be had where INSTALL cannot."""

PREFIXES = ("my store/env=abs:1e-05", "my [1]*? store/env=abs:1e-05")
"""The second one has the characters of patterns."""


@pytest.fixture(scope="module")
def stores(store, tmp_path_factory, s3_session):
    """Two stores on the disk, one of them with trajectories, and the same two in a bucket."""
    trajectories = make_trajectories(tmp_path_factory.mktemp("trajectories"))
    s3_session.create_bucket("questions")
    on_disk = {"synthetic": store.place, "trajectories": trajectories}
    for name, place in on_disk.items():
        for prefix in PREFIXES:
            s3_session.upload(place, "questions", f"{prefix}/{name}")
    return {
        name: (place, *(f"s3://questions/{prefix}/{name}" for prefix in PREFIXES))
        for name, place in on_disk.items()
    }


def answers(place) -> dict[str, list[dict]]:
    """Of every query and audit, as JSON has it."""
    found = {}
    with sql.connect(place) as con:
        pairs = [name for (name,) in con.execute("SELECT name FROM pairs ORDER BY name").fetchall()]
        given = {"a": pairs[0], "b": pairs[-1]}
        for query in sql.queries().values():
            params = {p.name: given[p.name] for p in query.parameters if p.default is None}
            found[query.name] = sql.run_query(con, query.name, params).to_pylist()
        for name, rows in sql.run_audits(con):
            found[f"audits/{name}"] = rows.to_pylist()
    return json.loads(json.dumps(found, default=str))


def assert_same(one, other):
    """Equal, but for the last digit of sums of doubles, which threads add in any order."""
    assert one.keys() == other.keys()
    for name in one:
        assert len(one[name]) == len(other[name]), name
        for x, y in zip(one[name], other[name], strict=True):
            assert [name, differing(x, y)] == [name, []]


def differing(x, y):
    def same(key, a, b):
        if isinstance(a, float) and isinstance(b, float):
            # a standard error is the root of a small difference of such sums
            digits = 1e-6 if key.startswith("standard_error") else 1e-12
            return math.isclose(a, b, rel_tol=digits) or (math.isnan(a) and math.isnan(b))
        return a == b

    return [(key, x[key], y[key]) for key in x if not same(key, x[key], y[key])]


@pytest.mark.parametrize("name", ["synthetic", "trajectories"])
def test_our_file_system(stores, name):
    place, *addresses = stores[name]
    expected = answers(place)
    for address in addresses:
        assert_same(expected, answers(address))


@pytest.fixture(scope="module")
def old_duckdb(pytestconfig) -> Path:
    """DuckDB with its httpfs, in a folder of its own beside the environment; made once."""
    folder = Path(pytestconfig.rootpath, ".venv", f"duckdb-{HTTPFS}")
    if not (folder / "duckdb_extension_httpfs").is_dir():
        packages = [f"{name}=={HTTPFS}" for name in ("duckdb", "duckdb-extension-httpfs")]
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        subprocess.run([*install, folder, *packages], check=True)
    return folder


def in_old_duckdb(old_duckdb, code, *words):
    """What a script prints, as JSON; it runs with the old DuckDB, and no registered files."""
    begin = f"import json, sys; sys.path.insert(0, {str(old_duckdb)!r}); import duckdb\n"
    command = [sys.executable, "-c", begin + code, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["synthetic", "trajectories"])
def test_httpfs(stores, old_duckdb, name):
    """The queries run on the older DuckDB too, with the same answers."""
    place, address, _ = stores[name]
    code = """
from rlsparse_ray.storage import duckdb_files
from tests.sql.test_sql_on_s3 import answers
duckdb_files.ObjectFileSystem = None
print(json.dumps([duckdb.__version__, answers(sys.argv[1]), answers(sys.argv[2])]))
"""
    version, local, remote = in_old_duckdb(old_duckdb, code, place, address)
    assert version == HTTPFS
    assert_same(local, remote)
    assert_same(answers(place), remote)


def test_the_stock_shell(stores, old_duckdb, s3):
    """httpfs, a secret and a variable are all that setup.sql needs."""
    place, address, _ = stores["trajectories"]
    code = """
con = duckdb.connect()
con.execute(f"LOAD '{sys.argv[1]}'")
con.execute(sys.argv[2])
con.execute("SET VARIABLE store = '" + sys.argv[3] + "'")
con.execute(open(sys.argv[4]).read())
print(json.dumps(con.execute("SELECT count(*), sum(changed) FROM counts").fetchall()))
"""
    extension = next(old_duckdb.rglob("httpfs.duckdb_extension"))
    secret = httpfs.secret(address, s3.environment)
    setup = sql.queries_dir() / "setup.sql"
    found = in_old_duckdb(old_duckdb, code, extension, secret, address, setup)
    with sql.connect(place) as con:
        expected = con.execute("SELECT count(*), sum(changed) FROM counts").fetchall()
    assert found == [[int(value) for value in expected[0]]]


# One file, many threads


def scattered(folder: Path) -> str:
    """Four parts of 16 row groups each, and what all bits together are."""
    rng = np.random.default_rng(5)
    for part in range(4):
        table = pa.table({"block": range(512), "bits": [rng.bytes(8192) for _ in range(512)]})
        pq.write_table(table, folder / f"part-{part}.parquet", row_group_size=32)
    return "SELECT count(*), sum(block), bit_xor(hash(bits)) FROM read_parquet($1)"


def test_many_threads_read_the_right_bytes(tmp_path, s3):
    """DuckDB hands one file to up to 15 threads at once. A file object with one position for all
    of them gave errors of ZSTD and of ranges in 6 of 6 runs of this test, obstore's own reader too;
    the short switch interval is what makes it sure to.
    """
    question = scattered(tmp_path)
    s3.create_bucket("questions")
    s3.upload(tmp_path, "questions", "many threads")
    expected = duckdb.connect().execute(question, [f"{tmp_path}/*.parquet"]).fetchall()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(3):
            con = duckdb.connect(config={"threads": 8})
            con.register_filesystem(ObjectFileSystem("s3://questions/many threads"))
            place = "s3://questions/many threads/*.parquet"
            assert con.execute(question, [place]).fetchall() == expected
    finally:
        sys.setswitchinterval(interval)


# How much is read


@pytest.fixture(scope="module")
def large(tmp_path_factory, s3_session):
    """Two pairs of three layers, a slice each; its store in the bucket, and bytes of that.

    DuckDB fetches files of less than 2 MiB whole; these parts are larger, as in real stores.
    """
    folder = tmp_path_factory.mktemp("large")
    shape = (4608, 4096)
    base = {f"layers.{n}.mlp.weight": weights(n, shape) for n in range(3)}
    write_model(folder / "base", base)
    pairs = []
    for number in range(2):
        rng = np.random.default_rng(number)
        tuned = {}
        for name, array in base.items():
            moved = rng.integers(0, 2, shape, np.int8)
            tuned[name] = (array.view(np.int16) + moved).astype(np.int16).view(array.dtype)
        write_model(folder / f"t{number}", tuned)
        pairs.append({"name": f"t{number}", "base": "base", "tuned": f"t{number}"})
    corpus = write_corpus(folder / "corpus.yaml", pairs, slice_bytes=1 << 20, criteria=["exact"])
    s3_session.create_bucket("questions")
    address = "s3://questions/large"
    extract_directly(corpus, address)
    return address, sum(files_at(address).list("").values())


def test_a_point_question_reads_little(large, s3):
    """One layer of one pair: footers of the parts of that pair, and the bits of one part."""
    address, nbytes = large
    assert nbytes > 12e6
    with sql.connect(address) as con:
        assert sent(s3) < 0.05 * nbytes
        [(pair_id, key)] = con.execute(
            "SELECT pair_id, tensor_key FROM tensors JOIN pairs USING (pair_id) "
            "WHERE name = 't1' AND layer = 2"
        ).fetchall()
        s3.proxy.forget()
        answer = con.execute(
            "SELECT count(*), sum(bit_count(bits::BIT)), sum(changed) FROM masks "
            "WHERE pair_id = $1 AND criterion = 'exact' AND tensor_key = $2",
            [pair_id, key],
        ).fetchall()
        assert answer[0][0] == 288
        assert answer[0][1] == answer[0][2] > 0
        assert sent(s3) < 0.2 * nbytes
        s3.proxy.forget()
        sql.run_query(con, "sparsity_by_pair")
        assert sent(s3) < 0.02 * nbytes


def sent(s3):
    return sum(request.sent for request in s3.proxy.log)


def test_a_session_looks_at_a_table_once(large, s3):
    """A listing for each table, and no request to see whether a file is there."""
    address, _ = large
    with sql.connect(address) as con:
        sql.run_query(con, "sparsity_by_pair")
    assert [r for r in s3.proxy.log if r.method == "HEAD"] == []
    assert len([r for r in s3.proxy.log if "list-type" in r.path]) <= 15


# The file system by itself


@pytest.fixture
def small(s3):
    s3.create_bucket("questions")
    files = files_at("s3://questions/fs")
    for name in ("t/a=1/x.parquet", "t/a=2/x.parquet", "t/a=2/y.txt", "t/x.parquet", "u/[z]"):
        files.write(name, name.encode())
    yield ObjectFileSystem("s3://questions/fs"), files
    files.remove("")


def test_globs(small):
    found, _ = small
    place = "s3://questions/fs"
    assert found.glob(f"{place}/t/*/x.parquet") == [
        f"{place}/t/a=1/x.parquet",
        f"{place}/t/a=2/x.parquet",
    ]
    assert found.glob(f"{place}/t/**/*.parquet") == [
        f"{place}/t/a=1/x.parquet",
        f"{place}/t/a=2/x.parquet",
        f"{place}/t/x.parquet",
    ]
    assert found.glob(f"{place}/?/a=[!1]/*.txt") == [f"{place}/t/a=2/y.txt"]
    assert found.glob(f"{place}/u/[[]z]") == [f"{place}/u/[z]"]
    assert found.glob(f"{place}/t/x.parquet") == [f"{place}/t/x.parquet"]
    assert found.glob(f"{place}/t/nothing") == found.glob(f"{place}/nowhere/*") == []


def test_what_it_says_of_files(small):
    found, files = small
    path = "s3://questions/fs/t/a=1/x.parquet"
    assert (found.exists(path), found.exists("s3://questions/fs/t/a=1")) == (True, False)
    assert found.size(path) == found.info(path)["size"] == 15
    assert abs((found.modified(path) - found.modified(path)).total_seconds()) == 0
    with found.open(path) as file:
        assert file.read() == b"t/a=1/x.parquet"
    # written after the table was looked at
    files.write("t/later", b"now")
    assert found.exists("s3://questions/fs/t/later")
    with pytest.raises(StoreError, match="a session over a store only reads it"):
        found.open(path, "wb")
    with pytest.raises(StoreError, match="it is gone"):
        found.open("s3://questions/fs/t/nothing")


def test_a_file_that_is_replaced_is_an_error_once(large, s3, monkeypatch):
    """No answer mixes two versions; asked again, the new one is read."""
    address, _ = large
    files = files_at(address)
    part = next(path for path in files.list("steps"))
    with sql.connect(address) as con:
        con.execute("SET enable_external_file_cache = false")
        rows = sql.run_query(con, "step_sizes").num_rows
        old = files.read(part)
        sink = pa.BufferOutputStream()
        pq.write_table(pq.read_table(pa.BufferReader(old)), sink, compression="none")
        files.write(part, sink.getvalue().to_pybytes())
        try:
            with pytest.raises(QueryError, match="replaced while it was being read: run again"):
                sql.run_query(con, "step_sizes")
            assert sql.run_query(con, "step_sizes").num_rows == rows
        finally:
            files.write(part, old)


# The secret


@pytest.mark.parametrize(
    ("variables", "options"),
    [
        ({}, "KEY_ID 'k''1', SECRET 's'"),
        ({"AWS_SESSION_TOKEN": "t'"}, "KEY_ID 'k''1', SECRET 's', SESSION_TOKEN 't'''"),
        (
            {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "x"},
            "KEY_ID 'k''1', SECRET 's', REGION 'eu-west-1'",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:8333/"},
            "KEY_ID 'k''1', SECRET 's', ENDPOINT '127.0.0.1:8333', URL_STYLE 'path', USE_SSL false",
        ),
        (
            {
                "AWS_ENDPOINT_URL_S3": "https://minio.lab",
                "AWS_ENDPOINT_URL": "http://x",
                "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
            },
            "KEY_ID 'k''1', SECRET 's', ENDPOINT 'minio.lab', URL_STYLE 'vhost', USE_SSL true",
        ),
    ],
)
def test_secret(variables, options):
    keys = {"AWS_ACCESS_KEY_ID": "k'1", "AWS_SECRET_ACCESS_KEY": "s"}
    assert httpfs.secret("s3://bucket/my store", keys | variables) == (
        "CREATE OR REPLACE TEMPORARY SECRET rlsparse_store "
        f"(TYPE s3, PROVIDER config, SCOPE 's3://bucket', {options})"
    )
