"""The queries that only the report asks, against numpy over the synthetic stores."""

import math
import shutil
from datetime import UTC, datetime

import numpy as np
import pytest
from scipy import stats

from rlsparse_ray import sql
from rlsparse_ray.errors import QueryError
from tests.builders import overlap_directly
from tests.sql.conftest import COUNTED, REFRESHES, Store, Tensor, _write, refresh_path
from tests.sql.test_family_queries import pair, zoo  # noqa: F401 - a fixture
from tests.sql.test_queries import by_strata, measured, ratio, total


@pytest.fixture(scope="module")
def runs(zoo, tmp_path_factory):  # noqa: F811
    """The zoo with its overlaps counted: thirteen runs, ten of them on one base."""
    place = tmp_path_factory.mktemp("runs") / "store"
    shutil.copytree(zoo.place, place)
    overlap_directly(place)
    return Store(place, zoo.pairs)


@pytest.fixture(scope="module")
def runs_con(runs):
    return sql.connect(runs.place)


def rows(con, name, **params):
    return sql.run_query(con, name, params).to_pylist()


def commit_of(p):
    return f"pairs/pair_id={p.pair_id}/pairs.parquet"


def at(year):
    return lambda its: [r | {"created_at": datetime(year, 1, 1, tzinfo=UTC)} for r in its]


def labels(p):
    return {c: p.row[c] for c in ("name", "family", "algorithm", "stage", "dataset", "seed")}


def test_runs_by_tolerance(runs, runs_con):
    expected = {
        (p.pair_id, c): labels(p) | measured(p.compared.values(), c) | {"run": p.name}
        for p in runs.pairs
        for c in COUNTED
    }
    found = {(r["pair_id"], r["criterion"]): r for r in rows(runs_con, "runs_by_tolerance")}
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        for column, value in row.items():
            near = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
            assert found[key][column] == near, (key, column)
    first = [r["criterion"] for r in rows(runs_con, "runs_by_tolerance")][: len(COUNTED)]
    assert first == COUNTED


def test_reported_figures_stay_with_their_runs(con, store):
    found = rows(con, "runs_by_tolerance")
    assert {r["name"] for r in found if r["reported_sparsity"] is not None} == {"grpo-seed0"}


@pytest.mark.parametrize("query", ["runs_by_tolerance", "layer_by_module"])
def test_two_runs_of_one_name_are_told_apart(runs, tmp_path, query):
    place = tmp_path / "store"
    shutil.copytree(runs.place, place)
    copy = Store(place, runs.pairs)
    for p in runs.pairs[:2]:
        copy.edit(
            f"pairs/pair_id={p.pair_id}/pairs.parquet",
            lambda its: [r | {"name": "same"} for r in its],
        )
    found = {r["run"] for r in rows(sql.connect(place), query)}
    twins = {p.pair_id for p in runs.pairs[:2]}
    assert found == {p.name for p in runs.pairs[2:]} | twins


@pytest.mark.parametrize("criterion", ["exact", "abs:1e-5"])
def test_layer_by_module(runs, runs_con, criterion):
    expected = {}
    for p in runs.pairs:
        for t in p.compared.values():
            expected.setdefault((p.pair_id, t.layer, t.module), []).append(t)
    found = {
        (r["pair_id"], r["layer"], r["module"]): r
        for r in rows(runs_con, "layer_by_module", criterion=criterion)
    }
    assert found.keys() == expected.keys()
    for key, its in expected.items():
        want = measured(its, criterion) | {"kind": its[0].kind, "run": key[0].removesuffix("-0")}
        assert {c: found[key][c] for c in want if c != "sparsity"} == {
            c: v for c, v in want.items() if c != "sparsity"
        }


def test_provenance(con, store):
    found = rows(con, "provenance")
    assert [r["name"] for r in found] == sorted(p.name for p in store.pairs)
    by_id = {r["pair_id"]: r for r in found}
    for p in store.pairs:
        row = by_id[p.pair_id]
        for column in row.keys() - {"pair_id"}:
            assert row[column] == p.row[column], column


