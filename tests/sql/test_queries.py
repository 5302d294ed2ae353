"""Every query against a slow oracle in plain Python over the same synthetic store."""

import itertools
import math
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from rlsparse_ray import sql
from tests.sql.conftest import ABS, COUNTED, ULPS, Pair, Store, Tensor


def ratio(a, b):
    return a / b if b else None


def measured(tensors, criterion):
    """numel, changed, density and sparsity of some tensors together."""
    numel = sum(t.numel for t in tensors)
    changed = sum(int(t.mask(criterion).sum()) for t in tensors)
    return {
        "numel": numel,
        "changed": changed,
        "density": ratio(changed, numel),
        "sparsity": ratio(numel - changed, numel),
    }


def unweighted(tensors, criterion):
    return median(measured([t], criterion)["sparsity"] for t in tensors if t.numel)


def by_pair(store: Store, criterion="exact"):
    for p in store.pairs:
        tensors = list(p.compared.values())
        row = p.row
        yield {
            "name": p.name,
            "criterion": criterion,
            "tensors": len(tensors),
            **measured(tensors, criterion),
            "reported_sparsity": row.get("reported_sparsity"),
            "median_sparsity_over_tensors_unweighted": unweighted(tensors, criterion),
            "tensors_identical": row["tensors_identical"],
            "tensors_partial": row["tensors_partial"],
            "tensors_not_compared": 3 if p.name == "dpo" else 0,
            "numel_not_compared": 2 * 99 + 6 * 5 + 9 + 3 * 4 if p.name == "dpo" else 0,
        }


def by(column):
    def oracle(store: Store, criterion="exact", pair="*"):
        for p in store.pairs:
            if pair not in ("*", p.name, p.pair_id):
                continue
            for value in {getattr(t, column) for t in p.compared.values()}:
                tensors = [t for t in p.compared.values() if getattr(t, column) == value]
                yield {
                    "name": p.name,
                    "pair_id": p.pair_id,
                    column: value,
                    "tensors": len(tensors),
                    **measured(tensors, criterion),
                    "median_sparsity_over_tensors_unweighted": (
                        unweighted(tensors, criterion) if sum(t.numel for t in tensors) else None
                    ),
                }

    return oracle


def by_pair_and_kind(store: Store, criterion="exact"):
    for p in store.pairs:
        tensors = list(p.compared.values())
        row = {"name": p.name, "sparsity": measured(tensors, criterion)["sparsity"]}
        for kind in sorted({t.kind for t in tensors}):
            some = [t for t in tensors if t.kind == kind]
            row[f"sparsity_{kind}"] = measured(some, criterion)["sparsity"]
        yield row


def sweep(store: Store, pair="*"):
    for p in store.pairs:
        if pair in ("*", p.name, p.pair_id):
            yield {"name": p.name, "numel": p.row["numel"], "sparsity_other": None} | {
                f"sparsity_{c.replace(':', '_').replace('-', '_')}": measured(
                    p.compared.values(), c
                )["sparsity"]
                for c in COUNTED
            }


def shared_bits(x: Tensor, y: Tensor, criterion):
    return int(np.logical_and(x.mask(criterion), y.mask(criterion)).sum())


def sums(x: list[Tensor], y: list[Tensor], criterion):
    """The overlap of some tensors together, with the uniform baseline over all of them."""
    n = sum(t.numel for t in x)
    a = sum(int(t.mask(criterion).sum()) for t in x)
    b = sum(int(t.mask(criterion).sum()) for t in y)
    shared = sum(shared_bits(s, t, criterion) for s, t in zip(x, y, strict=True))
    spread = math.sqrt(a * (n - a) * b * (n - b))
    return {
        "numel": n,
        "changed_a": a,
        "changed_b": b,
        "shared": shared,
        "o1": ratio(shared, a),
        "o2": ratio(shared, b),
        "jaccard": ratio(shared, a + b - shared),
        "phi": ratio(n * shared - a * b, spread),
        "expected_uniform": ratio(a * b, n),
        "lift_uniform": ratio(shared * n, a * b),
        "same_base": all(s.base_xxh3 == t.base_xxh3 for s, t in zip(x, y, strict=True)),
    }


