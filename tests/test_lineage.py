"""Does the score tell base and tuned from two models that have nothing to do with each other?

The models are real: the base that the package ships, trained further in ways from gentle to
rough, and others of its architecture that were trained from other random weights.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlsparse_ray.compare.lineage import LEAST_SCORE, likeness
from rlsparse_ray.corpus import load_corpus
from rlsparse_ray.demo import pretrain
from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.experiments import arithmetic, checkpoints
from rlsparse_ray.lineage import LEAST_BYTES, SIDE_BYTES, TENSORS, lineage_of
from rlsparse_ray.plan import make_plan
from rlsparse_ray.weights import Reader, open_local
from tests.builders import BF16, Model, tuned_from, weights, write_corpus, write_model, write_raw

BASE = pretrain.BASES / "tiny-a"
RECIPE = replace(pretrain.RECIPES[0], batch=32)


def planned(base, tuned, folder):
    pair = {"name": "pair", "base": str(base), "tuned": str(tuned)}
    plan = make_plan(load_corpus(write_corpus(folder / "corpus.yaml", [pair])))
    assert plan.failed == {}
    return plan.pairs[0]


def trained(model, seed, steps, rate, folder):
    tokenizer = arithmetic.make_tokenizer()
    recipe = replace(RECIPE, seed=seed, steps=steps, learning_rate=rate)
    pretrain.train(model, recipe, pretrain.batches(recipe, tokenizer))
    checkpoints.save(model, tokenizer, folder)


def tensors_of(folder: Path) -> Model:
    return {
        t.name: np.fromfile(t.file.path, BF16, t.numel, offset=t.offset).reshape(t.shape)
        for t in open_local(str(folder)).tensors
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of real models by name."""
    root = tmp_path_factory.mktemp("models")
    for name, rate in (("gentle", 1e-5), ("usual", 1e-4), ("rough", 2e-3)):
        trained(checkpoints.load_model(BASE), 9, 30, rate, root / name)
    other = pretrain.make_model(replace(RECIPE, seed=3), arithmetic.make_tokenizer())
    checkpoints.save(other, arithmetic.make_tokenizer(), root / "other-start")
    trained(other, 3, 30, 2e-3, root / "other")
    trained(other, 4, 30, 2e-3, root / "other-later")
    base = tensors_of(BASE)
    write_model(root / "fp32", {name: array.astype(np.float32) for name, array in base.items()})
    write_model(root / "resized", {name: resized(name, array) for name, array in base.items()})
    write_model(root / "lora", {name: adapted(name, array) for name, array in base.items()})
    return {"base": BASE} | {path.name: path for path in root.iterdir()}


def resized(name, array):
    new = np.full((7, *array.shape[1:]), 0.5, array.dtype)
    return np.concatenate([array, new]) if "embed" in name or "lm_head" in name else array


def adapted(name, array):
    """A merged low-rank update of the attention that is 2 % as long as the weights."""
    if "_proj" not in name or "self_attn" not in name:
        return array
    rng = np.random.default_rng(len(name))
    update = rng.normal(size=(array.shape[0], 4)) @ rng.normal(size=(4, array.shape[1]))
    update *= 0.02 * np.linalg.norm(array.astype(float)) / np.linalg.norm(update)
    return np.asarray(array.astype(float) + update, array.dtype)


@pytest.mark.parametrize(
    ("base", "tuned", "least"),
    [
        ("base", "gentle", 0.9999),
        ("base", "usual", 0.999),
        ("base", "rough", 0.98),
        ("base", "lora", 0.999),
        ("base", "resized", 1.0),
        ("base", "fp32", 1.0),
        ("fp32", "base", 1.0),
        ("gentle", "rough", 0.98),
        ("other", "other-later", 0.98),
        ("other-start", "other", 0.9),
    ],
)
def test_related_models_score_high(models, base, tuned, least, tmp_path):
    found = lineage_of(planned(models[base], models[tuned], tmp_path))
    assert found.score >= least - 1e-12 > LEAST_SCORE + 0.1
    assert found.relative_distance < 0.6


@pytest.mark.parametrize("tuned", ["other-start", "other", "other-later"])
@pytest.mark.parametrize("base", ["base", "rough", "fp32"])
def test_unrelated_models_score_low(models, base, tuned, tmp_path):
    found = lineage_of(planned(models[base], models[tuned], tmp_path))
    assert found.score < 0.15 < LEAST_SCORE - 0.5
    assert "unrelated" in found.doubt
    assert f"{found.score:.2f}" in found.doubt


def test_norms_of_unrelated_models_would_have_looked_related(models):
    base, other = tensors_of(models["base"]), tensors_of(models["other"])
    norms = [name for name in base if "norm" in name]
    assert len(norms) == 5
    assert min(likeness(base[n], other[n]).cosine for n in norms) > 0.99


def test_matrices_of_two_kinds_and_several_depths(models, tmp_path):
    found = lineage_of(planned(models["base"], models["usual"], tmp_path))
    assert len(found.tensors) == len(set(found.tensors)) == TENSORS
    assert sum("self_attn" in name for name in found.tensors) == 3
    assert sum("mlp" in name for name in found.tensors) == 3
    assert {name.split(".")[1] for name in found.tensors} == {"0", "1"}


