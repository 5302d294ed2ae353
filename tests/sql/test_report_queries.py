"""The queries that only the report asks, against numpy over the synthetic stores."""

import math
import shutil

import numpy as np
import pytest

from rlsparse_ray import sql
from tests.builders import overlap_directly
from tests.sql.conftest import COUNTED, Store, _write
from tests.sql.test_family_queries import zoo  # noqa: F401 - a fixture
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
        assert row["low"] == pytest.approx(back(value - 1.96 * error), rel=1e-9)
        assert row["high"] == pytest.approx(back(value + 1.96 * error), rel=1e-9)
    assert found["lift_magnitude"]["value"] < found["lift_uniform"]["value"]


def test_headline_of_two_runs_has_no_interval(runs, tmp_path):
    for p in runs.pairs:
        if p.name.startswith("two-"):
            _write(tmp_path, p)
    (tmp_path / "store.json").write_text((runs.place / "store.json").read_text())
    overlap_directly(tmp_path)
    found = rows(sql.connect(tmp_path), "headline")
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