def total(a: Pair, b: Pair, criterion):
    matched = [k for k in a.compared if k in b.compared]
    x, y = [a.compared[k] for k in matched], [b.compared[k] for k in matched]
    lone = [t for p, q in ((a, b), (b, a)) for k, t in p.compared.items() if k not in q.compared]
    row = sums(x, y, criterion)
    each = [sums([s], [t], criterion)["expected_uniform"] for s, t in zip(x, y, strict=True)]
    expected = sum(e for e in each if e is not None)
    return row | {
        "expected_tensor": expected,
        "lift_tensor": ratio(row["shared"], expected),
        "tensors_unmatched": len(lone),
        "numel_unmatched": sum(t.numel for t in lone),
    }


def overlap(store: Store, a, b, criterion="exact"):
    x, y = store.pair(a), store.pair(b)
    yield {"level": "total", "tensor": "TOTAL", **total(x, y, criterion)}
    for key in x.compared.keys() | y.compared.keys():
        s, t = x.compared.get(key), y.compared.get(key)
        row = {"tensor": (s or t).name, "numel": (s or t).numel}
        if s and t:
            facts = sums([s], [t], criterion)
            same = {
                "expected_tensor": facts["expected_uniform"],
                "lift_tensor": facts["lift_uniform"],
                "tensors_unmatched": 0,
                "numel_unmatched": 0,
            }
            yield row | {"level": "tensor", "layer": s.layer} | same | facts
        else:
            yield row | {
                "level": "unmatched",
                "changed_a": int(s.mask(criterion).sum()) if s else None,
                "changed_b": int(t.mask(criterion).sum()) if t else None,
                "shared": None,
                "lift_uniform": None,
            }


def matrix(store: Store, criterion="exact"):
    pairs = sorted((p for p in store.pairs if criterion in p.criteria), key=lambda p: p.pair_id)
    for a, b in itertools.combinations(pairs, 2):
        matched = len(a.compared.keys() & b.compared.keys())
        if matched:
            names = {"name_a": a.name, "name_b": b.name, "tensors": matched}
            yield names | total(a, b, criterion)


def population(store: Store, criterion="exact", pair="*"):
    pairs = sorted((p for p in store.pairs if criterion in p.criteria), key=lambda p: p.pair_id)
    for a, b in itertools.combinations(pairs, 2):
        matched = a.compared.keys() & b.compared.keys()
        if not matched or pair not in ("*", a.name, b.name, a.pair_id, b.pair_id):
            continue
        facts = total(a, b, criterion)
        for name in ("same_base", "tensors_unmatched", "numel_unmatched"):
            facts.pop(name)
        each = [(a.compared[k], b.compared[k]) for k in matched]
        strata = [by_strata(s, t, criterion) for s, t in each]
        bits = [shared_bits(s, t, criterion) for s, t in each]
        covered = [n for n, e in zip(bits, strata, strict=True) if e is not None]
        expected = sum(e for e in strata if e) if covered else None
        margins = sum(by_margins(s, t, criterion) for s, t in each)
        yield facts | {
            "name_a": a.name,
            "name_b": b.name,
            "tensors": len(matched),
            "sample_fraction": 1.0,
            "standard_error": 0.0,
            "expected_margins": margins,
            "lift_margins": facts["shared"] / margins,
            "lift_magnitude": ratio(sum(covered), expected),
            "all_magnitude": all(e is not None for e in strata),
        }


def by_strata(x: Tensor, y: Tensor, criterion):
    """None where the bases differ, by their hashes or by their exponents."""
    if x.numel == 0:
        return 0.0
    if x.base_xxh3 != y.base_xxh3 or sorted(x.exponent) != sorted(y.exponent):
        return None
    inside = [(x.exponent == e, y.exponent == e) for e in set(x.exponent.tolist())]
    return sum(x.mask(criterion)[i].sum() * y.mask(criterion)[j].sum() / i.sum() for i, j in inside)