def test_failed_pairs_are_those_of_the_last_refresh(con, store, damaged):
    # the last refresh of the synthetic store failed nothing, the first one did
    assert rows(con, "failed_pairs") == []
    for path in sorted(damaged.place.glob("refreshes/**/*.parquet")):

        def later(its):
            return [r | {"started_at": r["started_at"].replace(year=2027)} for r in its]

        if any(r["failed"] for r in sql_rows(path)):
            damaged.edit(path.relative_to(damaged.place).as_posix(), later)
    (row,) = rows(sql.connect(damaged.place), "failed_pairs")
    assert (row["name"], row["message"]) == ("gone", "hf://org/gone: gone")
    assert row["started_at"].year == 2027
    assert row["shown"] == "nothing"


@pytest.mark.parametrize(("year", "shown"), [(2025, "an older revision"), (2028, "there now")])
def test_failed_pairs_that_are_in_the_store(damaged, year, shown):
    """A pair that moved on to what cannot be read, and one that was extracted after the refresh."""
    shutil.rmtree(damaged.place / refresh_path(REFRESHES[1]).rpartition("/")[0])
    damaged.edit(commit_of(damaged.pair("dpo")), lambda its: [r | {"name": "gone"} for r in its])
    damaged.edit(commit_of(damaged.pair("dpo")), at(year))
    (row,) = rows(sql.connect(damaged.place), "failed_pairs")
    assert (row["name"], row["shown"]) == ("gone", shown)


def sql_rows(path):
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read().to_pylist()


def measures(runs):
    """By measure: one value a run, or a pair of runs."""
    exact = [p for p in runs.pairs if "exact" in p.criteria]
    found = {
        "sparsity": {
            (p.pair_id,): measured(p.compared.values(), "exact")["sparsity"] for p in runs.pairs
        }
    }
    for i, a in enumerate(exact):
        for b in exact[i + 1 :]:
            common = a.compared.keys() & b.compared.keys()
            strata = [by_strata(a.compared[k], b.compared[k], "exact") for k in common]
            if not common or None in strata:
                continue
            row, magnitude = total(a, b, "exact"), sum(strata)
            smaller = min(row["changed_a"], row["changed_b"])
            for name, chance in (("uniform", row["expected_uniform"]), ("magnitude", magnitude)):
                key = a.pair_id, b.pair_id
                found.setdefault(f"lift_{name}", {})[key] = ratio(row["shared"], chance)
                found.setdefault(f"excess_share_{name}", {})[key] = (row["shared"] - chance) / (
                    smaller - chance
                )
    return found


def jackknife(values, mean):
    """The estimate and its standard error, leaving out one run after the other, by hand."""
    members = sorted({run for key in values for run in key})
    left = [mean([v for key, v in values.items() if run not in key]) for run in members]
    n = len(members)
    error = math.sqrt((n - 1) / n * sum((x - np.mean(left)) ** 2 for x in left))
    return mean(list(values.values())), error, n


def test_headline(runs, runs_con):
    expected = measures(runs)
    found = {r["measure"]: r for r in rows(runs_con, "headline")}
    assert list(found) == [
        "sparsity",
        "lift_uniform",
        "lift_magnitude",
        "excess_share_uniform",
        "excess_share_magnitude",
    ]
    for measure, values in expected.items():
        row, is_lift = found[measure], measure.startswith("lift")
        logs = {k: math.log(v) for k, v in values.items()} if is_lift else values
        value, error, n = jackknife(logs, np.mean)
        back = math.exp if is_lift else float
        assert (row["n"], row["runs"], row["pairs_without"]) == (len(values), n, 0)
        assert row["value"] == pytest.approx(back(value), rel=1e-9)
        half = stats.t.ppf(0.975, n - 1) * error
        assert row["low"] == pytest.approx(back(value - half), rel=1e-4)
        assert row["high"] == pytest.approx(back(value + half), rel=1e-4)
        assert row["sample_fraction"] == (None if measure == "sparsity" else 1)
    assert found["lift_magnitude"]["value"] < found["lift_uniform"]["value"]


