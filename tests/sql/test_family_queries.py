"""The queries over families of runs against slow numpy and scipy on a small zoo of runs."""

import hashlib
import itertools
import json
import math
import re
import shutil
from fractions import Fraction
from statistics import mean, median, stdev

import numpy as np
import pytest
from scipy import stats

from rlsparse_ray import sql
from rlsparse_ray.population.consensus import consensus
from rlsparse_ray.population.overlap import overlap_unit
from rlsparse_ray.population.overlap_commit import commit_overlaps, commit_units
from rlsparse_ray.population.overlap_plan import begin, plan_overlaps
from rlsparse_ray.store import Store as Store_
from tests.builders import overlap_directly
from tests.sql.conftest import Pair, Store, Tensor, _row, _write
from tests.sql.test_queries import measured

SHAPES = [("embed_tokens", (700, 101), None, "embedding"), ("norm", (50,), None, "norm")] + [
    (f"layers.{i}.{module}", shape, i, kind)
    for i in range(3)
    for module, shape, kind in (
        ("self_attn.q_proj", (33, 17), "attention"),
        ("mlp.up_proj", (40, 25), "mlp"),
    )
]


def tensors(seed, base, group, busy=1.0):
    """Weights of low exponents change more often; a part of the changes are those of a group."""
    own, weights = np.random.default_rng(seed), np.random.default_rng(0)
    shared = np.random.default_rng(1000 + group)
    found = []
    for name, shape, layer, kind in SHAPES:
        module = name.split(".", 2)[2] if layer is not None else name
        t = Tensor(f"{name}.weight", shape, layer, module, kind)
        t.exponent = weights.integers(-9, -3, t.numel)
        planted = shared.random(t.numel) < 0.04
        scale = busy * own.uniform(0.8, 1.2) * (1 + (layer or 0))
        changed = (own.random(t.numel) < 0.03 * scale * (-3 - t.exponent)) | planted
        t.level = np.where(changed & (kind != "norm"), own.integers(1, 8, t.numel), 0)
        t.bucket = np.where(t.level > 0, 1, 0)
        t.base_xxh3 = f"{base}/{name}"
        found.append(t)
    return found


def pair(name, base="b1", group=0, its=None, busy=1.0, **facts):
    its = its or tensors(sum(map(ord, name)), base, group, busy)
    sources = {"name": name, "base_source": base, "base_revision": "r", "tuned_source": name}
    facts = {"family": "tiny", "stage": "RL"} | facts
    return Pair(f"{name}-0", name, base, its, _row(its, sources | facts))


