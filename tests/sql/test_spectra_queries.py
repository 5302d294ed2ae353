"""The queries over `spectra` against a slow oracle in plain Python over the same synthetic rows."""

import math
import re
import shutil
from statistics import mean, median

import pytest

from rlsparse_ray import sql, tables
from rlsparse_ray.errors import QueryError


def rows_of(pair, module="*"):
    """Measured rows with their tensors."""
    for row in pair.spectra:
        tensor = pair.compared[row["tensor_key"]]
        if module in ("*", tensor.module):
            yield row, tensor


def measured(pair, module="*"):
    return [(r, t) for r, t in rows_of(pair, module) if r["status"] == "measured"]


def average(values):
    known = [v for v in values if v is not None]
    return mean(known) if known else None


def weighted(values, weights):
    known = [(v, w) for v, w in zip(values, weights, strict=True) if v is not None]
    return sum(v * w for v, w in known) / sum(w for _, w in known) if known else None


def share(row, column):
    return None if row[column] is None else row[column] / min(row["rows"], row["columns"])


def chosen(store, pair):
    return [p for p in store.pairs if p.spectra and pair in ("*", p.name, p.pair_id)]


def rank_by_pair(store, pair="*", module="*"):
    for p in chosen(store, pair):
        rows = [r for r, _ in measured(p, module)]
        every = [r for r, _ in rows_of(p, module)]
        covered = {r["tensor_key"] for r in every}
        numel = [r["numel"] for r in rows]
        exact = [share(r, "matrix_rank") for r in rows]
        yield {
            "name": p.name,
            "measured": len(rows),
            "randomised": sum(r["method"] == "randomised" for r in rows),
            "unchanged": sum(r["status"] == "unchanged" for r in every),
            "not_measurable": 0,
            "no_row": sum(
                t.key not in covered and len(t.shape) == 2 and t.numel > 0
                for t in p.compared.values()
                if module in ("*", t.module)
            ),
            "numel": sum(numel),
            "density": sum(r["changed"] for r in rows) / sum(numel),
            "matrix_rank_share_unweighted": average(exact),
            "matrix_rank_share_weighted": weighted(exact, numel),
            "least_matrix_rank_share": min((s for s in exact if s is not None), default=None),
            "effective_rank_share_weighted": weighted(
                [share(r, "effective_rank") for r in rows], numel
            ),
            "stable_rank_unweighted": average([r["stable_rank"] for r in rows]),
            "median_stable_rank_unweighted": median(r["stable_rank"] for r in rows),
        } | {
            f"{name}_share_unweighted": average([share(r, name) for r in rows])
            for name in ("rank_1e6", "effective_rank", "energy_rank_99", "energy_rank_90")
        }


def by_module(store, pair):
    for p in chosen(store, pair):
        for module in sorted({t.module for _, t in measured(p)}):
            yield p, module, [r for r, _ in measured(p, module)]


def geometry_by_module(store, pair="*"):
    for p, module, rows in by_module(store, pair):
        energy = [r["update_norm"] ** 2 for r in rows]
        chance = [
            1 - r["k"] ** 2 / r["numel"] if r["outside_share"] is not None else None for r in rows
        ]
        yield {
            "name": p.name,
            "module": module,
            "matrices": len(rows),
            "numel": sum(r["numel"] for r in rows),
            "density": sum(r["changed"] for r in rows) / sum(r["numel"] for r in rows),
            "matrix_rank_share_unweighted": average([share(r, "matrix_rank") for r in rows]),
            "effective_rank_share_unweighted": average([share(r, "effective_rank") for r in rows]),
            "energy_rank_99_share_unweighted": average([share(r, "energy_rank_99") for r in rows]),
            "stable_rank_unweighted": average([r["stable_rank"] for r in rows]),
            "rank_k": 20,
            "top_energy_share": weighted([r["top_energy_share"] for r in rows], energy),
            "outside_share": weighted([r["outside_share"] for r in rows], energy),
            "outside_share_by_chance": weighted(chance, energy),
            "nss_unweighted": average([r["nss"] for r in rows]),
            "relative_norm": math.sqrt(sum(energy))
            / math.sqrt(sum(r["base_norm"] ** 2 for r in rows)),
        }


def principal_overlap(store, pair="*", module="*"):
    for p in chosen(store, pair):
        for kind in ("principal", "low_magnitude"):
            for alpha in (0.1, 0.5):
                pieces = [
                    (r, o)
                    for r, _ in measured(p, module)
                    for o in r["mask_overlaps"]
                    if (o["kind"], o["alpha"]) == (kind, alpha)
                ]
                if not pieces:
                    continue
                numel, changed = (sum(r[c] for r, _ in pieces) for c in ("numel", "changed"))
                size, shared = (sum(o[c] for _, o in pieces) for c in ("size", "shared"))
                uniform = sum(o["expected_uniform"] for _, o in pieces)
                magnitude = sum(o["expected_magnitude"] for _, o in pieces)
                yield {
                    "name": p.name,
                    "mask": kind,
                    "alpha": alpha,
                    "rank_k": 20,
                    "matrices": len(pieces),
                    "numel": numel,
                    "changed": changed,
                    "size": size,
                    "shared": shared,
                    "share_of_update": shared / changed,
                    "size_share": size / numel,
                    "share_of_mask": shared / size,
                    "density": changed / numel,
                    "expected_uniform": uniform,
                    "lift_uniform": shared / uniform,
                    "expected_magnitude": magnitude,
                    "lift_magnitude": shared / magnitude,
                }


