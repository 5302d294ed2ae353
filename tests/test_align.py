from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from rlsparse_ray.align import align
from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights import DTYPES, Checkpoint, FileRef, TensorSpec, open_local


def model(tensors, tied=None, source="/m"):
    """A checkpoint of {name: shape or (dtype, *shape)}, one after the other in one file."""
    file, at, specs = FileRef(f"{source}/model.safetensors", 0, ""), 8, []
    for name, given in tensors.items():
        dtype, shape = (
            (given[0], given[1:]) if given[:1] and isinstance(given[0], str) else ("BF16", given)
        )
        nbytes = int(np.prod(shape)) * DTYPES.get(dtype, 1)
        specs.append(TensorSpec(name, dtype, tuple(shape), file, at, nbytes))
        at += nbytes
    return Checkpoint(source, "0", tuple(specs), tied)


def rows(base, tuned, **options):
    return {row.tensor: row for row in align(base, tuned, **options)}


def statuses(base, tuned):
    return {name: row.status for name, row in rows(base, tuned).items()}


def refused(base, tuned, *words, **options):
    with pytest.raises(CheckpointError) as caught:
        align(base, tuned, **options)
    for word in words:
        assert word in str(caught.value)


def test_rows_of_every_kind_in_the_order_of_the_base():
    base = model({"z": (2, 3), "model.only_base": (5,), "b": (4, 4), "a": ()})
    tuned = model({"y_tuned": (1,), "a": (), "model.z": (2, 3), "b": (4, 5), "x_tuned": (7,)})
    found = align(base, tuned)
    assert [(row.tensor_key, row.status, row.numel, row.compared) for row in found] == [
        ("z [2,3]", "compared", 6, True),
        ("only_base [5]", "base_only", 0, False),
        ("b [4,4]|[4,5]", "shape_mismatch", 0, False),
        ("a []", "compared", 1, True),
        ("x_tuned [7]", "tuned_only", 0, False),
        ("y_tuned [1]", "tuned_only", 0, False),
    ]
    assert found[0].base.name == "z"
    assert found[0].tuned.name == "model.z"
    assert found[1].tuned is None
    assert found[2].shape is None
    assert found[2].compare_dtype is None
    assert found[5].base is None


def test_place_of_a_row():
    (row,) = align(
        model({"model.layers.3.mlp.up_proj.weight": (2,)}),
        model({"layers.3.mlp.up_proj.weight": (2,)}),
    )
    assert (row.layer, row.module, row.kind) == (3, "mlp.up_proj", "mlp")


def test_empty_and_scalar_tensors_are_compared():
    sides = model({"empty": (0, 4), "scalar": ()})
    found = rows(sides, sides)
    assert {name: (row.status, row.numel) for name, row in found.items()} == {
        "empty": ("compared", 0),
        "scalar": ("compared", 1),
    }


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight", "score.weight"])
def test_resized_vocabulary(name):
    (row,) = align(model({name: (128256, 64)}), model({name: (128264, 64)}))
    assert (row.status, row.shape) == ("partial_rows", (128256, 64))
    assert row.tensor_key.endswith(" [128256,64]")
    (row,) = align(model({name: (9, 64)}), model({name: (7, 64)}))
    assert (row.shape, row.numel) == ((7, 64), 7 * 64)


def test_only_rows_of_embeddings_and_heads_are_partial():
    base = model(
        {"embed_tokens.weight": (9, 64), "layers.0.mlp.up_proj.weight": (9, 64), "w": (1,)}
    )
    tuned = model(
        {"embed_tokens.weight": (9, 32), "layers.0.mlp.up_proj.weight": (8, 64), "w": (1,)}
    )
    assert statuses(base, tuned) == {
        "embed_tokens.weight": "shape_mismatch",
        "layers.0.mlp.up_proj.weight": "shape_mismatch",
        "w": "compared",
    }


EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def test_both_tied_counts_the_embedding_once():
    with_head, without = {EMBED: (8, 4), HEAD: (8, 4)}, {EMBED: (8, 4)}
    expected = {"embed_tokens.weight": "compared", HEAD: "tied"}
    assert statuses(model(with_head, True), model(with_head, True)) == expected
    assert statuses(model(with_head, True), model(without, True)) == expected
    assert statuses(model(without), model(with_head, True)) == expected
    assert statuses(model(without), model(without)) == {"embed_tokens.weight": "compared"}
    head = rows(model(with_head, True), model(without))[HEAD]
    assert (head.shape, head.numel, head.tuned, head.tensor_key) == (None, 0, None, f"{HEAD} [8,4]")


@pytest.mark.parametrize("told", [(None, None), (None, True), (True, None)])
@pytest.mark.parametrize("stored", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_silent_config_counts_a_tied_head_once(told, stored):
    sides = (
        model({EMBED: (8, 4)} | ({HEAD: (8, 4)} if head else {}), tied)
        for head, tied in zip(stored, told, strict=True)
    )
    found = statuses(*sides)
    # of two models with a head each nobody says that it is the embedding
    tied = "compared" if told == (None, None) and stored == (1, 1) else "tied"
    assert found == {"embed_tokens.weight": "compared"} | ({HEAD: tied} if any(stored) else {})


def test_weights_that_are_stored_once_under_two_names_are_tied():
    """As torch saves them."""
    sides = model({EMBED: (8, 4), HEAD: (8, 4)})
    embedding = sides.tensors[0]
    shared = replace(sides, tensors=(embedding, replace(embedding, name=HEAD)))
    assert statuses(shared, shared)[HEAD] == statuses(sides, shared)[HEAD] == "tied"


def test_a_head_of_another_shape_is_no_embedding():
    sides = model({EMBED: (8, 4), HEAD: (9, 4)}, True)
    assert statuses(sides, sides)[HEAD] == "compared"


def test_a_copy_of_the_embedding_beside_a_model_without_a_head():
    base = model({EMBED: (8, 4), HEAD: (8, 4)}, True)
    tuned = model({EMBED: (8, 4), "score.weight": (1, 4)}, False)
    assert statuses(base, tuned)[HEAD] == "tied"


@pytest.mark.parametrize("stored", [{}, {HEAD: (8, 4)}])
def test_a_tied_base_is_compared_with_the_head_of_the_tuned(stored):
    base = model({EMBED: (8, 4), "w": (3,)} | stored, tied=True)
    tuned = model({EMBED: (8, 4), "w": (3,), HEAD: (9, 4)}, tied=False)
    found = align(base, tuned)
    assert [(row.tensor, row.status) for row in found] == [
        ("embed_tokens.weight", "compared"),
        (HEAD, "partial_rows"),
        ("w", "compared"),
    ]
    assert found[1].base.name == EMBED
    assert found[1].tuned.name == HEAD


def test_the_head_of_the_base_is_compared_with_a_tied_tuned():
    base = model({HEAD: (8, 4), EMBED: (8, 4)}, tied=False)
    found = align(base, model({EMBED: (8, 4)}))
    assert [(row.tensor, row.status, row.tuned.name) for row in found] == [
        (HEAD, "compared", EMBED),
        ("embed_tokens.weight", "compared", EMBED),
    ]


def test_config_that_says_untied_is_believed():
    base, tuned = model({EMBED: (8, 4), HEAD: (8, 4)}, False), model({EMBED: (8, 4)}, False)
    assert statuses(base, tuned)[HEAD] == "base_only"


def test_a_reward_model_ties_nothing():
    base, tuned = (
        model({EMBED: (8, 4), HEAD: (8, 4)}),
        model({EMBED: (8, 4), "score.weight": (1, 4)}),
    )
    assert statuses(base, tuned) == {
        "embed_tokens.weight": "compared",
        HEAD: "base_only",
        "score.weight": "tuned_only",
    }


def test_tied_without_an_embedding_says_nothing():
    sides = model({HEAD: (8, 4)}, tied=True)
    assert statuses(sides, sides) == {HEAD: "compared"}


@pytest.mark.parametrize(
    ("base", "tuned", "given", "dtype"),
    [
        ("BF16", "BF16", None, "BF16"),
        ("F32", "BF16", None, "BF16"),
        ("F16", "F32", None, "F16"),
        ("F16", "BF16", None, "BF16"),
        ("F64", "F32", None, "F32"),
        ("F8_E5M2", "F8_E4M3", None, "F8_E5M2"),
        ("BF16", "F8_E4M3", None, "F8_E4M3"),
        ("BF16", "BF16", "F32", "F32"),
        ("F32", "F32", "BF16", "BF16"),
        ("I8", "I8", None, "I8"),
        ("BOOL", "BOOL", "BF16", "BOOL"),
    ],
)
def test_comparison_dtype(base, tuned, given, dtype):
    (row,) = align(model({"w": (base, 2)}), model({"w": (tuned, 2)}), compare_dtype=given)
    assert row.compare_dtype == dtype


@pytest.mark.parametrize(("base", "tuned"), [("I8", "U8"), ("I32", "I64"), ("BOOL", "BF16")])
def test_different_integers(base, tuned):
    sides = model({"a.w": (base, 2)}), model({"a.w": (tuned, 2)})
    refused(*sides, "tensor a.w", f"{base} in the base, {tuned} in the tuned", "convert one side")


@pytest.mark.parametrize("dtype", ["F4", "C64", "F8_E8M0"])
def test_dtypes_that_cannot_be_compared(dtype):
    odd, plain = model({"a.w": (dtype, 2), "b": (1,)}), model({"a.w": (2,), "b": (1,)})
    refused(odd, plain, f"tensor a.w: dtype {dtype} cannot be compared", "convert it to bf16")
    assert statuses(odd, model({"b": (1,)})) == {"a.w": "base_only", "b": "compared"}


def test_unknown_compare_dtype():
    refused(model({"w": (1,)}), model({"w": (1,)}), "'bf16'", "BF16", compare_dtype="bf16")


@pytest.mark.parametrize("suffix", ["_scale_inv", "_scale"])
def test_scaled_fp8_stands_for_its_values(suffix):
    scaled = model({"model.q.weight": ("F8_E4M3", 4, 4), f"model.q.weight{suffix}": ("F32", 1, 1)})
    for base, tuned in ((scaled, model({"q.weight": (4, 4)})), (scaled, scaled)):
        (row,) = align(base, tuned)
        assert (row.tensor, row.status, row.compare_dtype) == ("q.weight", "compared", "BF16")
        assert row.base.encoding == "fp8 blocks 4x4"


def test_nothing_in_common():
    base = model({"a": (1,), "b": (2, 2), "c": (3,), "d": (4,)}, source="/base")
    refused(
        base,
        model({"x": (1,)}, source="/tuned"),
        "nothing in common: /base has a [1], b [2,2], c [3], ...; /tuned has x [1]: check",
    )
    refused(model({"w": (2,)}), model({"w": (3,)}), "w [2]", "w [3]")


def test_real_files(tmp_path):
    for name, prefix, dtype in (("base", "model.", np.float32), ("tuned", "", np.float16)):
        (tmp_path / name).mkdir()
        tensors = {
            f"{prefix}layers.{i}.mlp.up_proj.weight": np.ones((3, 2), dtype) for i in range(2)
        }
        save_file(tensors, tmp_path / name / "model.safetensors")
    found = align(open_local(tmp_path / "base"), open_local(tmp_path / "tuned"))
    assert [row.tensor_key for row in found] == [
        "layers.0.mlp.up_proj.weight [3,2]",
        "layers.1.mlp.up_proj.weight [3,2]",
    ]
    assert {row.compare_dtype for row in found} == {"F16"}
