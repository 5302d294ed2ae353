"""The pass that fills `spectra`: its rows are of the very matrices that were compared, and a pass
that was killed and run again leaves the same files as one that was not."""

import json
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rlsparse_ray import sql
from rlsparse_ray.compare.spectra import SpectraOptions, spectra
from rlsparse_ray.compare.spectra import measure as maths
from rlsparse_ray.compare.spectra.options import EXACT_SIDE
from rlsparse_ray.errors import QueryError, StoreError
from rlsparse_ray.population import spectra_units
from rlsparse_ray.population.spectra import commit_spectra, spectra_unit
from rlsparse_ray.population.spectra_files import kept_rows, spectra_path, staged_rows
from rlsparse_ray.population.spectra_plan import plan_spectra
from rlsparse_ray.population.spectra_rows import measured_row
from rlsparse_ray.storage.lease import LeaseError, hold
from rlsparse_ray.store import Store
from rlsparse_ray.upkeep.checks import verify
from rlsparse_ray.upkeep.gc import find_garbage
from tests.builders import (
    BF16,
    extract_directly,
    id_of,
    small_model,
    sparsely_changed,
    tree,
    tuned_from,
    weights,
    write_corpus,
    write_model,
)

K8 = SpectraOptions(k=8)
STACK = "model.layers.1.mlp.experts.down_proj"
FUSED = "model.layers.0.self_attn.qkv_proj.weight"


def update_of(base, tuned):
    """The difference in float64 of what was compared: both sides as bf16."""
    return tuned.astype(BF16).astype(np.float64) - base.astype(BF16).astype(np.float64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four pairs on one base: plain, in fp32, with fused and stacked tensors split, and damaged.

    Every kind of tensor that has another status than measured is in one of them.
    """
    folder = tmp_path_factory.mktemp("spectra")
    base = small_model(width=33, vocabulary=70)
    base |= {STACK: weights(90, (3, 20, 31)), FUSED: weights(91, (48, 33))}
    base |= {"model.odd.weight": weights(92, (4, 3, 5)), "model.none.weight": weights(0, (0, 9))}
    base |= {"model.ids": np.arange(12, dtype=np.int32).reshape(3, 4)}
    plain = tuned_from(base, 100, keep=("norm", "ids"))
    fp32 = {n: a if n == "model.ids" else a.astype(np.float32) for n, a in plain.items()}
    noise = np.random.default_rng(5).normal(0, 1e-4, fp32[FUSED].shape)
    fp32[FUSED] = (fp32[FUSED] + noise).astype(np.float32)
    split = dict(plain)
    split["model.embed_tokens.weight"] = split["model.embed_tokens.weight"][:65]
    for n, module in enumerate(("q", "k", "v")):
        rows = slice(16 * n, 16 * n + 16)
        split[f"model.layers.0.self_attn.{module}_proj.weight"] = split[FUSED][rows].copy()
    del split[FUSED], split["model.layers.0.self_attn.q_proj.weight"]
    split["model.layers.0.self_attn.q_proj.weight"] = sparsely_changed(base[FUSED][:16], 3)
    broken = tuned_from(base, 300, keep=("norm", "ids", "layers.0.mlp.up_proj"))
    broken["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    del base["model.layers.0.self_attn.q_proj.weight"]
    for model in (plain, fp32, broken):
        model.pop("model.layers.0.self_attn.q_proj.weight")
    models = {"base": base, "plain": plain, "fp32": fp32, "split": split, "broken": broken}
    for name, model in models.items():
        write_model(folder / name, model)
    pairs = [{"name": n, "base": "base", "tuned": n} for n in models if n != "base"]
    plan = extract_directly(write_corpus(folder / "corpus.yaml", pairs), folder / "store")
    return folder, models, {name: id_of(plan, name) for name in models if name != "base"}


def measure(store, options=K8, only=None, **selected):
    """The pass in one process, without Ray."""
    plan = plan_spectra(str(store), options, **selected)
    failed = dict(plan.failed)
    for unit in plan.units[:only]:
        failed |= spectra_unit(unit, str(store)).failed
    if only is None:
        commit_spectra(plan, str(store))
    return plan, failed


@pytest.fixture(scope="module")
def measured(folder):
    """The store of `folder` with the spectra of everything."""
    store = folder[0] / "measured"
    shutil.copytree(folder[0] / "store", store)
    plan, failed = measure(store)
    assert failed == {}
    return store, plan


def rows_by_tensor(store, pair_id):
    found = kept_rows(Store.open(store), pair_id)
    return {(row["tensor"], row["matrix"]): row for row in found}


def assert_is_of(row, delta):
    """Against numpy's SVD in float64 of the whole difference."""
    values = np.linalg.svd(delta, compute_uv=False)
    tolerance = max(delta.shape) * np.finfo(np.float32).eps * values[0]
    assert row["status"] == "measured" and row["method"] == "exact"
    assert (row["rows"], row["columns"], row["numel"]) == (*delta.shape, delta.size)
    assert row["changed"] == np.count_nonzero(delta)
    assert row["matrix_rank"] == int((values > tolerance).sum())
    assert row["update_norm"] == pytest.approx(np.linalg.norm(delta), rel=1e-9)
    assert row["stable_rank"] == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-6)
    energy = np.cumsum(values**2) / (values**2).sum()
    assert row["energy_rank_90"] == int(np.searchsorted(energy, 0.9)) + 1
    assert row["top_energy_share"] == pytest.approx(energy[7], rel=1e-6)


