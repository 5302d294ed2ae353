"""The queries about step sizes and tolerances against parameters counted one by one."""

import math
import os

import numpy as np
import pytest

from rlsparse_ray import sql
from rlsparse_ray.errors import QueryError
from tests.builders import BF16, extract_directly, weights, write_corpus, write_model
from tests.sql.conftest import ULPS


def chosen(store, pair):
    return [p for p in store.pairs if pair in ("*", p.name, p.pair_id)]


def by_kind(store, pair="*"):
    for p in chosen(store, pair):
        for kind in {t.kind for t in p.compared.values()}:
            places = [int(b) for t in p.compared.values() if t.kind == kind for b in t.bucket if b]
            if not places:
                continue
            finite = sorted(max(map(abs, ULPS[b])) for b in places if b < len(ULPS))
            up = sum(1 for b in places if b < len(ULPS) and ULPS[b][0] > 0)

            def share(sizes, places=places):
                found = [b for b in places if b < len(ULPS) and max(map(abs, ULPS[b])) in sizes]
                return len(found) / len(places)

            yield {
                "name": p.name,
                "kind": kind,
                "changed": len(places),
                "share_1_ulp": share((1,)),
                "share_2_ulps": share((2,)),
                "share_3_to_4_ulps": share((4,)),
                "share_over_4_ulps": 0.0,
                "share_not_finite": 1 - len(finite) / len(places),
                "share_up": up / len(finite),
                "median_step_at_most": float(finite[(len(finite) - 1) // 2]),
                "pair_id": p.pair_id,
            }


def hidden(store, tolerance="abs:1e-5", pair="*"):
    for p in chosen(store, pair):
        for kind in (None, *{t.kind for t in p.compared.values()}):
            tensors = [t for t in p.compared.values() if kind in (None, t.kind)]
            numel = sum(t.numel for t in tensors)
            exact = sum(int(t.mask("exact").sum()) for t in tensors)
            visible = sum(int(t.mask(tolerance).sum()) for t in tensors)
            sparsity = {"exact": None, "visible": None, "gained": None}
            if numel:
                sparsity = {
                    "exact": 1 - exact / numel,
                    "visible": 1 - visible / numel,
                    "gained": (exact - visible) / numel,
                }
            yield {
                "name": p.name,
                "level": "kind" if kind else "total",
                "kind": kind,
                "numel": numel,
                "changed_exact": exact,
                "changed_visible": visible,
                "hidden": exact - visible,
                "hidden_share": (exact - visible) / exact if exact else None,
                "density_exact": exact / numel if numel else None,
                "density_visible": visible / numel if numel else None,
                **{f"sparsity_{key}": value for key, value in sparsity.items()},
                "pair_id": p.pair_id,
            }


def steps_until_seen(ulp, tolerance):
    """Counted up one by one."""
    ulps = 1
    while not ulps * ulp > tolerance:
        ulps += 1
    return ulps


def threshold(store, pair="*"):
    for p in chosen(store, pair):
        for exponent in {int(e) for t in p.compared.values() for e in t.exponent}:
            inside = [(t, t.exponent == exponent) for t in p.compared.values()]
            numel = sum(int(where.sum()) for _, where in inside)
            exact = sum(int((t.mask("exact") & where).sum()) for t, where in inside)
            visible = sum(int((t.mask("abs:1e-5") & where).sum()) for t, where in inside)
            known = "abs:1e-5" in p.criteria
            ulp = math.ldexp(1, exponent - 7)
            ulps = steps_until_seen(ulp, 1e-5)
            yield {
                "name": p.name,
                "compare_dtype": "BF16",
                "exponent": exponent,
                "numel": numel,
                "changed_exact": exact,
                "changed_visible": visible if known else None,
                "density_exact": exact / numel,
                "density_visible": visible / numel if known else None,
                "ulp": ulp,
                "smallest_visible_ulps": float(ulps),
                "smallest_visible_step": ulps * ulp,
                "one_ulp_visible": exponent >= -9,
                "pair_id": p.pair_id,
            }


CASES = {
    "step_sizes_by_kind": (by_kind, [{}, {"pair": "grpo-seed1"}]),
    "hidden_by_tolerance": (hidden, [{}, {"pair": "dpo", "tolerance": "abs:1e-3"}]),
    "visible_threshold": (threshold, [{}, {"pair": "grpo-seed0"}]),
}


def key(row):
    columns = ("name", "pair_id", "level", "kind", "compare_dtype", "exponent")
    return [str(row.get(column)) for column in columns]


@pytest.mark.parametrize(
    ("name", "params"), [(name, p) for name, (_, cases) in CASES.items() for p in cases]
)
def test_query_agrees_with_the_oracle(store, con, name, params):
    expected = sorted(CASES[name][0](store, **params), key=key)
    found = sorted(sql.run_query(con, name, params).to_pylist(), key=key)
    assert expected
    assert len(found) == len(expected)
    for got, want in zip(found, expected, strict=True):
        assert got.keys() == want.keys()
        for column, value in want.items():
            near = isinstance(value, float)
            wanted = pytest.approx(value, rel=1e-12, abs=1e-12) if near else value
            assert got[column] == wanted, (column, want)


def test_what_the_tolerance_sees_where_a_relative_one_is_asked(con):
    with pytest.raises(QueryError, match="tolerance rel:1e-3 is not abs:NUMBER"):
        sql.run_query(con, "visible_threshold", {"tolerance": "rel:1e-3"})
    with pytest.raises(QueryError, match="no pair counts criterion abs:1e-9"):
        sql.run_query(con, "hidden_by_tolerance", {"tolerance": "abs:1e-9"})


@pytest.fixture(scope="module")
def one_ulp_up(tmp_path_factory):
    """Every weight moved to the next number away from zero, in three formats."""
    folder = tmp_path_factory.mktemp("ulps")
    base = {"layers.0.self_attn.q_proj.weight": weights(1, (300, 70), 0.004)}
    base |= {"layers.0.mlp.up_proj.weight": np.asarray(weights(2, (40, 30), 0.004), np.float16)}
    base |= {"layers.0.mlp.down_proj.weight": np.asarray(weights(3, (40, 30), 0.004), np.float32)}
    base["layers.0.self_attn.q_proj.weight"][0, :3] = np.array([0.0, -0.0, 1e-39], BF16)
    unsigned = {2: np.uint16, 4: np.uint32}
    tuned = {
        name: (w.view(unsigned[w.itemsize]) + 1).astype(unsigned[w.itemsize]).view(w.dtype)
        for name, w in base.items()
    }
    for number, (name, model) in enumerate({"base": base, "tuned": tuned}.items()):
        written = write_model(folder / name, model)
        # files of one shape, written in one tick of the clock, would be taken for one model
        os.utime(written / "model.safetensors", (0, number))
    pairs = [{"name": "up", "base": "base", "tuned": "tuned"}]
    extract_directly(write_corpus(folder / "corpus.yaml", pairs), folder / "store")
    with sql.connect(folder / "store") as con:
        yield con


def test_one_ulp_is_seen_exactly_where_the_query_says_so(one_ulp_up):
    rows = sql.run_query(one_ulp_up, "visible_threshold").to_pylist()
    assert {row["compare_dtype"] for row in rows} == {"BF16", "F16", "F32"}
    assert {row["one_ulp_visible"] for row in rows if row["compare_dtype"] == "BF16"} == {
        True,
        False,
    }
    for row in rows:
        assert row["density_exact"] == 1
        assert row["density_visible"] == (1 if row["one_ulp_visible"] else 0)
    lowest = [row for row in rows if row["exponent"] == -127]
    assert [(row["ulp"], row["smallest_visible_ulps"]) for row in lowest] == [(2.0**-133, None)]


def test_every_step_of_one_ulp_up(one_ulp_up):
    rows = sql.run_query(one_ulp_up, "step_sizes_by_kind").to_pylist()
    assert [(row["kind"], row["changed"]) for row in rows] == [("attention", 21000), ("mlp", 2400)]
    for row in rows:
        assert row["share_1_ulp"] == 1
        assert row["median_step_at_most"] == 1
        # away from zero is down for a negative weight
        assert 0.45 < row["share_up"] < 0.55
