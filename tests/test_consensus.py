"""The consensus of pairs in a store: histogram, expectation, and the masks that are kept."""

import json
import re
import shutil

import numpy as np
import pytest
from scipy import stats

from rlsparse_ray import sql, tables
from rlsparse_ray.blocks import BLOCK, blocks_of
from rlsparse_ray.compare import consensus as kernel
from rlsparse_ray.errors import QueryError, StoreError
from rlsparse_ray.population import consensus as module
from rlsparse_ray.population.consensus import consensus
from rlsparse_ray.population.named_masks import consensus_mask, making
from rlsparse_ray.storage.lease import LeaseError
from rlsparse_ray.store import Store
from rlsparse_ray.upkeep.checks import verify
from tests.builders import (
    extract_directly,
    id_of,
    mask_rows,
    rows_of,
    small_model,
    tree,
    tuned_from,
    write_corpus,
    write_model,
)

NAMES = ("grpo-0", "grpo-1", "sft")
BITS = "named_mask_bits/mask=core/part-00000.parquet"
ROW = "named_masks/mask=core/named_masks.parquet"


@pytest.fixture
def copy(example, tmp_path):
    """The example's store, to write to."""
    return shutil.copytree(example.store, tmp_path / "store")


def bits_of(store, pair_id, criterion="exact"):
    """Every mask of a pair, unpacked: tensor_key to booleans."""
    found = {}
    for row in mask_rows(store, pair_id, criterion):
        raw = np.frombuffer(row["bits"], np.uint8)
        bits = np.unpackbits(raw, bitorder="little")[: row["numel"]].astype(bool)
        assert row["block"] == len(found.setdefault(row["tensor_key"], []))
        found[row["tensor_key"]].append(bits)
    return {key: np.concatenate(pieces) for key, pieces in found.items()}


def counted(example, names=NAMES, criterion="exact"):
    """In how many masks each parameter changed: tensor_key to integers."""
    masks = [bits_of(example.store, id_of(example.plan, name), criterion) for name in names]
    common = set.intersection(*({*m} for m in masks))
    return {key: sum(m[key].astype(int) for m in masks) for key in sorted(common)}


def binomials(changed, numel):
    """Poisson-binomial histograms of strata [S, N], summed."""
    c = np.arange(changed.shape[1] + 1)
    return sum(n * stats.poisson_binom(k / n).pmf(c) for k, n in zip(changed, numel, strict=True))


def test_histogram(example):
    found = consensus(example.store)
    counts = np.concatenate(list(counted(example).values()))
    table = found.histogram.to_pydict()
    assert table["changed_in"] == [0, 1, 2, 3]
    assert table["parameters"] == np.bincount(counts, minlength=4).tolist()
    assert table["at_least"] == [int((counts >= k).sum()) for k in range(4)]
    assert table["share"] == pytest.approx([np.mean(counts == k) for k in range(4)])
    assert found.group.names == NAMES
    assert found.group.numel == counts.size
    assert (found.undefined, found.group.left_out, found.kept) == ("", {}, None)


def test_expectation(example):
    ids = [id_of(example.plan, name) for name in NAMES]
    table = consensus(example.store).histogram.to_pydict()
    strata = {}
    for place, pair_id in enumerate(ids):
        for row in rows_of(example.store, "strata", pair_id):
            if row["criterion"] == "exact":
                cell = strata.setdefault((row["tensor_key"], row["exponent"]), [row["numel"], {}])
                assert cell[0] == row["numel"]
                cell[1][place] = row["changed"]
    numel = np.array([n for n, _ in strata.values()])
    changed = np.array([[c[i] for i in range(3)] for _, c in strata.values()])
    keys = np.array([key for key, _ in strata])
    by_tensor = [(changed[keys == k].sum(axis=0), numel[keys == k].sum()) for k in {*keys}]
    for baseline, want in {
        "magnitude": binomials(changed, numel),
        "tensor": binomials(np.array([c for c, _ in by_tensor]), [n for _, n in by_tensor]),
        "uniform": binomials(changed.sum(axis=0, keepdims=True), [numel.sum()]),
    }.items():
        assert table[f"expected_{baseline}"] == pytest.approx(want, rel=1e-9)
        lifts = np.array(table["parameters"]) / want
        assert table[f"lift_{baseline}"] == pytest.approx(lifts, rel=1e-9)


def test_any_condition_and_criterion_choose_the_group(example):
    found = consensus(example.store, "algorithm = 'GRPO' -- both seeds", "abs:0.00001")
    counts = np.concatenate(list(counted(example, NAMES[:2], "abs:1e-5").values()))
    assert found.histogram["parameters"].to_pylist() == np.bincount(counts).tolist()
    assert found.group.names == NAMES[:2]