def made_of(place, runs, pairs, sample=1.0):
    """A session over a store of these pairs, with their overlaps."""
    for p in pairs:
        _write(place, p)
    (place / "store.json").write_text((runs.place / "store.json").read_text())
    overlap_directly(place, fraction=sample)
    return sql.connect(place)


def changing(busy, count=3):
    """Runs of one base that change the same share of the same tensor, each its own part of it."""
    found = []
    for k in range(count):
        t = Tensor("layers.0.mlp.up_proj.weight", (40, 25), 0, "mlp.up_proj", "mlp")
        t.exponent, t.base_xxh3 = np.full(1000, -5), "b"
        t.level = np.zeros(1000, int)
        t.level[busy[k]] = 1
        t.bucket = t.level
        found.append(pair(f"run-{k}", its=[t], algorithm="GRPO"))
    return found


def test_headline_counts_a_tuned_model_once(runs, tmp_path):
    """Under a second name, and against another run: both are in `runs`, neither in the numbers."""
    ours = [p for p in runs.pairs if p.name.startswith("grpo-")]
    twin = pair("aa-twin", group=1, algorithm="GRPO", tuned_source="grpo-0")
    against = pair("against", base="grpo-1", group=1, base_revision=None, tuned_source="grpo-2")
    made_of(tmp_path, runs, [*ours, twin, against])
    copy = Store(tmp_path, [])
    copy.edit(commit_of(ours[2]), at(2027))
    copy.edit(commit_of(twin), at(2026))
    copy.edit(commit_of(against), at(2025))
    copy.edit(commit_of(ours[0]), at(2025))
    con = sql.connect(tmp_path)
    found = rows(con, "headline")
    assert {r["runs"] for r in found} == {5}
    assert [r["n"] for r in found] == [5, 10, 10, 10, 10]
    assert [(r["name"], r["counts_as"]) for r in rows(con, "repeated_runs")] == [
        ("aa-twin", "grpo-0"),
        ("against", "grpo-2"),
    ]
    assert con.sql("SELECT count(*) FROM runs").fetchall() == [(7,)]
    want = rows(made_of(fresh(tmp_path), runs, ours), "headline")
    assert [r["value"] for r in found] == pytest.approx([r["value"] for r in want])


def fresh(place):
    folder = place / "fresh"
    folder.mkdir()
    return folder


def test_headline_says_what_shares_nothing(runs, tmp_path):
    """Three runs, of which two overlap: two pairs have no logarithm and are counted."""
    con = made_of(tmp_path, runs, changing([range(0, 100), range(50, 150), range(500, 600)]))
    found = {r["measure"]: r for r in rows(con, "headline")}
    for measure in ("lift_uniform", "lift_magnitude"):
        assert (found[measure]["n"], found[measure]["pairs_without"]) == (1, 2)
        assert found[measure]["value"] == pytest.approx(5)
    assert found["excess_share_uniform"]["pairs_without"] == 0


def test_intervals_stay_where_values_can_be(runs, tmp_path):
    """Sparsity of 0, 1 and 0.5; and masks that lie in one another but for one pair."""
    con = made_of(tmp_path, runs, changing([range(0), range(1000), range(500)]))
    (row,) = (r for r in rows(con, "headline") if r["measure"] == "sparsity")
    assert (row["value"], row["low"], row["high"]) == (0.5, 0, 1)
    inside = [range(0, 100), range(0, 200), range(0, 300), range(250, 350)]
    con = made_of(fresh(tmp_path), runs, changing(inside, 4))
    (row,) = (r for r in rows(con, "headline") if r["measure"] == "excess_share_uniform")
    assert row["value"] < 1
    assert row["high"] == 1
    assert row["low"] < -0.5


def test_headline_says_that_overlaps_are_sampled(runs, tmp_path):
    con = made_of(tmp_path, runs, [p for p in runs.pairs if p.name.startswith("dpo-")], 0.5)
    found = rows(con, "headline")
    assert [r["sample_fraction"] for r in found] == [None, 0.5, 0.5, 0.5, 0.5]