def make_zoo():
    """Two groups of runs on one base, whose labels are their algorithms, and some odd ones."""
    runs = [
        pair(f"grpo-{k}", group=1, algorithm="GRPO", dataset=f"d{k % 2}", seed=k // 2)
        for k in range(5)
    ]
    runs += [
        pair(f"dpo-{k}", group=2, algorithm="DPO", dataset=[None, "d0", "d1", "d1"][k], seed=k % 2)
        for k in range(4)
    ]
    runs += [pair(f"two-{k}", "b2", 1, algorithm="GRPO", family="two", seed=k) for k in range(2)]
    runs += [pair("loud", group=3, busy=2.5)]
    alien = Tensor("h.0.attn.weight", (9, 9), 0, "attn", "attention", base_xxh3="b3")
    alien.exponent, alien.bucket = np.full(81, -5), np.zeros(81, int)
    alien.level, alien.bucket = np.arange(81) % 2, np.arange(81) % 2
    runs += [pair("alien", "b3", its=[alien], family="alien", algorithm="GRPO", stage=None)]
    runs[1].criteria = ["exact"]
    steps = [
        pair(f"traj-{a}-{b}", group=4, algorithm="PRIME", trajectory="t", step_from=a, step_to=b)
        for a, b in ((0, 10), (10, 20), (0, 20))
    ]
    return [*runs, steps[2]], steps[:2]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    runs, within = make_zoo()
    place = tmp_path_factory.mktemp("zoo") / "store"
    for p in [*runs, *within]:
        _write(place, p)
    (place / "store.json").write_text(json.dumps({"format": "rlsparse_ray", "schema_version": 1}))
    return Store(place, sorted(runs, key=lambda p: p.pair_id))


@pytest.fixture(scope="module")
def zoo_con(zoo):
    return sql.connect(zoo.place)


def rows(con, query, **params):
    return sql.run_query(con, query, params).to_pylist()


def sparsity_of(p, criterion="exact"):
    return measured(p.compared.values(), criterion)["sparsity"]


def draw(*words):
    return hashlib.md5(" ".join(map(str, words)).encode(), usedforsecurity=False)


def families(zoo, criterion="exact"):
    def labels(p):
        return p.row["family"], p.row["algorithm"], p.row["stage"]

    for group in {labels(p) for p in zoo.pairs}:
        pairs = [p for p in zoo.pairs if labels(p) == group]
        facts = [measured(p.compared.values(), criterion) for p in pairs]
        each = [f["sparsity"] for f in facts]
        row = dict(zip(("family", "algorithm", "stage"), group, strict=True))
        row |= measured([t for p in pairs for t in p.compared.values()], criterion)
        row |= {"sparsity_low": None, "sparsity_high": None}
        if len(pairs) > 1:
            found = []
            for r in range(1000):
                places = [
                    int.from_bytes(draw(r, d).digest()[8:], "little") % len(pairs)
                    for d in range(len(pairs))
                ]
                changed = sum(facts[k]["changed"] for k in places)
                found.append(1 - changed / sum(facts[k]["numel"] for k in places))
            row["sparsity_low"], row["sparsity_high"] = np.quantile(found, [0.025, 0.975])
        yield row | {
            "pairs": len(pairs),
            "median_sparsity_over_pairs_unweighted": median(each),
            "stddev_of_sparsity_over_pairs": stdev(each) if len(each) > 1 else None,
            "min_sparsity_of_a_pair": min(each),
            "max_sparsity_of_a_pair": max(each),
        }


def profile(zoo, key, criterion="exact", family="*"):
    """By layer or module: one value a run, then statistics over the runs."""
    cells = {}
    for p in zoo.pairs:
        if family in ("*", p.row["family"]):
            depth = 1 + max(t.layer for t in p.compared.values() if t.layer is not None)
            for value in {key(t, depth) for t in p.compared.values()}:
                its = [t for t in p.compared.values() if key(t, depth) == value]
                cells.setdefault((p.row["family"], *value), []).append(its)
    for cell, groups in cells.items():
        each = [measured(its, criterion)["sparsity"] for its in groups]
        yield (
            cell,
            {
                "runs": len(groups),
                **measured([t for its in groups for t in its], criterion),
                "mean_sparsity_over_runs_unweighted": mean(each),
                "stddev_of_sparsity_over_runs": stdev(each) if len(each) > 1 else None,
                "min_sparsity_of_a_run": min(each),
                "max_sparsity_of_a_run": max(each),
            },
        )


def layers(zoo, **params):
    for (family, depth, layer), row in profile(zoo, lambda t, depth: (depth, t.layer), **params):
        relative = layer / (depth - 1) if layer is not None and depth > 1 else None
        yield row | {
            "family": family,
            "layers": depth,
            "layer": layer,
            "relative_depth": relative,
        }


def modules(zoo, **params):
    for (family, kind, module), row in profile(zoo, lambda t, _: (t.kind, t.module), **params):
        yield row | {"family": family, "kind": kind, "module": module}


def overlap_of(a, b, criterion="exact"):
    """Everything about two runs, from their unpacked bits."""
    keys = [k for k in a.compared if k in b.compared]
    if not keys:
        return None
    x = {k: a.compared[k].mask(criterion) for k in keys}
    y = {k: b.compared[k].mask(criterion) for k in keys}
    one, two = (np.concatenate([m[k] for k in keys]) for m in (x, y))
    n, ca, cb, shared = one.size, int(one.sum()), int(two.sum()), int((one & two).sum())
    tensor = sum(x[k].sum() * y[k].sum() / x[k].size for k in keys)
    same = [k for k in keys if a.compared[k].base_xxh3 == b.compared[k].base_xxh3]
    magnitude = sum(
        x[k][e].sum() * y[k][e].sum() / e.sum()
        for k in same
        for e in (a.compared[k].exponent == v for v in set(a.compared[k].exponent.tolist()))
    )
    return {
        "same_base": len(same) == len(keys),
        "o": (shared / ca + shared / cb) / 2,
        "jaccard": shared / (ca + cb - shared),
        "phi": float(np.corrcoef(one, two)[0, 1]),
        "lift_uniform": shared * n / (ca * cb),
        "lift_tensor": float(shared / tensor),
        "lift_magnitude": float(sum((x[k] & y[k]).sum() for k in same) / magnitude)
        if same
        else None,
    }


def all_overlaps(zoo, criterion="exact"):
    kept = [p for p in zoo.pairs if criterion in p.criteria]
    for a, b in itertools.combinations(kept, 2):
        found = overlap_of(a, b, criterion)
        if found:
            yield a, b, found


def groups(zoo, criterion="exact"):
    def word(a, b, label):
        values = a.row[label], b.row[label]
        return "unknown" if None in values else ["different", "same"][values[0] == values[1]]

    found = {}
    for a, b, o in all_overlaps(zoo, criterion):
        base = "same" if o["same_base"] else "different"
        labels = [word(a, b, x) for x in ("family", "algorithm", "dataset", "seed")]
        found.setdefault((base, *labels), []).append(o)
    for (base, family, algorithm, dataset, seed), members in found.items():
        lifts = [o["lift_magnitude"] for o in members if o["lift_magnitude"] is not None]
        between = f", {family} family" if base == "different" else ""
        yield {
            "relation": f"{base} base{between}, {algorithm} algorithm, {dataset} dataset, "
            f"{seed} seed",
            "pairs_of_runs": len(members),
            "mean_share_of_changed": mean(o["o"] for o in members),
            "mean_jaccard": mean(o["jaccard"] for o in members),
            "mean_phi": mean(o["phi"] for o in members),
            "lift_uniform_mean": mean(o["lift_uniform"] for o in members),
            "lift_tensor_mean": mean(o["lift_tensor"] for o in members),
            "lift_magnitude_mean": mean(lifts) if lifts else None,
            "lift_magnitude_stddev": stdev(lifts) if len(lifts) > 1 else None,
            "pairs_of_runs_with_magnitude": len(lifts),
        }


def robust_z(values):
    off = np.asarray(values) - np.median(values)
    mad = stats.median_abs_deviation(values, scale="normal")
    if not mad:
        mad = np.abs(off).mean() * math.sqrt(math.pi / 2)
    return off / mad if mad else off * 0


def outliers(zoo, criterion="exact", family="*", threshold=3.5, min_runs=5):
    cells = {}
    for p in zoo.pairs:
        if family in ("*", p.row["family"]):
            cells.setdefault((p.row["family"], None), []).append((p, list(p.compared.values())))
            for t in p.compared.values():
                cells.setdefault((p.row["family"], t.key), []).append((p, [t]))
    for (family_, key), members in cells.items():
        values = [measured(its, criterion)["sparsity"] for _, its in members]
        for (p, its), value, z in zip(members, values, robust_z(values), strict=True):
            far = abs(z) >= float(threshold) and len(members) >= int(min_runs)
            if key is None or far:
                yield {
                    "level": "run" if key is None else "tensor",
                    "family": family_,
                    "name": p.name,
                    "tensor": None if key is None else its[0].name,
                    "sparsity": value,
                    "median_sparsity_of_family_unweighted": float(np.median(values)),
                    "runs": len(members),
                    "robust_z": float(z),
                    "outlier": bool(far),
                }


def cores(zoo, criterion="exact", family="*", algorithm="*"):
    members = [
        p
        for p in zoo.pairs
        if criterion in p.criteria
        and family in ("*", p.row["family"])
        and algorithm in ("*", p.row["algorithm"])
    ]
    every = {k: t for p in members for k, t in p.compared.items() if t.numel}
    common = [k for k in every if all(k in p.compared for p in members)]
    for kind in ["total", *{t.kind for t in every.values()}]:
        keys = [k for k in common if kind in ("total", every[k].kind)]
        rest = [t for k, t in every.items() if k not in common and kind in ("total", t.kind)]
        grids = [np.stack([p.compared[k].mask(criterion) for p in members]) for k in keys]
        numel = sum(g.shape[1] for g in grids)
        core, union = (sum(int(f(g, axis=0).sum()) for g in grids) for f in (np.all, np.any))
        yield {
            "kind": kind,
            "runs": len(members),
            "tensors": len(keys),
            "numel": numel,
            "core_changed": core,
            "union_changed": union,
            "density_of_core": core / numel if numel else None,
            "density_of_union": union / numel if numel else None,
            "mean_density_of_a_run": sum(int(g.sum()) for g in grids) / numel / len(members)
            if numel
            else None,
            "core_share_of_union": core / union if union else None,
            "tensors_left_out": len(rest),
            "numel_left_out": sum(t.numel for t in rest),
        }


LABELS = ("algorithm", "dataset", "seed", "family")


def setting(zoo, label, measure, criterion="exact"):
    """Runs with the label, by base, and the measure of every two of them on one base."""
    runs = [p for p in zoo.pairs if p.row[label] is not None and criterion in p.criteria]
    ids = {p.pair_id for p in runs}
    values = {
        (a.pair_id, b.pair_id): o[measure]
        for a, b, o in all_overlaps(zoo, criterion)
        if a.base == b.base and o["same_base"] and {a.pair_id, b.pair_id} <= ids
    }
    bases = [[p for p in runs if p.base == base] for base in {p.base for p in runs}]
    return bases, values


def difference(values, label_of):
    split = ([], [])
    for (a, b), value in values.items():
        split[label_of[a] == label_of[b]].append(value)
    return mean(split[1]) - mean(split[0]) if all(split) else None


def permutation(zoo, label="algorithm", measure="lift_magnitude", criterion="exact"):
    bases, values = setting(zoo, label, measure, criterion)

    def assigned(order):
        return {
            p.pair_id: q.row[label]
            for runs in bases
            for p, q in zip(runs, sorted(runs, key=order), strict=True)
        }

    observed = difference(values, assigned(lambda p: p.pair_id))
    found = [
        difference(values, assigned(lambda p, r=r: draw(r, p.pair_id).hexdigest()))
        for r in range(1, 1000)
    ]
    runs = [p for runs in bases for p in runs]
    labels = {p.pair_id: p.row[label] for p in runs}
    within = [v for (a, b), v in values.items() if labels[a] == labels[b]]
    yield {
        "label": label,
        "measure": measure,
        "runs": len(runs),
        "labels": len(set(labels.values())),
        "bases": len(bases),
        "pairs_of_runs_within": len(within),
        "pairs_of_runs_between": len(values) - len(within),
        "mean_within": mean(within) if within else None,
        "difference": observed,
        "p_value": None
        if observed is None
        else (1 + sum(f >= observed - 1e-12 for f in found)) / 1000,
    }


TINY = {"family": "tiny"}
CASES = {
    "sparsity_by_family": (families, [{}, {"criterion": "abs:1e-5"}]),
    "layer_profile": (layers, [{}, TINY | {"criterion": "abs:1e-6"}]),
    "module_profile": (modules, [{}, {"family": "two"}]),
    "outliers": (
        outliers,
        [{}, TINY | {"threshold": "1.5"}, {"criterion": "abs:1e-5", "min_runs": "2"}],
    ),
    "overlap_groups": (groups, [{}, {"criterion": "abs:1e-5"}]),
    "consensus_core": (
        cores,
        [{}, TINY, {"algorithm": "DPO", "criterion": "abs:1e-5"}, TINY | {"algorithm": "GRPO"}],
    ),
    "overlap_permutation": (
        permutation,
        [
            {},
            {"label": "seed", "measure": "phi"},
            {"label": "dataset", "criterion": "abs:1e-5"},
            {"label": "family", "measure": "jaccard"},
        ],
    ),
}


def ordered(found):
    return sorted(found, key=lambda r: [str(v) for v in r.values() if not isinstance(v, float)])


@pytest.mark.parametrize(
    ("name", "params"), [(name, p) for name, (_, cases) in CASES.items() for p in cases]
)
def test_query_agrees_with_the_oracle(zoo, zoo_con, name, params):
    wanted = list(CASES[name][0](zoo, **params))
    found = [{c: row[c] for c in wanted[0]} for row in rows(zoo_con, name, **params)]
    for got, want in zip(ordered(found), ordered(wanted), strict=True):
        for column, value in want.items():
            # the sparsities of a median are doubles of their own: differences cancel
            near = pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value
            assert got[column] == near, (column, want)


def test_pairs_within_a_trajectory_are_no_runs(zoo_con):
    prime = [r for r in rows(zoo_con, "sparsity_by_family") if r["algorithm"] == "PRIME"]
    assert [r["pairs"] for r in prime] == [1]
    names = {r["name"] for r in rows(zoo_con, "outliers") if r["level"] == "run"}
    assert {n for n in names if n.startswith("traj")} == {"traj-0-20"}


def test_bootstrap_interval_covers_like_that_of_scipy(zoo, zoo_con):
    grpo = [p for p in zoo.pairs if (p.row["family"], p.row["algorithm"]) == ("tiny", "GRPO")]
    found = next(
        r
        for r in rows(zoo_con, "sparsity_by_family")
        if (r["family"], r["algorithm"]) == ("tiny", "GRPO")
    )
    values = [sparsity_of(p) for p in grpo]
    other = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=9999, random_state=1
    ).confidence_interval
    width = other.high - other.low
    assert found["sparsity_low"] == pytest.approx(other.low, abs=0.1 * width)
    assert found["sparsity_high"] == pytest.approx(other.high, abs=0.1 * width)


