"""Whatever is wrong with a patch is found, and said."""

import json

import numpy as np
import pytest
import xxhash

from rlsparse_ray.errors import PatchError
from rlsparse_ray.patches import apply_patch, make_patch, verify_patch
from rlsparse_ray.patches.format import model_xxh3
from tests.patches.builders import (
    plain,
    read_safetensors,
    with_changes,
    write,
    write_safetensors,
)
from tests.patches.conftest import BASE, TUNED

UP = "model.layers.0.mlp.up_proj.weight"


def problems_of(scene, **models):
    return [(p.where, p.tensor, p.problem) for p in verify_patch(scene.patch, **models).problems]


class Editor:
    """A patch taken apart, so that it may be put together wrong."""

    def __init__(self, path):
        self.path = path
        self.header, self.data = read_safetensors(path)
        self.metadata = self.header["__metadata__"]
        self.tensors = json.loads(self.metadata["tensors"])

    def array(self, name, dtype):
        begin, end = self.header[name]["data_offsets"]
        return np.frombuffer(self.data[begin:end], dtype).copy()

    def put(self, name, array):
        """Other bytes for a tensor of the same size, their hash with them."""
        begin, end = self.header[name]["data_offsets"]
        assert array.nbytes == end - begin
        self.data = self.data[:begin] + array.tobytes() + self.data[end:]
        tensor, _, kind = name.rpartition(".")
        self.tensors[tensor][f"{kind}_xxh3"] = xxhash.xxh3_64_hexdigest(array.tobytes())

    def save(self):
        self.metadata["tensors"] = json.dumps(self.tensors)
        write_safetensors(self.path, self.header, self.data)


@pytest.fixture
def editor(scene):
    return Editor(scene.patch)


def test_all_is_well(scene):
    report = verify_patch(scene.patch, base=scene.base, tuned=scene.tuned)
    assert (report.ok, report.problems, report.tensors) == (True, [], 4)
    assert report.against == ("base", "tuned")
    assert report.changed == make_patch(scene.base, scene.tuned, scene.patch, force=True).changed


def test_saved_as_it_was(scene, editor):
    """What the tests below change is what is found."""
    editor.save()
    assert problems_of(scene, base=scene.base, tuned=scene.tuned) == []


@pytest.mark.parametrize("cut", [1, 500])
def test_cut(scene, cut):
    scene.patch.write_bytes(scene.patch.read_bytes()[:-cut])
    ((where, tensor, problem),) = problems_of(scene)
    assert (where, tensor) == ("patch", "")
    assert "header promises" in problem


def test_every_byte_counts(scene):
    whole = scene.patch.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for at in (*range(start, len(whole), 211), len(whole) - 1):
        scene.patch.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert problems_of(scene), at


def test_a_model_is_no_patch(scene, tmp_path):
    (path,) = scene.base.glob("*-00001-of-*")
    report = verify_patch(path)
    assert "a safetensors file, but no patch" in report.problems[0].problem


def test_no_patch_there(tmp_path):
    with pytest.raises(PatchError, match=r"patch .*none\.safetensors: no such file or folder"):
        verify_patch(tmp_path / "none.safetensors")


def test_a_folder(scene):
    ((_, _, problem),) = [(p.where, p.tensor, p.problem) for p in verify_patch(scene.base).problems]
    assert problem == f"{scene.base}: a folder: name the file of the patch in it"


def test_newer_format(scene, editor):
    editor.metadata |= {"format_version": "2", "software": "rlsparse_ray 9.0"}
    editor.save()
    said = "format version 2 of patches (written by rlsparse_ray 9.0), this software reads 1"
    assert said in problems_of(scene)[0][2]
    with pytest.raises(PatchError, match="update it"):
        apply_patch(scene.base, scene.patch, scene.out)


@pytest.mark.parametrize("key", ["base", "tuned", "tensors", "software"])
def test_metadata_is_missing(scene, editor, key):
    editor.save()
    del editor.metadata[key]
    write_safetensors(editor.path, editor.header, editor.data)
    assert f"metadata {key}: Field required" in problems_of(scene)[0][2]


def test_metadata_of_another_kind(scene, editor):
    editor.tensors[UP]["shape"] = [20, -16]
    editor.save()
    assert f"metadata tensors.{UP}.shape.1: " in problems_of(scene)[0][2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t[UP].update(shape=[20, 17]), "the hash of the base model is not that of its"),
        (lambda t: t[UP].pop("values_xxh3"), f"tensor {UP}: its metadata has a hash of indices or"),
        (lambda t: t.pop(UP), f"tensor {UP}.indices: not in the metadata"),
        (lambda t: t[UP].update(shape=[1]), "entries for a tensor of 1 elements"),
        (lambda t: t[UP].update(dtype="I32"), f"tensor {UP}.values: F32 of shape"),
        (
            lambda t: t["model.norm.weight"].update(tuned_xxh3="0" * 16),
            "tensor model.norm.weight: changed by its hashes, but without entries",
        ),
        (
            lambda t: t["model.norm.weight"].update(indices_xxh3="0", values_xxh3="0"),
            "tensor model.norm.weight.indices: missing",
        ),
    ],
)
def test_metadata_against_tensors(scene, editor, change, said):
    change(editor.tensors)
    editor.save()
    assert said in problems_of(scene)[0][2]