def test_headline_of_a_criterion_that_nobody_counts(runs_con):
    with pytest.raises(QueryError, match="no pair counts criterion nonsense"):
        rows(runs_con, "headline", criterion="nonsense")


def test_uncounted_overlaps(runs, runs_con, tmp_path):
    assert rows(runs_con, "uncounted_overlaps") == []
    ours = [p for p in runs.pairs if p.name.startswith(("grpo-", "two-"))]
    made_of(tmp_path, runs, [*ours[:3], *ours[5:]])
    for late in ours[3:5]:
        _write(tmp_path, late)
    found = rows(sql.connect(tmp_path), "uncounted_overlaps")
    assert [(r["name"], r["counted"], r["not_counted"]) for r in found] == [
        ("grpo-0", 2, 2),
        ("grpo-1", 2, 2),
        ("grpo-2", 2, 2),
        ("grpo-3", 0, 4),
        ("grpo-4", 0, 4),
    ]


def test_excess_tells_unknown_labels_and_other_bases(runs, runs_con, tmp_path):
    found = {(r["name_a"], r["name_b"]): r for r in rows(runs_con, "overlap_excess")}
    assert found["dpo-0", "dpo-1"]["differs"] == "seed, unknown dataset"
    assert found["grpo-0", "grpo-1"]["differs"] == "dataset"
    bare = [pair(f"bare-{k}", group=k) for k in range(2)]
    bare[1].tensors[0].base_xxh3 = "another"
    (row,) = rows(made_of(tmp_path, runs, bare), "overlap_excess")
    assert row["differs"] == "unknown algorithm, unknown dataset, unknown seed"
    # a lift over some tensors is none over all of them
    assert (row["lift_magnitude"], row["excess_share_magnitude"]) == (None, None)
    assert row["lift_uniform"] > 1


def test_where_chance_fills_the_smaller_mask_there_is_no_excess_share(runs, tmp_path):
    """One busy row and one busy column: the margins expect 21 of 19 weights in common."""
    cross = np.zeros((10, 10), int)
    cross[0], cross[:, 0] = 1, 1
    crossed = []
    for k in range(2):
        t = Tensor("w.weight", (10, 10), None, "w", "other", base_xxh3="b")
        t.exponent, t.level, t.bucket = np.full(100, -5), cross.ravel(), cross.ravel()
        crossed.append(pair(f"cross-{k}", its=[t]))
    (row,) = rows(made_of(tmp_path, runs, crossed), "overlap_excess")
    assert row["shared"] == row["changed_a"] == 19
    assert row["lift_margins"] < 1 and row["excess_share_margins"] is None
    assert row["excess_share_uniform"] == row["excess_share_magnitude"] == 1


def test_headline_of_two_runs_has_no_interval(runs, tmp_path):
    con = made_of(tmp_path, runs, [p for p in runs.pairs if p.name.startswith("two-")])
    found = rows(con, "headline")
    assert [r["n"] for r in found] == [2, 1, 1, 1, 1]
    assert {(r["low"], r["high"]) for r in found} == {(None, None)}


def test_headline_without_overlaps(runs, tmp_path):
    place = tmp_path / "store"
    shutil.copytree(runs.place, place)
    shutil.rmtree(place / "overlaps")
    found = rows(sql.connect(place), "headline")
    assert [r["measure"] for r in found] == ["sparsity"]


def test_consensus_groups(runs, runs_con):
    groups = {}
    for p in runs.pairs:
        if p.row["algorithm"] is not None and "exact" in p.criteria:
            groups.setdefault((p.row["algorithm"], p.row["base_source"]), []).append(p)
    expected = {
        key: (len(its), sum(p.row["numel"] for p in its), sorted(p.pair_id for p in its))
        for key, its in groups.items()
        if len(its) > 2
    }
    found = rows(runs_con, "consensus_groups")
    assert {
        (r["algorithm"], r["base_source"]): (r["runs"], r["bits"], r["members"]) for r in found
    } == expected
    assert len({r["name"] for r in found}) == len(found) == 2
    assert [r["bits"] for r in found] == sorted(r["bits"] for r in found)