def test_permutation_test_finds_the_planted_groups(zoo, zoo_con):
    """Against permutations that numpy draws: p agrees within 4 standard errors of both."""
    for label, measure in (("algorithm", "lift_magnitude"), ("seed", "lift_magnitude")):
        found = rows(zoo_con, "overlap_permutation", label=label, measure=measure)[0]
        bases, values = setting(zoo, label, measure)
        rng = np.random.default_rng(0)
        observed = difference(values, {p.pair_id: p.row[label] for b in bases for p in b})
        hits = 0
        for _ in range(2000):
            labels = {
                p.pair_id: q.row[label]
                for runs in bases
                for p, q in zip(runs, [runs[k] for k in rng.permutation(len(runs))], strict=True)
            }
            other = difference(values, labels)
            hits += other is not None and other >= observed - 1e-12
        p = hits / 2000
        error = math.sqrt(max(p, 0.01) * (1 - p) * (1 / 2000 + 1 / 999))
        assert found["p_value"] == pytest.approx(p, abs=4 * error + 1e-3)
        if label == "algorithm":
            assert found["mean_within"] > 1.1 > found["mean_between"]
            assert found["p_value"] < 0.03
            assert found["smallest_p_value"] <= found["p_value"]
        else:
            assert found["p_value"] > 0.05