def test_rows_are_of_the_matrices_that_were_compared(folder, measured):
    _, models, ids = folder
    for name in ("plain", "fp32"):
        found = rows_by_tensor(measured[0], ids[name])
        for tensor in ("layers.0.mlp.up_proj.weight", "layers.1.mlp.down_proj.weight"):
            stored = f"model.{tensor}"
            delta = update_of(models["base"][stored], models[name][stored])
            assert_is_of(found[tensor, 0], delta)
    fused = update_of(models["base"][FUSED], models["fp32"][FUSED])
    assert_is_of(rows_by_tensor(measured[0], ids["fp32"])[FUSED[6:], 0], fused)


def test_parts_stacks_and_common_rows(folder, measured):
    _, models, ids = folder
    found = rows_by_tensor(measured[0], ids["split"])
    base, split = models["base"], models["split"]
    for n, module in enumerate(("q", "k", "v")):
        name = f"layers.0.self_attn.{module}_proj.weight"
        part = base[FUSED][16 * n : 16 * n + 16]
        assert_is_of(found[name, 0], update_of(part, split[f"model.{name}"]))
    for n in range(3):
        delta = update_of(base[STACK][n], split[STACK][n])
        assert_is_of(found[STACK[6:], n], delta)
    embedding = "embed_tokens.weight"
    rows = base[f"model.{embedding}"][:65]
    assert_is_of(found[embedding, 0], update_of(rows, split[f"model.{embedding}"]))


def test_what_cannot_be_measured_has_a_row_that_says_so(folder, measured):
    ids = folder[2]
    found = rows_by_tensor(measured[0], ids["broken"])
    status = {tensor: row["status"] for (tensor, _), row in found.items()}
    assert status["norm.weight"] == status["odd.weight"] == "not_a_matrix"
    assert status["none.weight"] == "empty"
    assert status["ids"] == "not_a_float"
    assert status["layers.1.mlp.up_proj.weight"] == "nonfinite"
    assert status["layers.0.mlp.up_proj.weight"] == "unchanged"
    assert status["layers.0.mlp.down_proj.weight"] == "measured"
    unchanged = found["layers.0.mlp.up_proj.weight", 0]
    assert (unchanged["matrix_rank"], unchanged["nss"], unchanged["stable_rank"]) == (0, 0, None)
    with sql.connect(measured[0]) as con:
        lacking = "SELECT * FROM tensors t ANTI JOIN spectra s USING (pair_id, tensor_key)"
        every = sql.run_sql(con, f"{lacking} WHERE t.status NOT IN ('base_only', 'tuned_only')")
        assert every.num_rows == 0
        assert [name for name, rows in sql.run_audits(con) if rows.num_rows] == []
    assert verify(measured[0]) == []