def by_margins(x: Tensor, y: Tensor, criterion):
    p, q = (t.mask(criterion).astype(float) for t in (x, y))
    if not p.sum() * q.sum():
        return 0.0
    if len(x.shape) < 2:
        return p.sum() * q.sum() / x.numel
    p, q = (m.reshape(-1, x.shape[-1]) for m in (p, q))
    rows = (p.sum(axis=1) * q.sum(axis=1)).sum()
    return rows * (p.sum(axis=0) * q.sum(axis=0)).sum() / (p.sum() * q.sum())


def norms(store: Store, criterion="exact", pair="*"):
    for p in store.pairs:
        rest = [t for t in p.compared.values() if t.kind != "norm"]
        rms = math.sqrt(sum(t.update_l2**2 for t in rest) / sum(t.numel for t in rest))
        for t in p.compared.values():
            if t.kind == "norm" and pair in ("*", p.name):
                facts = measured([t], criterion)
                yield {
                    "name": p.name,
                    "tensor": t.name,
                    "changed": facts["changed"],
                    "sparsity": facts["sparsity"],
                    "base_rms": 1.0,
                    "half_ulp": 0.5 * 0.0078125,
                    "update_max": t.update_max,
                    "update_max_in_half_ulps": t.update_max * 256,
                    "update_rms_elsewhere": rms,
                    "elsewhere_in_half_ulps": rms * 256,
                }


def step_sizes(store: Store, pair="*"):
    for p in store.pairs:
        if pair not in ("*", p.name, p.pair_id):
            continue
        buckets = [int(b) for t in p.compared.values() for b in t.bucket]
        changed = sum(1 for b in buckets if b)
        for i, (low, high) in enumerate([*ULPS, (None, None)]):
            if i in buckets:
                yield {
                    "name": p.name,
                    "ulp_low": low,
                    "ulp_high": high,
                    "numel": buckets.count(i),
                    "share_of_changed": buckets.count(i) / changed if i else None,
                }


def storage(store: Store):
    def entropy(t, criterion):
        p = measured([t], criterion)["density"] or 0
        return -t.numel * sum(q * math.log2(q) for q in (p, 1 - p) if q)

    for p in store.pairs:
        tensors = list(p.compared.values())
        numel = len(p.criteria) * sum(t.numel for t in tensors)
        sizes = {
            path: path.stat().st_size
            for path in store.place.rglob(f"pair_id={p.pair_id}/**/*.parquet")
            if path.name not in ("pairs.parquet", "spectra.parquet")
        }
        masks = sum(size for path, size in sizes.items() if "masks" in path.parts)
        yield {
            "name": p.name,
            "files": len(sizes),
            "bytes": sum(sizes.values()),
            "mask_bytes": masks,
            "mask_bits_a_parameter": 8 * masks / numel,
            "entropy_bits_a_parameter": sum(entropy(t, c) for t in tensors for c in p.criteria)
            / numel,
        }


PAIR_AND_CRITERION = [{}, {"pair": "dpo"}, {"criterion": "abs:1e-6", "pair": "grpo-seed0-0"}]
CASES = {
    "sparsity_by_pair": (by_pair, [{}, {"criterion": "rel:1e-3"}]),
    "sparsity_by_layer": (by("layer"), PAIR_AND_CRITERION),
    "sparsity_by_module": (by("module"), PAIR_AND_CRITERION),
    "sparsity_by_kind": (by("kind"), PAIR_AND_CRITERION),
    "sparsity_by_pair_and_kind": (by_pair_and_kind, [{}, {"criterion": "abs:1e-3"}]),
    "tolerance_sweep": (sweep, [{}, {"pair": "other"}]),
    "overlap": (
        overlap,
        [
            {"a": "grpo-seed0", "b": "grpo-seed1"},
            {"a": "grpo-seed1", "b": "grpo-seed0", "criterion": "abs:1e-5"},
            {"a": "dpo", "b": "grpo-seed0"},
            {"a": "dpo", "b": "dpo"},
        ],
    ),
    "overlap_matrix": (matrix, [{}, {"criterion": "abs:1e-5"}]),
    "population_overlap": (population, [{}, {"criterion": "abs:1e-5"}, {"pair": "dpo"}]),
    "norms_untouched": (norms, [{}, {"pair": "dpo", "criterion": "abs:1e-4"}]),
    "storage": (storage, [{}]),
    "step_sizes": (step_sizes, [{}, {"pair": "grpo-seed1"}]),
}