def test_ties_are_ties_at_any_size(tmp_path):
    """Lifts of thousands, all multiples of 100,000 / 49: sums of others may be the same number."""
    runs = []
    for k in range(8):
        t = Tensor("w.weight", (250, 400), None, "w", "other", base_xxh3="b")
        t.exponent, t.level = np.full(100_000, -5), np.zeros(100_000, int)
        t.level[np.random.default_rng(k).permutation(12)[:7]] = 1
        t.bucket = t.level
        runs.append(pair(f"run-{k}", its=[t], algorithm="AB"[k % 2]))
        _write(tmp_path, runs[-1])
    (tmp_path / "store.json").write_text(
        json.dumps({"format": "rlsparse_ray", "schema_version": 1})
    )
    with sql.connect(tmp_path, threads=1) as con:
        (found,) = rows(con, "overlap_permutation", measure="lift_uniform")
    masks = {p.pair_id: p.tensors[0].level for p in runs}
    values = {
        (a, b): Fraction(int((x & y).sum()) * x.size, int(x.sum()) * int(y.sum()))
        for (a, x), (b, y) in itertools.combinations(masks.items(), 2)
    }
    assert min(values.values()) > 1000

    def exactly(order):
        labels = [p.row["algorithm"] for p in sorted(runs, key=order)]
        return difference(values, dict(zip(masks, labels, strict=True)))

    observed = exactly(lambda p: p.pair_id)
    drawn = [exactly(lambda p, r=r: draw(r, p.pair_id).hexdigest()) for r in range(1, 1000)]
    assert found["difference"] == pytest.approx(float(observed), rel=1e-9)
    assert found["p_value"] == (1 + sum(d >= observed for d in drawn)) / 1000
    largest = max([observed, *drawn])
    assert found["smallest_p_value"] == sum(d == largest for d in [observed, *drawn]) / 1000