def degrees(rows, column, function):
    return [None if r[column] is None else math.degrees(function(r[column])) for r in rows]


def spectral_shift(store, pair="*"):
    for p, module, rows in by_module(store, pair):
        angles = [r for r in rows if r["angles_left"] is not None]
        yield (
            {
                "name": p.name,
                "module": module,
                "rank_k": 20,
                "matrices": len(rows),
                "matrices_with_nss": sum(r["nss"] is not None for r in rows),
                "matrices_with_angles": len(angles),
                "nss_unweighted": average([r["nss"] for r in rows]),
                "largest_nss": max((r["nss"] for r in rows if r["nss"] is not None), default=None),
                "relative_norm_unweighted": average(
                    [r["update_norm"] / r["base_norm"] for r in rows]
                ),
                "median_gap": median(r["gap"] for r in angles) if angles else None,
            }
            | {
                f"{how}_{side}{end}": combine(degrees(rows, f"angles_{side}", function))
                if angles
                else None
                for side in ("left", "right")
                for how, end, function, combine in (
                    ("mean_angle", "_unweighted", mean, average),
                    ("largest_angle", "", max, lambda v: max(x for x in v if x is not None)),
                )
            }
            | {
                f"inside_{side}_share_{end}": average(values)
                for side, across in (("left", "rows"), ("right", "columns"))
                for end, values in (
                    ("unweighted", [r[f"inside_{side}_share"] for r in rows]),
                    ("by_chance", [r["k"] / r[across] for r in angles]),
                )
            }
        )


CASES = {
    "rank_by_pair": (rank_by_pair, [{}, {"pair": "dpo"}, {"module": "mlp.up_proj"}]),
    "geometry_by_module": (geometry_by_module, [{}, {"pair": "grpo-seed0"}]),
    "principal_overlap": (
        principal_overlap,
        [{}, {"pair": "dpo-0"}, {"module": "self_attn.q_proj"}],
    ),
    "spectral_shift": (spectral_shift, [{}, {"pair": "dpo"}]),
}
KEYS = ("name", "module", "mask", "alpha")


@pytest.mark.parametrize(
    ("name", "params"), [(name, p) for name, (_, cases) in CASES.items() for p in cases]
)
def test_query_against_oracle(store, con, name, params):
    def key(row):
        return [str(row.get(k)) for k in KEYS]

    expected = sorted(CASES[name][0](store, **params), key=key)
    found = sorted(sql.run_query(con, name, params).to_pylist(), key=key)
    assert expected and len(found) == len(expected)
    for got, want in zip(found, expected, strict=True):
        assert set(want) <= set(got)
        for column, value in want.items():
            close = isinstance(value, float)
            assert got[column] == (pytest.approx(value, rel=1e-12) if close else value), column


def test_what_was_not_measured_is_counted(store, con):
    rows = {r["name"]: r for r in sql.run_query(con, "rank_by_pair").to_pylist()}
    assert set(rows) == {"grpo-seed0", "dpo"}
    assert (rows["dpo"]["no_row"], rows["dpo"]["randomised"], rows["dpo"]["unchanged"]) == (1, 1, 0)
    assert rows["dpo"]["measured"] == 4 and rows["grpo-seed0"]["measured"] == 5


def test_a_module_without_spectra(con):
    with pytest.raises(QueryError, match=r"no module q_proj has spectra; there are: embed_tokens,"):
        sql.run_query(con, "rank_by_pair", {"module": "q_proj"})


def test_the_view_has_the_schema_and_its_comments(con):
    described = con.execute("DESCRIBE spectra").fetchall()
    assert [r[0] for r in described] == ["pair_id", *tables.SPECTRA.names]
    text = re.sub(r"\n +-- ", " ", (sql.queries_dir() / "setup.sql").read_text())
    for column in tables.SPECTRA:
        doc = re.escape(column.metadata[b"doc"].decode())
        assert re.search(rf"\n    {column.name},? +-- {doc}\n", text), column.name


def test_only_current_pairs_are_seen(con):
    ids = {i for (i,) in con.execute("SELECT DISTINCT pair_id FROM spectra").fetchall()}
    assert ids == {"grpo-seed0-0", "dpo-0"}


def test_a_store_without_spectra_has_the_view(store, con, tmp_path):
    place = tmp_path / "store"
    shutil.copytree(store.place, place, ignore=shutil.ignore_patterns("spectra"))
    with sql.connect(place) as bare:
        assert sql.run_sql(bare, "FROM spectra").num_rows == 0
        kinds = [r[:2] for r in bare.execute("DESCRIBE spectra").fetchall()]
        assert kinds == [r[:2] for r in con.execute("DESCRIBE spectra").fetchall()]
        assert all(sql.run_query(bare, name).num_rows == 0 for name in CASES)