def test_what_speaks_for_and_against(models, tmp_path):
    def doubt(base, tuned):
        return lineage_of(planned(models[base], models[tuned], tmp_path)).doubt

    assert doubt("base", "usual") is None
    assert doubt("base", "rough") is None
    assert "not the base itself" in doubt("base", "fp32")


def test_equal_share_is_that_of_the_comparison_dtype(models, tmp_path):
    """fp32 weights that were bf16 are equal to them, bit by bit."""
    assert lineage_of(planned(models["fp32"], models["base"], tmp_path)).equal_share == 1
    changed = lineage_of(planned(models["fp32"], models["usual"], tmp_path)).equal_share
    assert 0 < changed < 0.9


def test_a_change_of_half_the_matrices_is_suspect(models, tmp_path):
    """Say, a vision tower that both have, with another language model."""
    other = tensors_of(models["other"])
    mixed = {n: other[n] if "mlp" in n else a for n, a in tensors_of(BASE).items()}
    found = lineage_of(planned(BASE, write_model(tmp_path / "mixed", mixed), tmp_path))
    assert found.score == pytest.approx(0.5, abs=0.1)
    assert found.doubt is not None


def test_same_bytes_on_both_sides_say_nothing(tmp_path):
    found = lineage_of(planned(BASE, BASE, tmp_path))
    assert (found.score, found.equal_share, found.tensors, found.doubt) == (None, None, (), None)


def test_tensors_that_are_made_from_others_are_left_out(models, tmp_path):
    """As in an adapter: the rest of it is the base's own."""
    pair = planned(models["base"], models["usual"], tmp_path)
    rows = tuple(
        replace(row, tuned=replace(row.tuned, encoding="lora", inputs=(row.base,)))
        if "mlp" in row.tensor
        else row
        for row in pair.rows
    )
    found = lineage_of(replace(pair, rows=rows))
    assert len(found.tensors) == TENSORS
    assert all("self_attn" in name for name in found.tensors)
    rows = tuple(row if row.tuned.inputs else replace(row, tuned=row.base) for row in rows)
    assert lineage_of(replace(pair, rows=rows)).score is None


@pytest.mark.parametrize(
    "model",
    [
        {"model.norm.weight": weights(0, (4096,))},
        {"layers.0.mlp.up_proj.weight": weights(0, (7, 9))},
        {"layers.0.mlp.up_proj.weight": np.zeros((70, 90), BF16)},
        {"layers.0.mlp.up_proj.weight": np.ones((70, 90), np.int8)},
    ],
    ids=["norms only", "too few values", "zeros", "integers"],
)
def test_nothing_to_tell_it_from(model, tmp_path):
    base, tuned = (write_model(tmp_path / name, model) for name in "ab")
    found = lineage_of(planned(base, tuned, tmp_path))
    assert (found.score, found.doubt) == (None, None)


def test_embeddings_only_where_there_is_nothing_better(tmp_path):
    base = {"embed_tokens.weight": weights(0, (99, 32)), "norm.weight": weights(1, (32,))}
    write_model(tmp_path / "a", base)
    write_model(tmp_path / "b", tuned_from(base, 5))
    found = lineage_of(planned(tmp_path / "a", tmp_path / "b", tmp_path))
    assert found.tensors == ("embed_tokens.weight",)
    assert found.score > 0.99


@pytest.mark.parametrize(
    ("width", "limit"), [(64, LEAST_BYTES), (1500, 200_000), (9000, SIDE_BYTES)]
)
def test_few_bytes_are_read(width, limit, tmp_path, monkeypatch):
    """Counted as the reader reads them, in 8 sparse matrices of `width` x `width` bf16."""
    nbytes = 2 * width * width
    header = {
        f"layers.{k // 2}.mlp.{('up', 'down')[k % 2]}_proj.weight": {
            "dtype": "BF16",
            "shape": [width, width],
            "data_offsets": [k * nbytes, (k + 1) * nbytes],
        }
        for k in range(8)
    }
    for name in "ab":
        path = write_raw(tmp_path / name / "model.safetensors", header)
        os.truncate(path, path.stat().st_size + 8 * nbytes)
    pair = planned(tmp_path / "a", tmp_path / "b", tmp_path)
    asked = []
    read = Reader.read_into
    monkeypatch.setattr(
        Reader, "read_into", lambda *a: (asked.append((a[1].path, a[3].nbytes)), read(*a))[1]
    )
    assert len(lineage_of(pair).tensors) == TENSORS
    total = sum(tensor.nbytes for side in (pair.base, pair.tuned) for tensor in side.tensors)
    for path in {path for path, _ in asked}:
        nbytes = sum(n for at, n in asked if at == path)
        assert limit * 0.8 < nbytes <= min(limit, max(LEAST_BYTES, 0.0025 * total))
    assert len(asked) == 2 * TENSORS


def test_a_model_that_is_gone_is_told(tmp_path):
    for name in "ab":
        write_model(tmp_path / name, {"layers.0.mlp.up_proj.weight": weights(0, (70, 90))})
    pair = planned(tmp_path / "a", tmp_path / "b", tmp_path)
    (tmp_path / "b" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"b/model\.safetensors"):
        lineage_of(pair)