def test_small_steps_give_the_same(example, copy, monkeypatch):
    whole = consensus(copy, keep=2, name="core")
    kept = tree(copy)[BITS]
    shutil.rmtree(copy / "named_masks")
    monkeypatch.setattr(module, "_RUN_BYTES", 1)
    assert consensus(copy, keep=2, name="core").histogram == whole.histogram
    assert tree(copy)[BITS] == kept


@pytest.mark.parametrize(("keep", "k"), [("all", 3), ("any", 1), (2, 2), ("2", 2)])
def test_kept_mask(example, copy, keep, k):
    before = tree(copy)
    found = consensus(copy, "family = 'tiny'", keep=keep, name="core")
    assert found.kept.rule == f"at least {k} of 3"
    assert tree(copy).keys() - before.keys() == {BITS, ROW}
    want = {key: counts >= k for key, counts in counted(example).items()}
    con = sql.connect(copy)
    rows = sql.run_sql(con, "FROM named_mask_bits ORDER BY tensor_key, block").to_pylist()
    assert {row["mask"] for row in rows} == {"core"}
    assert [(r["tensor_key"], r["block"]) for r in rows] == [
        (key, block) for key in sorted(want) for block in range(blocks_of(want[key].size))
    ]
    for row in rows:
        piece = want[row["tensor_key"]][row["block"] * BLOCK : (row["block"] + 1) * BLOCK]
        assert row["bits"] == np.packbits(piece, bitorder="little").tobytes()
        assert (row["numel"], row["changed"]) == (piece.size, int(piece.sum()))
    row = sql.run_sql(con, "FROM named_masks").to_pylist()[0]
    assert row["members"] == sorted(id_of(example.plan, name) for name in NAMES)
    facts = ("mask", "kind", "criterion", "at_least", "where_text", "numel", "changed", "tensors")
    assert tuple(row[c] for c in facts) == (
        "core",
        "consensus",
        "exact",
        k,
        "family = 'tiny'",
        sum(bits.size for bits in want.values()),
        sum(int(bits.sum()) for bits in want.values()),
        len(want),
    )
    assert verify(copy) == []


def test_the_same_mask_again_is_no_work_and_another_is_refused(example, copy):
    consensus(copy, keep="all", name="core")
    before = tree(copy)
    again = consensus(copy, "numel > 0", keep=3, name="core")
    assert again.kept.rule == "at least 3 of 3"
    assert tree(copy) == before
    for other in ({"keep": 2}, {"keep": 3, "criterion": "abs:1e-5"}, {"keep": "all"}):
        where = "algorithm = 'GRPO'" if other == {"keep": "all"} else "true"
        with pytest.raises(StoreError, match=r"mask core is at least 3 of 3 .* another name"):
            consensus(copy, where, name="core", **other)
    assert tree(copy) == before


def test_a_second_mask_stands_beside_the_first(copy):
    consensus(copy, keep="all", name="core")
    consensus(copy, keep="any", name="union")
    con = sql.connect(copy)
    found = sql.run_sql(con, "SELECT mask, sum(changed) AS n FROM named_mask_bits GROUP BY mask")
    listed = sql.run_sql(con, "SELECT mask, changed AS n FROM named_masks")
    assert {r["mask"]: int(r["n"]) for r in found.to_pylist()} == {
        r["mask"]: r["n"] for r in listed.to_pylist()
    }
    assert {r["mask"] for r in listed.to_pylist()} == {"core", "union"}


def test_without_named_masks_the_views_are_empty(example):
    con = sql.connect(example.store)
    for table, schema in tables.NAMED_SCHEMAS.items():
        assert sql.run_sql(con, f"FROM {table}").num_rows == 0
        columns = [r["column_name"] for r in sql.run_sql(con, f"DESCRIBE {table}").to_pylist()]
        assert columns == ["mask", *schema.names]


def test_columns_of_the_views_are_those_of_the_schemas(copy):
    consensus(copy, keep="all", name="core")
    con = sql.connect(copy)
    text = re.sub(r"\n +-- ", " ", (sql.queries_dir() / "setup.sql").read_text())
    for table, schema in tables.NAMED_SCHEMAS.items():
        columns = [r["column_name"] for r in sql.run_sql(con, f"DESCRIBE {table}").to_pylist()]
        assert columns == ["mask", *schema.names]
        for field in schema:
            assert f"-- {field.metadata[b'doc'].decode()}\n" in text


def test_a_stopped_run_leaves_nothing_to_see(copy, monkeypatch):
    before = tree(copy)

    def stop(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "histogram", stop)
    with pytest.raises(KeyboardInterrupt):
        consensus(copy, keep="all", name="core")
    assert tree(copy) == before
    monkeypatch.setattr(module, "histogram", kernel.histogram)
    (copy / BITS).parent.mkdir(parents=True)
    (copy / BITS).write_bytes(b"published, but never committed")
    assert sql.run_sql(sql.connect(copy), "FROM named_mask_bits").num_rows == 0
    consensus(copy, keep="all", name="core")
    assert verify(copy) == []