STATISTICS = (
    *("sparsity_by_family", "layer_profile", "module_profile", "outliers", "consensus_core"),
    *("consensus_groups", "overlap_groups", "overlap_permutation", "overlap_excess", "headline"),
)


@pytest.fixture(scope="module")
def twice(zoo, tmp_path_factory):
    """A few runs of the zoo, without and with a second pair of one of their tuned models."""
    runs = [p for p in make_zoo()[0] if p.name.startswith(("grpo-", "dpo-"))]
    places = [tmp_path_factory.mktemp("zoo") / name for name in ("once", "twice")]
    for place in places:
        for p in runs:
            _write(place, p)
        shutil.copy(zoo.place / "store.json", place)
    again = make_zoo()[0][0]
    again.pair_id, again.row["name"] = "twin-0", "twin"
    _write(places[1], again)
    for place in places:
        overlap_directly(place)
    return places


@pytest.mark.parametrize("query", STATISTICS)
def test_a_tuned_model_under_two_names_is_one_run(twice, query):
    found = []
    for place in twice:
        with sql.connect(place, threads=1) as con:
            found.append(rows(con, query))
    assert found[0]
    for once, again in zip(*found, strict=True):
        assert again == {
            c: pytest.approx(v, rel=1e-12) if isinstance(v, float) else v for c, v in once.items()
        }


