"""What a slice and a commit write is what slow numpy finds in the models, and depends on nothing
else: not on the other pairs of the corpus, the backend, the run or the number of the run."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from rlsparse_ray.compare.torch_backend import TorchBackend
from rlsparse_ray.errors import StoreError
from rlsparse_ray.plan import MAX_TUNED, make_pair_id
from rlsparse_ray.slices import extract_slice
from rlsparse_ray.store import Store
from tests import reference
from tests.builders import (
    BF16,
    assert_same_store,
    commit_all,
    contents,
    extract_directly,
    extract_slices,
    id_of,
    mask_rows,
    plan_of,
    rows_of,
    small_corpus,
    small_model,
    sparsely_changed,
    tuned_from,
    weights,
    write_corpus,
    write_model,
)

MASKED = ("exact", "abs:1e-5", "rel:2e-2")
WIDE = (1030, 1025)  # 1,055,750 parameters: more than the CPU backend's window of 16 blocks
UP = "model.layers.0.mlp.up_proj.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def mixed_models():
    """Two models with every kind of difference that alignment knows but tied heads."""
    base = {
        EMBEDDING: weights(1, (700, 99)),
        NORM: weights(2, (99,), 1.0),
        QUERY: weights(3, (99, 99)),
        UP: weights(4, WIDE),
        DOWN: weights(5, (40, 30)),
        "model.scale": np.array(0.5, BF16),
        "model.empty": np.zeros((0, 4), BF16),
        "model.nan.weight": weights(6, (9,)),
        "model.old.weight": weights(7, (5, 7)),
    }
    tuned = {name: sparsely_changed(array, 50) for name, array in base.items()}
    tuned[NORM] = base[NORM]
    tuned["model.scale"] = np.array(0.75, BF16)
    # 9 rows fewer: the rest is compared on the common rows
    tuned[EMBEDDING] = tuned[EMBEDDING][:691]
    tuned[QUERY] = tuned[QUERY].astype(np.float32) + np.float32(1e-6)
    tuned[DOWN] = weights(5, (30, 40))
    tuned["model.nan.weight"][[2, 5]] = np.nan, np.inf
    del tuned["model.old.weight"]
    tuned["model.new.bias"] = weights(8, (11,))
    return base, tuned


STATUSES = MappingProxyType(
    {
        "embed_tokens.weight": "partial_rows",
        "layers.0.input_layernorm.weight": "identical",
        "layers.0.self_attn.q_proj.weight": "compared",
        "layers.0.mlp.up_proj.weight": "compared",
        "layers.0.mlp.down_proj.weight": "shape_mismatch",
        "scale": "compared",
        "empty": "identical",
        "nan.weight": "compared",
        "old.weight": "base_only",
        "new.bias": "tuned_only",
    }
)


@dataclass(frozen=True)
class Mixed:
    store: Path
    pair_id: str
    base: dict
    tuned: dict

    def rows(self, table):
        return rows_of(self.store, table, self.pair_id)

    def stored(self, row):
        """Both whole tensors of a row of `tensors`."""
        return self.base.get(row["base_name"]), self.tuned.get(row["tuned_name"])

    def finite(self):
        """(row, base, tuned) as compared: common rows, in bf16. The tensor with NaN apart."""
        for row in self.rows("tensors"):
            if row["shape"] is not None and row["tensor"] != "nan.weight":
                base, tuned = self.stored(row)
                rows = slice(row["shape"][0]) if row["shape"] else ...
                yield row, base[rows], tuned[rows].astype(BF16)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    base, tuned = mixed_models()
    write_model(folder / "base", base, shards=3)
    write_model(folder / "tuned", tuned)
    pairs = [{"name": "mixed", "base": "base", "tuned": "tuned"}]
    settings = {"criteria": list(MASKED), "slice_bytes": 50_000}
    corpus = write_corpus(folder / "corpus.yaml", pairs, **settings)
    plan = extract_directly(corpus, folder / "store")
    assert len(plan.slices) >= 3
    return Mixed(folder / "store", plan.pairs[0].pair_id, base, tuned)


def test_every_tensor_of_either_side_has_a_status(mixed):
    rows = mixed.rows("tensors")
    assert {row["tensor"]: row["status"] for row in rows} == STATUSES
    assert len(rows) == len(STATUSES)


def test_names_shapes_dtypes_and_hashes(mixed):
    for row in mixed.rows("tensors"):
        for side, array in zip(("base", "tuned"), mixed.stored(row), strict=True):
            if array is None:
                assert row[f"{side}_shape"] is row[f"{side}_dtype"] is row[f"{side}_xxh3"] is None
                continue
            assert row[f"{side}_shape"] == list(array.shape)
            assert row[f"{side}_dtype"] == {2: "BF16", 4: "F32"}[array.itemsize]
            compared = row["shape"] is not None
            assert row[f"{side}_xxh3"] == (reference.digest(array) if compared else None)
        assert row["compare_dtype"] == ("BF16" if row["shape"] is not None else None)
        assert row["numel"] == (0 if row["shape"] is None else int(np.prod(row["shape"])))


def test_layers_modules_and_kinds(mixed):
    found = {r["tensor"]: (r["layer"], r["module"], r["kind"]) for r in mixed.rows("tensors")}
    assert found["layers.0.self_attn.q_proj.weight"] == (0, "self_attn.q_proj", "attention")
    assert found["embed_tokens.weight"] == (None, "embed_tokens", "embedding")


def test_norms(mixed):
    for row, base, tuned in mixed.finite():
        base_l2, update_l2, update_max = reference.norms(base, tuned)
        assert row["base_l2"] == pytest.approx(base_l2, rel=1e-13)
        assert row["update_l2"] == pytest.approx(update_l2, rel=1e-13)
        assert row["update_max"] == update_max
        assert [row[f"{s}_{n}"] for s in ("base", "tuned") for n in ("nan", "inf")] == [0] * 4


def test_values_that_are_not_finite(mixed):
    row = next(r for r in mixed.rows("tensors") if r["tensor"] == "nan.weight")
    assert [row[c] for c in ("base_nan", "base_inf", "tuned_nan", "tuned_inf")] == [0, 0, 1, 1]
    assert np.isfinite([row["base_l2"], row["update_l2"], row["update_max"]]).all()
    step = [s for s in mixed.rows("steps") if s["tensor"] == "nan.weight" and s["ulp_low"] is None]
    assert [s["numel"] for s in step] == [2]
    assert all(r["changed"] >= 2 for r in mixed.rows("counts") if r["tensor"] == "nan.weight")


def test_counts(mixed):
    found = {
        (r["tensor"], r["criterion"]): (r["numel"], r["changed"]) for r in mixed.rows("counts")
    }
    compared = [t for t, s in STATUSES.items() if s in ("compared", "identical", "partial_rows")]
    criteria = {*reference.CRITERIA, *MASKED}
    assert found.keys() == {(tensor, c) for tensor in compared for c in criteria}
    for row, base, tuned in mixed.finite():
        for criterion in criteria:
            expected = int(reference.changed(base, tuned, criterion).sum())
            assert found[row["tensor"], criterion] == (row["numel"], expected)


@pytest.mark.parametrize("criterion", MASKED)
def test_masks(mixed, criterion):
    found = {}
    for row in mask_rows(mixed.store, mixed.pair_id, criterion):
        found.setdefault(row.pop("tensor_key"), []).append(row)
    # an empty tensor has no block
    assert list(found) == [r["tensor_key"] for r in mixed.rows("tensors") if r["numel"]]
    for row, base, tuned in mixed.finite():
        expected = reference.blocks(base, tuned, criterion)
        assert found.get(row["tensor_key"], []) == expected
    assert [b["numel"] for b in found["layers.0.mlp.up_proj.weight [1030,1025]"]] == [
        *[65_536] * 16,
        7_174,
    ]


@pytest.mark.parametrize("criterion", MASKED)
def test_strata_and_margins(mixed, criterion):
    strata, margins = {}, {}
    for row in mixed.rows("strata"):
        if row["criterion"] == criterion:
            mine = strata.setdefault(row["tensor"], {})
            mine[row["exponent"]] = row["numel"], row["changed"]
    for row in mixed.rows("margins"):
        if row["criterion"] == criterion:
            margins[row["tensor"]] = row["changed_per_row"], row["changed_per_column"]
    for row, base, tuned in mixed.finite():
        expected = reference.strata(base, tuned, criterion)
        assert strata.get(row["tensor"], {}) == expected
        if base.ndim >= 2 and base.size:
            assert margins.pop(row["tensor"]) == reference.margins(base, tuned, criterion)
    assert margins == {}


def test_steps(mixed):
    found = {}
    for row in mixed.rows("steps"):
        found.setdefault(row["tensor"], {})[row["ulp_low"], row["ulp_high"]] = row["numel"]
    for row, base, tuned in mixed.finite():
        assert found.get(row["tensor"], {}) == reference.steps(base, tuned)


def test_the_row_of_the_pair(mixed):
    row = mixed.rows("pairs")[0]
    compared = sum(r["numel"] for r in mixed.rows("tensors"))
    assert row["numel"] == compared
    assert row["numel_base_only"] == 9 * 99 + 35
    assert (row["numel_tuned_only"], row["numel_mismatched"]) == (11, 1200)
    numbers = ("compared", "identical", "partial", "base_only", "tuned_only", "mismatched", "tied")
    assert [row[f"tensors_{n}"] for n in numbers] == [6, 2, 1, 1, 1, 1, 0]
    assert row["criteria"] == list(MASKED)
    assert row["counted_criteria"] == [*reference.CRITERIA, "rel:2e-2"]
    assert (row["base_dtype"], row["tuned_dtype"], row["compare_dtype"]) == ("BF16", "BF16", None)
    read = {n for n in mixed.base if n in mixed.tuned} - {DOWN}
    assert row["bytes_read"] == sum(m[n].nbytes for m in (mixed.base, mixed.tuned) for n in read)


def test_a_tied_head_is_counted_once(tmp_path):
    base = small_model()
    tuned = tuned_from(base, 1)
    for name, model in (("base", base), ("tuned", tuned)):
        write_model(tmp_path / name, model, config={"tie_word_embeddings": True})
    pairs = [{"name": "p", "base": "base", "tuned": "tuned"}]
    plan = extract_directly(write_corpus(tmp_path / "c.yaml", pairs), tmp_path / "s")
    rows = {r["tensor"]: r for r in rows_of(tmp_path / "s", "tensors", plan.pairs[0].pair_id)}
    assert (rows["lm_head.weight"]["status"], rows["lm_head.weight"]["numel"]) == ("tied", 0)
    pair = rows_of(tmp_path / "s", "pairs", plan.pairs[0].pair_id)[0]
    assert pair["tensors_tied"] == 1
    assert pair["numel"] == sum(a.size for n, a in base.items() if n != "lm_head.weight")


def test_extracting_twice_gives_the_same_store(example, tmp_path):
    extract_directly(example.corpus, tmp_path / "again")
    assert_same_store(example.store, tmp_path / "again")


def test_another_backend_gives_the_same_store(example, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "rlsparse_ray.slices.backend_for", lambda device: asked.append(1) or TorchBackend("cpu")
    )
    extract_directly(example.corpus, tmp_path / "torch")
    assert asked
    assert_same_store(example.store, tmp_path / "torch")


def test_other_windows_give_the_same_store(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr("rlsparse_ray.compare.cpu.CpuBackend.window", 3 * 65_536)
    extract_directly(mixed.store.parent / "corpus.yaml", tmp_path / "windows")
    assert_same_store(mixed.store, tmp_path / "windows")


@pytest.mark.parametrize("name", ["grpo-0", "grpo-1", "sft"])
def test_a_pair_is_the_same_bytes_whatever_else_the_corpus_holds(example, tmp_path, name):
    place = example.corpus.parent
    entry = {"name": name, "base": str(place / "base"), "tuned": str(place / name)}
    labels = {"family": "tiny", "algorithm": "SFT" if name == "sft" else "GRPO"}
    corpus = write_corpus(tmp_path / "c.yaml", [entry | labels], slice_bytes=100_000)
    plan = extract_directly(corpus, tmp_path / "alone")
    pair_id = plan.pairs[0].pair_id
    mine = {path: c for path, c in contents(example.store).items() if pair_id in path}
    assert len(mine) > 8
    alone = contents(tmp_path / "alone")
    del alone["store.json"]
    assert mine == alone


def test_the_base_is_read_once_for_all_its_tuned_models(example, tmp_path):
    plan = plan_of(example.corpus)
    reports = extract_slices(plan, tmp_path / "store")
    for piece, report in zip(plan.slices, reports, strict=True):
        base = sum(tensor.base.nbytes for tensor in piece.tensors)
        assert report.nbytes == 4 * base == piece.nbytes
    assert sum(report.nbytes for report in reports) == plan.nbytes


def test_what_models_share_is_read_once(tmp_path):
    """Two runs of one tuned model, and the base itself: the rows are as if each were alone."""
    corpus = many(tmp_path, 1)
    sides = {"t0": "t0", "again": "t0", "base": "base"}
    pairs = [{"name": name, "base": "base", "tuned": tuned} for name, tuned in sides.items()]
    plan = plan_of(write_corpus(tmp_path / "shared.yaml", pairs))
    reports = extract_slices(plan, tmp_path / "store")
    size = (20 * 30 + 7) * 2
    assert sum(report.nbytes for report in reports) == plan.nbytes == 2 * size
    commit_all(plan, tmp_path / "store")
    extract_directly(corpus, tmp_path / "alone")
    mine = {p: c for p, c in contents(tmp_path / "store").items() if id_of(plan, "t0") in p}
    alone = contents(tmp_path / "alone")
    del alone["store.json"]
    assert mine == alone
    again, base = (id_of(plan, name) for name in ("again", "base"))
    for table in ("tensors", "counts", "strata", "margins", "steps"):
        expected = rows_of(tmp_path / "store", table, id_of(plan, "t0"))
        assert rows_of(tmp_path / "store", table, again) == expected
    assert {r["status"] for r in rows_of(tmp_path / "store", "tensors", base)} == {"identical"}
    read = {i: rows_of(tmp_path / "store", "pairs", i)[0]["bytes_read"] for i in (again, base)}
    assert read == {again: 2 * size, base: size}


def test_files_of_one_content_are_one_source(tmp_path):
    """A place that knows hashes tells that two files are the same, wherever they are."""
    plan = plan_of(many(tmp_path, 2))
    (piece,) = plan.slices
    assert piece.nbytes == 3 * 607 * 2
    pairs = tuple((i, replace(row, tuned=known(row.tuned))) for i, row in piece.tensors[0].pairs)
    tensor = replace(piece.tensors[0], pairs=pairs)
    assert tensor.nbytes == 2 * tensor.base.nbytes


def known(spec):
    return replace(spec, file=replace(spec.file, content="sha256 of both"))


def test_a_finished_slice_reads_nothing(example, tmp_path):
    plan = plan_of(example.corpus)
    extract_slices(plan, tmp_path / "store")
    assert [r.nbytes for r in extract_slices(plan, tmp_path / "store")] == [0] * len(plan.slices)


def many(folder, models):
    base = {"w.weight": weights(1, (20, 30)), "v.weight": weights(2, (7,))}
    write_model(folder / "base", base)
    for number in range(models):
        write_model(folder / f"t{number}", tuned_from(base, number))
    pairs = [{"name": f"t{n}", "base": "base", "tuned": f"t{n}"} for n in range(models)]
    return write_corpus(folder / "corpus.yaml", pairs)


def test_more_than_sixteen_tuned_models_share_a_base_in_groups(tmp_path):
    plan = plan_of(many(tmp_path, MAX_TUNED + 2))
    assert sorted(len(piece.pair_ids) for piece in plan.slices) == [2, MAX_TUNED]
    reports = extract_slices(plan, tmp_path / "store")
    size = plan.slices[0].tensors[0].base.nbytes + plan.slices[0].tensors[1].base.nbytes
    assert sum(report.nbytes for report in reports) == (2 + MAX_TUNED + 2) * size
    commit_all(plan, tmp_path / "store")
    for pair in plan.pairs:
        counted = rows_of(tmp_path / "store", "counts", pair.pair_id)
        assert {r["tensor"] for r in counted} == {"v.weight", "w.weight"}


def test_a_model_that_changes_under_way_fails_its_pair_alone(tmp_path):
    """The others of the slice are as if it had not been there."""
    corpus = many(tmp_path, 3)
    extract_directly(corpus, tmp_path / "undisturbed")
    plan = plan_of(corpus)
    bad = tmp_path / "t1" / "model.safetensors"
    bad.write_bytes(bad.read_bytes()[:-2])
    (report,) = extract_slices(plan, tmp_path / "store")
    bad_id = id_of(plan, "t1")
    assert report.failed.keys() == {bad_id}
    assert f"{bad}: changed between plan and read" in report.failed[bad_id]
    assert "run again" in report.failed[bad_id]
    commit_all(plan.without([bad_id]), tmp_path / "store")
    expected = {p: c for p, c in contents(tmp_path / "undisturbed").items() if bad_id not in p}
    # and no scratch file of it either
    assert contents(tmp_path / "store") == expected


def test_a_pair_that_fails_keeps_its_finished_slices(example, tmp_path):
    """Whatever the reason: once it can be read again, the rest of it is done, and no more."""
    store, plan = tmp_path / "store", plan_of(example.corpus)
    weights = example.corpus.parent / "sft" / "model.safetensors"
    first = extract_slices(replace(plan, slices=plan.slices[:2]), store)
    weights.rename(tmp_path / "away")
    try:
        failed = extract_slices(plan, store)
    finally:
        (tmp_path / "away").rename(weights)
    sft = id_of(plan, "sft")
    assert [report.failed.keys() for report in failed[2:]] == [{sft}] * (len(plan.slices) - 2)
    commit_all(plan.without([sft]), store)
    again = extract_slices(plan.without(Store.open(store).committed()), store)
    assert [report.nbytes > 0 for report in again] == [False] * 2 + [True] * (len(again) - 2)
    assert [report.failed for report in (*first, *again)] == [{}] * (2 + len(again))
    commit_all(plan.without(Store.open(store).committed()), store)
    assert_same_store(example.store, store)


def test_a_base_that_changes_under_way_fails_all_its_pairs(tmp_path):
    plan = plan_of(many(tmp_path, 2))
    (tmp_path / "base" / "model.safetensors").unlink()
    (report,) = extract_slices(plan, tmp_path / "store")
    assert report.failed.keys() == {pair.pair_id for pair in plan.pairs}
    assert (
        "base/model.safetensors: cannot be read: No such file"
        in report.failed[plan.pairs[0].pair_id]
    )


def test_a_renamed_corpus_gives_the_same_pair_ids(tmp_path):
    """Folders keep their identity with their files: mv is fine, a copy is another model."""
    before = plan_of(small_corpus(tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    after = plan_of(tmp_path / "there" / "corpus.yaml")
    assert [p.pair_id for p in after.pairs] == [p.pair_id for p in before.pairs]


def test_settings_that_change_numbers_change_the_pair_id(example):
    pair = example.plan.pairs[0]
    facts = pair.entry.name, pair.base.identity, pair.tuned.identity
    settings = pair.settings
    assert make_pair_id(*facts, settings) == pair.pair_id
    assert make_pair_id(*facts, settings.model_copy(update={"slice_bytes": 1})) == pair.pair_id
    for change in ({"criteria": ("exact",)}, {"compare_dtype": "F16"}):
        assert make_pair_id(*facts, settings.model_copy(update=change)) != pair.pair_id


def test_a_name_that_gives_an_id_twice_is_no_silent_loss(tmp_path):
    base = {"w.weight": weights(1, (4, 4))}
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "t", tuned_from(base, 1))
    pairs = [{"name": name, "base": "base", "tuned": "t"} for name in ("Run 0", "run-0", "other")]
    plan = plan_of(write_corpus(tmp_path / "c.yaml", pairs))
    assert [pair.entry.name for pair in plan.pairs] == ["Run 0", "other"]
    assert plan.failed.keys() == {"run-0"}
    assert "same models as pair 'Run 0'" in plan.failed["run-0"]
    assert "rename it" in plan.failed["run-0"]


def test_a_slice_of_a_gone_store_is_refused(example, tmp_path):
    with pytest.raises(StoreError, match="no store there"):
        extract_slice(example.plan.slices[0], str(tmp_path / "nothing"))
    assert list(tmp_path.iterdir()) == []