def test_verify_sees_damage_of_a_kept_mask(copy):
    consensus(copy, keep="all", name="core")
    whole = (copy / BITS).read_bytes()
    (copy / BITS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert [(f.check, f.pair_id) for f in verify(copy)][:1] == [("files", "mask core")]
    (copy / BITS).unlink()
    assert "missing" in verify(copy)[0].problem
    (copy / BITS).write_bytes(whole)
    (copy / ROW).write_bytes(b"not Parquet")
    assert any("keep the mask again" in f.problem for f in verify(copy))


def test_masks_that_lack_a_block_are_refused(example, copy):
    folder = copy / "masks" / f"pair_id={id_of(example.plan, 'sft')}" / "criterion=exact"
    parts = sorted(folder.iterdir())
    parts[0].write_bytes(parts[-1].read_bytes())
    with pytest.raises(StoreError, match="rlsparse verify"):
        consensus(copy, keep="all", name="core")
    assert not list(copy.glob("staging/**/*core*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"where": "name = 'sft'"},
            "^1 pair meets the condition .*two or more: `rlsparse query consensus_groups`",
        ),
        ({"where": "nme = 'sft'"}, "the condition over pairs: .*nme"),
        ({"where": "name ="}, "the condition over pairs: .*Parser Error"),
        ({"keep": 4, "name": "core"}, "a number from 1 to 3"),
        ({"keep": "most", "name": "core"}, "say all, any or a number"),
        ({"criterion": "abs"}, "unknown criterion 'abs'"),
        ({"keep": 2}, "go together"),
        ({"name": "core"}, "go together"),
    ],
)
def test_wrong_questions(copy, arguments, message):
    before = tree(copy)
    with pytest.raises(QueryError, match=message):
        consensus(copy, **arguments)
    assert tree(copy) == before


def test_one_at_a_time_makes_a_mask_of_a_name(copy):
    other = consensus_mask("core", 2, "exact", ("a", "b"), "true")
    with making(Store.open(copy), other) as lease:
        lease.check()
        with pytest.raises(LeaseError, match="in use by rlsparse mask core of"):
            consensus(copy, keep=2, name="core")
        assert consensus(copy, keep=2, name="other").kept.name == "other"
    assert consensus(copy, keep=2, name="core").kept.name == "core"
    assert Store.open(copy).files.list("staging") == {}


def test_wrong_names_and_criteria(copy):
    with pytest.raises(StoreError, match="letters, digits"):
        consensus(copy, keep=2, name="../core")
    with pytest.raises(
        StoreError,
        match=r"no masks of criterion abs:1e-3 .*: grpo-0, grpo-1, sft; masks are kept of .*exact",
    ):
        consensus(copy, criterion="abs:1e-3")


def test_another_base_and_another_shape(tmp_path):
    """The magnitude baseline is not defined then, and what is not common is said to be left out."""
    one, two = small_model(0), small_model(50, vocabulary=680)
    pairs = []
    for number, base in enumerate((one, one, two)):
        write_model(tmp_path / f"base-{number}", base)
        write_model(tmp_path / f"tuned-{number}", tuned_from(base, 100 * number))
        names = {"base": f"base-{number}", "tuned": f"tuned-{number}"}
        pairs.append({"name": f"run-{number}", "family": "tiny", **names})
    store = tmp_path / "store"
    extract_directly(write_corpus(tmp_path / "corpus.yaml", pairs), store)
    found = consensus(store)
    table = found.histogram.to_pydict()
    assert "base weights of 9 of 9 tensors differ" in found.undefined
    assert table["lift_magnitude"] == table["expected_magnitude"] == [None] * 4
    assert sum(table["expected_tensor"]) == pytest.approx(found.group.numel)
    assert len(found.group.left_out) == 4
    assert any("left out: 4 tensors" in line for line in found.remarks())
    same = consensus(store, "name < 'run-2'")
    assert (same.undefined, same.group.left_out) == ("", {})


def test_command(example, copy, rlsparse):
    answer = rlsparse(
        "consensus", "--store", copy, "--where", "kl IS NULL", "--keep", "all", "--name", "core"
    )
    assert (answer.code, answer.err) == (0, "")
    assert "kept: at least 3 of 3, as core" in answer.out
    assert "3 masks (exact)" in answer.out
    again = rlsparse("consensus", "--store", copy, "--where", "kl IS NULL", "--json")
    assert [row["changed_in"] for row in json.loads(again.out)] == [0, 1, 2, 3]
    wrong = rlsparse("consensus", "--store", copy, "--where", "seed = 77")
    assert (wrong.code, wrong.out) == (2, "")
    assert "no pair meets the condition" in wrong.err
    assert list(Store.open(copy).files.list("named_masks")) == [ROW]