def test_the_loud_run_is_an_outlier(zoo_con):
    found = [r for r in rows(zoo_con, "outliers") if r["outlier"]]
    assert {r["name"] for r in found if r["level"] == "run"} == {"loud"}
    assert any(r["level"] == "tensor" and r["name"] == "loud" for r in found)
    assert all(r["robust_z"] < 0 for r in found if r["name"] == "loud")


@pytest.mark.parametrize(
    ("where", "params"),
    [
        ("family = 'tiny' AND trajectory IS NULL AND algorithm = 'GRPO'", {"algorithm": "GRPO"}),
        ("algorithm = 'DPO'", {"algorithm": "DPO"}),
        ("family = 'two'", {"family": "two"}),
    ],
)
def test_core_and_union_are_those_of_the_kernel(zoo, zoo_con, where, params):
    given = params if "family" in params else params | {"family": "tiny"}
    total = rows(zoo_con, "consensus_core", **given)[0]
    found = consensus(zoo.place, where)
    changed = found.histogram["at_least"].to_pylist()
    assert total["core_changed"] == changed[-1]
    assert total["union_changed"] == changed[1]
    assert total["numel"] == changed[0] == found.group.numel


def test_runs_without_a_common_tensor_have_no_consensus(zoo):
    with pytest.raises(sql.QueryError, match=r"in all of: alien, loud"):
        consensus(zoo.place, "name IN ('alien', 'loud')")


def test_an_unknown_family_is_an_error(zoo_con):
    for name in ("layer_profile", "module_profile", "outliers", "consensus_core"):
        with pytest.raises(sql.QueryError, match=r"no run of family tinny .* tiny GRPO"):
            rows(zoo_con, name, family="tinny")


@pytest.mark.parametrize(("name", "value"), [("label", "kl"), ("measure", "o1")])
def test_an_unknown_label_or_measure_is_an_error(zoo_con, name, value):
    with pytest.raises(sql.QueryError, match=f"{name} is "):
        rows(zoo_con, "overlap_permutation", **{name: value})


def count_overlaps(place, fraction=1.0):
    """What `rlsparse overlap` does, without Ray."""
    plan = plan_overlaps(place, "exact", fraction)
    begin(plan, Store_.open(place))
    for unit in plan.units:
        overlap_unit(unit, str(place))
    for unit in commit_units(plan):
        commit_overlaps(unit, str(place))


def test_overlaps_that_were_counted_give_the_same_answers(zoo, zoo_con, tmp_path):
    """All of them, and only some: the others then come from the masks."""
    place = shutil.copytree(zoo.place, tmp_path / "store")
    count_overlaps(place)
    files = sorted(place.glob("overlaps/*/overlaps.parquet"))
    for gone in ([], files[::2]):
        for path in gone:
            path.unlink()
        con = sql.connect(place)
        for name in ("overlap_groups", "overlap_permutation"):
            for row, want in zip(rows(con, name), rows(zoo_con, name), strict=True):
                for column, value in want.items():
                    near = pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
                    assert row[column] == near, column


def test_files_say_what_kind_of_mean_they_take():
    for name in CASES:
        text = sql.queries()[name].text
        for column in re.findall(r"(?:avg|median)\([^()]*sparsity[^()]*\) AS (\w+)", text):
            assert column.endswith("unweighted") or name == "overlap_groups", (name, column)