def test_fewer_values_than_indices(scene, editor):
    # the last tensor of the file, so that no other one moves
    name = "lm_head.weight.values"
    assert editor.header[name]["data_offsets"][1] == len(editor.data)
    editor.header[name]["data_offsets"][1] -= 1
    editor.header[name]["shape"][0] -= 1
    editor.data = editor.data[:-1]
    editor.save()
    assert "tensor lm_head.weight: not as many values as indices" in problems_of(scene)[0][2]


def swapped(indices):
    indices[[3, 4]] = indices[[4, 3]]


def twice(indices):
    indices[4] = indices[3]


def negative(indices):
    indices[0] = -1


def beyond(indices):
    indices[-1] = 320


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swapped, "not in ascending order"),
        (twice, "not in ascending order"),
        (negative, "not in ascending order"),
        (beyond, "beyond the 320 elements"),
    ],
)
def test_indices(scene, editor, change, said):
    indices = editor.array(f"{UP}.indices", "<i4")
    change(indices)
    editor.put(f"{UP}.indices", indices)
    editor.save()
    ((where, tensor, problem),) = problems_of(scene, base=scene.base)
    assert (where, tensor) == ("patch", UP)
    assert f"tensor {UP}.indices: {said}: copy the file again" in problem
    with pytest.raises(PatchError, match=said):
        apply_patch(scene.base, scene.patch, scene.out)
    assert not scene.out.exists()


def test_other_values(scene, editor):
    """In themselves all right, but not those of the tuned model."""
    values = editor.array(f"{UP}.values", "<u4")
    values[[5, 7]] ^= 0x10
    editor.put(f"{UP}.values", values)
    editor.save()
    assert problems_of(scene) == []
    (base, tuned) = problems_of(scene, base=scene.base, tuned=scene.tuned)
    assert base[:2] == ("base", UP)
    assert base[2].startswith("patched, XXH3 ")
    assert tuned == ("tuned", UP, "2 values of the patch are not its own")
    with pytest.raises(PatchError, match=f"tensor {UP} of .* became one with XXH3"):
        apply_patch(scene.base, scene.patch, scene.out)


def test_entries_that_change_nothing(scene, editor):
    """A tuned model that is the base in one tensor, and a patch with entries for it."""
    tuned = {**TUNED, UP: BASE[UP]}
    write(scene.out, tuned)
    indices = editor.array(f"{UP}.indices", "<i4")
    old = np.frombuffer(BASE[UP].data, "<u4")[indices]
    editor.put(f"{UP}.values", old)
    editor.tensors[UP]["tuned_xxh3"] = editor.tensors[UP]["base_xxh3"]
    records = [
        (n, t["dtype"], tuple(t["shape"]), t["tuned_xxh3"]) for n, t in editor.tensors.items()
    ]
    identity = json.loads(editor.metadata["tuned"]) | {"xxh3": model_xxh3(records)}
    editor.metadata["tuned"] = json.dumps(identity)
    editor.save()
    said = ("base", UP, f"{indices.size} entries of the patch change nothing")
    assert problems_of(scene, base=scene.base, tuned=scene.out) == [said]


def test_wrong_models(scene, tmp_path):
    found = problems_of(scene, base=scene.tuned, tuned=scene.base)
    changed = [name for name in TUNED if TUNED[name] != BASE[name]]
    assert sorted((where, tensor) for where, tensor, _ in found) == sorted(
        (side, name) for side in ("base", "tuned") for name in changed
    )
    norm = with_changes(BASE["model.norm.weight"], {0: b"ab"})
    other = write(tmp_path / "other", TUNED | {"model.norm.weight": norm})
    ((where, tensor, problem),) = problems_of(scene, tuned=other)
    assert (where, tensor) == ("tuned", "model.norm.weight")
    assert problem.startswith("XXH3 ")


def test_models_of_other_tensors(scene, tmp_path):
    other = write(tmp_path / "other", {"w": plain("BF16", (3,), 1)})
    ((where, tensor, problem),) = problems_of(scene, tuned=other)
    assert (where, tensor) == ("tuned", "")
    assert "w: only in tuned" in problem
    assert "lm_head.weight: only in patch" in problem