def test_an_unchanged_matrix_is_told_as_it_would_be_measured(folder, measured):
    found = rows_by_tensor(measured[0], folder[2]["broken"])
    told = found["layers.0.mlp.up_proj.weight", 0]
    base = torch.from_numpy(
        folder[1]["base"]["model.layers.0.mlp.up_proj.weight"].astype(np.float32)
    )
    row = measured_row(told["tensor"], told["tensor_key"], 0, spectra(base, base, K8), K8)
    close = {"base_norm": pytest.approx(row["base_norm"], rel=1e-6)}
    assert {**told, "precision": [], "errors": []} == row | close


def test_only_what_is_missing_is_measured(folder, measured, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(measured[0], store)
    plan = plan_spectra(str(store), K8)
    assert (plan.units, plan.told, plan.failed) == ((), {}, {}) and plan.known > 50
    assert plan_spectra(str(store), SpectraOptions(k=8, method="exact")).units == ()
    # another k: rows that depend on it, and no others
    other = plan_spectra(str(store), SpectraOptions(k=9))
    assert other.matrices == measured[1].matrices and not other.told
    before = tree(store)
    measure(store)
    assert tree(store) == before


def test_rows_of_another_k_are_replaced(folder, measured, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(measured[0], store)
    measure(store, SpectraOptions(k=9), where="module = 'mlp.down_proj'", pairs="plain")
    rows = rows_by_tensor(store, folder[2]["plain"])
    ks = {row["rank_k"] for (t, _), row in rows.items() if "down_proj.weight" in t}
    assert ks == {9}
    assert {row["rank_k"] for (t, _), row in rows.items() if "up_proj" in t} == {8}
    assert rows.keys() == rows_by_tensor(measured[0], folder[2]["plain"]).keys()
    assert verify(store) == []


def test_exact_rows_take_the_place_of_randomised_ones_and_not_the_other_way(folder, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(folder[0] / "store", store)
    rough = SpectraOptions(k=2, method="randomised", oversample=2)
    chosen = {"where": "tensor = 'layers.0.mlp.up_proj.weight'", "pairs": "plain"}
    measure(store, rough, **chosen)
    (row,) = kept_rows(Store.open(store), folder[2]["plain"])
    assert row["method"] == "randomised" and row["matrix_rank"] is None
    assert plan_spectra(str(store), SpectraOptions(k=2), **chosen).units == ()
    exact = SpectraOptions(k=2, method="exact")
    assert measure(store, exact, **chosen)[0].matrices == 1
    (row,) = kept_rows(Store.open(store), folder[2]["plain"])
    assert row["method"] == "exact"
    assert plan_spectra(str(store), rough, **chosen).units == ()


@pytest.fixture
def experts(tmp_path):
    """A stack of four, of which the second one did not change, and a matrix beside it."""
    base = {STACK: weights(1, (4, 20, 31)), "model.layers.0.mlp.up_proj.weight": weights(2, (9, 9))}
    tuned = {name: sparsely_changed(a, 3) for name, a in base.items()}
    tuned[STACK][1] = base[STACK][1]
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "tuned", tuned)
    pairs = [{"name": "p", "base": "base", "tuned": "tuned"}]
    plan = extract_directly(write_corpus(tmp_path / "corpus.yaml", pairs), tmp_path / "store")
    return tmp_path / "store", id_of(plan, "p")


def measured_by(store, pair_id):
    """k and method of the rows of the stack, in the order of experts."""
    found = rows_by_tensor(store, pair_id)
    return [(found[STACK[6:], n]["rank_k"], found[STACK[6:], n]["method"]) for n in range(4)]


def test_a_stack_with_an_unchanged_expert_is_replaced_as_a_whole(experts):
    rough = SpectraOptions(k=2, method="randomised", oversample=2)
    for options in (K8, rough, SpectraOptions(k=2, method="exact")):
        assert measure(experts[0], options, where="kind = 'expert'")[0].matrices == 4
        (k, method) = options.k, "randomised" if options is rough else "exact"
        assert measured_by(*experts) == [(k, method), (k, None), (k, method), (k, method)]
    assert plan_spectra(str(experts[0]), rough, where="kind = 'expert'").units == ()


def test_a_killed_pass_leaves_a_stack_with_an_unchanged_expert_whole(experts):
    rough = SpectraOptions(k=2, method="randomised", oversample=2)
    left = [(2, "exact"), (2, None), (2, "exact"), (2, "exact")]
    for options in (K8, rough, SpectraOptions(k=2, method="exact")):
        measure(experts[0], options, only=1, where="kind = 'expert'")
    # none of the three is what this pass measures: the stack is of one of them, whole
    measure(experts[0], SpectraOptions(k=3), where="kind = 'mlp'")
    assert len(set(measured_by(*experts))) == 2
    measure(experts[0], K8, only=1, where="kind = 'expert'")
    measure(experts[0], SpectraOptions(k=2, method="exact"), where="kind = 'expert'")
    assert measured_by(*experts) == left


@pytest.mark.parametrize("options", [K8, SpectraOptions(k=2, method="exact")], ids=["k=8", "k=2"])
def test_what_a_killed_pass_left_does_not_replace_rows_that_are_asked_for(experts, options):
    (other,) = {8, 2} - {options.k}
    measure(experts[0], options, where="kind = 'expert'")
    measure(experts[0], SpectraOptions(k=other, method="exact"), only=1, where="kind = 'expert'")
    assert staged_rows(Store.open(experts[0]))
    assert measure(experts[0], options, where="kind = 'expert'")[0].matrices == 0
    assert {k for k, _ in measured_by(*experts)} == {options.k}


def test_a_killed_pass_goes_on_to_the_same_files(folder, tmp_path, monkeypatch):
    """Killed with some units done, then with all done and one pair committed."""
    monkeypatch.setattr(spectra_units, "UNIT_FLOPS", 1e6)
    undisturbed, store = tmp_path / "undisturbed", tmp_path / "store"
    for place in (undisturbed, store):
        shutil.copytree(folder[0] / "store", place)
    measure(undisturbed)
    whole, _ = measure(store, only=3)
    assert len(whole.units) > 5 and not (store / "spectra").exists()
    rest = plan_spectra(str(store), K8)
    assert rest.units == whole.units[3:] and rest.known > 0
    for unit in rest.units:
        spectra_unit(unit, str(store))
    first = min((undisturbed / "spectra").iterdir())
    shutil.copytree(first, store / "spectra" / first.name)
    last, failed = measure(store)
    assert (last.units, failed) == ((), {})
    assert tree(store) == tree(undisturbed)


def test_selection_and_sample(folder, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(folder[0] / "store", store)
    plan = plan_spectra(str(store), K8, pairs="name = 'plain'", where="kind = 'mlp'")
    shapes = {(m.rows, m.columns) for unit in plan.units for m in unit.matrices}
    assert shapes == {(150, 33), (33, 150)} and plan.matrices == 4
    drawn = plan_spectra(str(store), K8, where="kind = 'mlp'", per_layer=1)
    chosen = {(m.tensor, len(m.tuned)) for unit in drawn.units for m in unit.matrices}
    assert len({tensor for tensor, _ in chosen}) == 2 and drawn.left_out == 8
    again = plan_spectra(str(store), K8, where="kind = 'mlp'", per_layer=1)
    assert again.units == drawn.units
    # the base is shared by the pairs that compared it in the same shape
    assert {count for _, count in chosen} <= {2, 3, 4}
    for wrong, message in (
        ({"pairs": "nobody"}, "'nobody' is no name or id of a pair, and as a condition over"),
        ({"pairs": "seed = 9"}, "no pair meets the condition"),
        ({"where": "modul = 'x'"}, "the condition over tensors: .*modul"),
        ({"where": "kind = 'router'"}, "no compared tensor of these pairs meets"),
    ):
        with pytest.raises(QueryError, match=message):
            plan_spectra(str(store), K8, **wrong)


def test_a_base_is_decomposed_once_for_its_pairs(folder, monkeypatch):
    plan = plan_spectra(
        str(folder[0] / "store"), K8, where="tensor = 'layers.0.mlp.down_proj.weight'"
    )
    (unit,) = plan.units
    assert len(unit.matrices[0].tuned) == 4
    made = []
    monkeypatch.setattr(
        maths.BaseMatrices,
        "__init__",
        lambda self, *args, of=maths.BaseMatrices.__init__: (made.append(1), of(self, *args))[1],
    )
    store = folder[0] / "scratch"
    shutil.copytree(folder[0] / "store", store)
    assert spectra_unit(unit, str(store)).matrices == 4
    assert made == [1]
    shutil.rmtree(store)


@pytest.fixture
def moved(folder, tmp_path):
    """Models and a store that a test may damage."""
    place = tmp_path / "own"
    for name in ("base", "plain", "broken"):
        shutil.copytree(folder[0] / name, place / name)
    pairs = [{"name": n, "base": "base", "tuned": n} for n in ("plain", "broken")]
    plan = extract_directly(write_corpus(place / "corpus.yaml", pairs), place / "store")
    return place, {name: id_of(plan, name) for name in ("plain", "broken")}


def test_a_vanished_model_fails_its_pair_alone(moved):
    place, ids = moved
    shutil.rmtree(place / "broken")
    plan, failed = measure(place / "store")
    assert failed.keys() == {"broken"} and "broken" in failed["broken"]
    assert plan.names == {ids["plain"]: "plain", ids["broken"]: "broken"}
    rows = rows_by_tensor(place / "store", ids["plain"])
    assert rows["layers.0.mlp.up_proj.weight", 0]["status"] == "measured"
    # what tables alone tell of the lost one is kept, and nothing else
    lost = {row["status"] for row in rows_by_tensor(place / "store", ids["broken"]).values()}
    assert "measured" not in lost and "not_a_matrix" in lost
    assert verify(place / "store") == []


def test_a_model_that_moved_on_fails_before_anything_is_read(moved):
    place, _ = moved
    file = place / "plain" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    plan, failed = measure(place / "store", pairs="plain")
    assert plan.units == ()
    assert "moved, copied or changed since it was extracted" in failed["plain"]


def test_bytes_that_change_after_the_plan_never_become_a_row(moved):
    """The plan has seen the right model: only the hash of the bytes tells."""
    place, ids = moved
    plan = plan_spectra(str(place / "store"), K8, where="kind = 'mlp'")
    unit = plan.units[0]
    found = [t for each in unit.matrices for t in each.tuned if t.pair_id == ids["plain"]]
    spec = found[0].side.spec
    path = place / "plain" / "model.safetensors"
    state = path.stat()
    data = bytearray(path.read_bytes())
    data[spec.offset] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    report = spectra_unit(unit, str(place / "store"))
    assert report.failed.keys() == {ids["plain"]}
    assert "`tensors` says" in report.failed[ids["plain"]]
    rows = staged_rows(Store.open(place / "store"))
    wrong = unit.matrices[0].tensor
    assert wrong not in {row["tensor"] for row in rows[ids["plain"]]}
    assert wrong in {row["tensor"] for row in rows[ids["broken"]]}


def test_verify_and_gc_know_the_files(measured, folder, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(measured[0], store)
    assert find_garbage(str(store), hours=0).removable == []
    pair_id = folder[2]["plain"]
    path = store / spectra_path(pair_id)
    table = pq.ParquetFile(path).read()
    place = table.schema.get_field_index("base_norm")
    other = table.set_column(place, table.schema.field(place), table["update_norm"])
    pq.write_table(other.replace_schema_metadata(table.schema.metadata), path)
    (finding,) = [f for f in verify(store) if f.check == "files"]
    assert finding.pair_id == pair_id and "contents have changed" in finding.problem
    assert f"remove {store}/spectra/pair_id={pair_id} and run rlsparse" in finding.problem
    with pytest.raises(StoreError, match="contents have changed"):
        plan_spectra(str(store), K8)
    path.write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="damaged"):
        plan_spectra(str(store), K8)
    shutil.rmtree(store / "pairs" / f"pair_id={pair_id}")
    gone = {item.path: item.why for item in find_garbage(str(store), hours=0).removable}
    assert gone[spectra_path(pair_id)] == "no committed row names it"


def test_command(folder, tmp_path, rlsparse, local_ray):
    store = tmp_path / "store"
    shutil.copytree(folder[0] / "store", store)
    chosen = ("--store", store, "--where", "kind = 'mlp'", "--rank-k", 8)
    dry = rlsparse("spectra", *chosen, "--dry-run", "--json")
    rows = json.loads(dry.out)
    assert dry.code == 0 and {row["shape"] for row in rows} == {"150 x 33", "33 x 150"}
    assert not (store / "spectra").exists()
    done = rlsparse("spectra", *chosen)
    assert (done.code, done.err) == (0, "")
    assert "14 matrices measured, 2 tensors without one or unchanged, 0 tensors known" in done.out
    again = rlsparse("spectra", *chosen, "--json")
    assert json.loads(again.out)[0] == {
        "matrices": 0,
        "told": 0,
        "known": 16,
        "left_out": 0,
        "failed": 0,
    }
    direct = tmp_path / "direct"
    shutil.copytree(folder[0] / "store", direct)
    measure(direct, where="kind = 'mlp'")
    ours, theirs = tree(store), tree(direct)
    ours.pop("lease.json")
    assert ours == theirs
    answer = rlsparse("query", "rank_by_pair", "--store", store, "--json")
    assert {r["name"]: r["unchanged"] for r in json.loads(answer.out)}["broken"] == 1
    wrong = rlsparse("spectra", "--store", store, "--method", "fast")
    assert wrong.code == 2 and "say auto, exact or randomised" in wrong.err
    with hold(store, "gc"), pytest.raises(LeaseError), hold(store, "spectra"):
        pass
    assert rlsparse("spectra", "--store", store, "--dry-run").code == 0


def test_a_plan_says_what_each_device_would_do(folder, rlsparse, monkeypatch):
    monkeypatch.setitem(EXACT_SIDE, "cpu", 20)
    chosen = ("--store", folder[0] / "store", "--where", "module = 'mlp.up_proj'", "--rank-k", 8)
    methods, hours = {}, {}
    for device in ("auto", "cpu", "cuda"):
        made = rlsparse("spectra", *chosen, "--dry-run", "--json", "--device", device)
        (row,) = json.loads(made.out)
        methods[device] = row["method"]
        hours[device] = row["hours_cpu"], row["hours_cuda"]
    assert methods == {
        "auto": "randomised on cpu, exact on cuda",
        "cpu": "randomised",
        "cuda": "exact",
    }
    assert hours["cpu"][1] is hours["cuda"][0] is None
    assert hours["auto"] == (hours["cpu"][0], hours["cuda"][1])
    text = rlsparse("spectra", *chosen, "--dry-run").out
    assert "hours of a CPU core" in text and "of a GPU (assumed: 1 Tflop/s)" in text
    assert "GPU" not in rlsparse("spectra", *chosen, "--dry-run", "--device", "cpu").out


def test_command_with_a_lost_model(moved, rlsparse, local_ray):
    place, _ = moved
    shutil.rmtree(place / "broken")
    done = rlsparse("spectra", "--store", place / "store", "--rank-k", 8, "--json")
    assert done.code == 1 and "failed: broken: " in done.err
    (summary,) = json.loads(done.out)
    assert summary["failed"] == 1 and summary["matrices"] > 5