def ordered(rows, columns):
    """Rows without an order, by those columns that floats cannot blur."""
    exact = [c for c in columns if all(not isinstance(r[c], float) for r in rows)]
    return sorted(rows, key=lambda row: [str(row[c]) for c in exact])


def test_every_query_is_tested():
    texts = [path.read_text() for path in Path(__file__).parent.parent.rglob("test_*.py")]
    untested = {q for q in sql.queries() if not any(f'"{q}"' in text for text in texts)}
    assert untested == set()
    assert CASES.keys() <= sql.queries().keys()


@pytest.mark.parametrize(
    ("name", "params"), [(name, p) for name, (_, cases) in CASES.items() for p in cases]
)
def test_query_agrees_with_the_oracle(store, con, name, params):
    expected = list(CASES[name][0](store, **params))
    table = sql.run_query(con, name, params)
    columns = sorted({c for row in expected for c in row})
    assert set(columns) <= set(table.column_names)
    found = [{c: row[c] for c in columns} for row in table.to_pylist()]
    expected = [{c: row.get(c, None) for c in columns} | row for row in expected]
    for got, want in zip(ordered(found, columns), ordered(expected, columns), strict=True):
        for column in want:
            value = want[column]
            if isinstance(value, float):
                value = pytest.approx(value, rel=1e-12, abs=1e-12)
            assert got[column] == value, column


def test_nothing_is_empty(store):
    for name, (oracle, cases) in CASES.items():
        for params in cases:
            assert list(oracle(store, **params)), (name, params)


def test_order_is_for_reading(con):
    rows = sql.run_query(con, "overlap", {"a": "dpo", "b": "grpo-seed0"}).to_pylist()
    assert [r["level"] for r in rows] == ["total"] + ["tensor"] * 9 + ["unmatched"] * 2
    assert [r["layer"] for r in rows[1:10]] == [0, 0, 0, 1, 1, 1, None, None, None]


def test_a_pair_without_the_criterion_stays_visible(damaged):
    def forget(rows):
        return [r for r in rows if r["criterion"] != ABS[0]]

    damaged.edit("counts/pair_id=dpo-0/counts.parquet", forget)
    con = sql.connect(damaged.place)
    rows = sql.run_query(con, "sparsity_by_pair", {"criterion": ABS[0]}).to_pylist()
    assert {r["name"]: r["sparsity"] is None for r in rows} == {
        p.name: p.name == "dpo" for p in damaged.pairs
    }
    families = sql.run_query(con, "sparsity_by_family", {"criterion": ABS[0]}).to_pylist()
    assert {(r["family"], r["algorithm"]): r["pairs_not_counted"] for r in families} == {
        ("alien", "GRPO"): 0,
        ("tiny", "DPO"): 1,
        ("tiny", "GRPO"): 0,
    }


def test_formulas_at_the_edges(con):
    row = sql.run_sql(
        con,
        """SELECT density(0, 0) AS density, sparsity(0, 0) AS sparsity, lift(3, 0) AS lift,
        expected_uniform(0, 0, 0) AS expected, jaccard(0, 0, 0) AS jaccard,
        phi(0, 0, 5, 10) AS phi, phi(5, 5, 5, 5) AS phi_all, phi(4, 4, 4, 8) AS phi_one,
        phi(2*n, 2*n, 2*n, 4*n) AS phi_large, expected_uniform(2*n, 2*n, 4*n) / n AS large
        FROM (SELECT 250000000000 AS n)""",
    ).to_pylist()[0]
    nulls = ("density", "sparsity", "lift", "expected", "jaccard", "phi", "phi_all")
    assert [row[c] for c in nulls] == [None] * 7
    assert [row["phi_one"], row["phi_large"], row["large"]] == pytest.approx([1, 1, 1])


def test_overlap_of_one_with_all(con):
    rows = sql.run_sql(con, "FROM overlap_total('dpo', '*') ORDER BY pair_b").to_pylist()
    assert [r["pair_b"] for r in rows] == ["grpo-seed0-0", "grpo-seed1-0", "other-0"]
    assert rows[2]["numel"] == 0 and rows[2]["o1"] is None and rows[2]["tensors_unmatched"] == 11
