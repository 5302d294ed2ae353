"""A patch is applied to its own base, or nothing is written."""

import shutil

import pytest

from rlsparse_ray.errors import CheckpointError, PatchError
from rlsparse_ray.patches import apply_patch, make_patch
from tests.builders import write_model
from tests.patches.builders import files_of, flipped, plain, tensors_of, with_changes, write
from tests.patches.conftest import BASE, TUNED
from tests.test_bad_input import small_disk


def refused(scene, base, match, **options):
    """Nothing is written, not even for a moment: there is no folder to write to."""
    place = scene.out.parent / "none" / "out"
    with pytest.raises(PatchError, match=match):
        apply_patch(base, scene.patch, place, **options)
    assert not place.parent.exists()


def test_report(scene):
    report = apply_patch(scene.base, scene.patch, scene.out)
    weights = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    assert report.files[:2] == tuple(weights)
    assert sorted(report.files) == sorted(files_of(scene.base))
    assert report.nbytes == sum(map(len, files_of(scene.out).values()))
    assert report.written
    assert report.left_out == ()
    made = make_patch(scene.base, scene.tuned, scene.patch, force=True)
    assert report.changed == made.changed


def test_the_base_stays(scene):
    before = files_of(scene.base)
    apply_patch(scene.base, scene.patch, scene.out)
    assert files_of(scene.base) == before


def test_the_first_wrong_tensor_is_named(scene, tmp_path):
    """Also one that the patch does not change."""
    other = BASE | {"model.norm.weight": with_changes(BASE["model.norm.weight"], {3: b"\1\2"})}
    base = write(tmp_path / "other", other, shards=2)
    refused(
        scene,
        base,
        r"patch\.safetensors: not a patch of .*/other: tensor model\.norm\.weight: XXH3 \w{16} "
        r"instead of \w{16}: name its base, base",
    )


def test_the_tuned_model_is_not_the_base(scene):
    refused(scene, scene.tuned, r"embed_tokens\.weight: XXH3 \w+, that of the tuned model, instead")


def test_base_of_another_shape(scene, tmp_path):
    base = write(tmp_path / "other", BASE | {"lm_head.weight": plain("I8", (300, 16), 1)})
    refused(
        scene,
        base,
        r"(?s)not a patch of base .*/other: .*lm_head\.weight: I8 \[300, 16\] in base, "
        r"F8_E4M3 \[300, 16\] in patch.*made from base to tuned",
    )


def test_pickled_base(scene, tmp_path):
    import torch

    model = {"w": torch.zeros(3)}
    for name in ("base.pt", "tuned.pt"):
        torch.save(model, tmp_path / name)
        model["w"][1] = 1
    make_patch(tmp_path / "base.pt", tmp_path / "tuned.pt", scene.patch, force=True)
    refused(scene, tmp_path / "base.pt", r"base\.pt: a patched model is written as safetensors")


def test_other_weights_are_left_out(scene):
    """They would be the base's, beside the tuned model."""
    for name in ("consolidated.safetensors", "pytorch_model.bin", "model.gguf"):
        (scene.base / name).write_bytes(b"weights")
    (scene.base / "pytorch_model.bin.index.json").write_text("{}")
    report = apply_patch(scene.base, scene.patch, scene.out)
    assert sorted(report.left_out) == [
        "consolidated.safetensors",
        "model.gguf",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ]
    assert files_of(scene.out) == files_of(scene.tuned)


def test_one_file_as_the_base(tmp_path):
    base, tuned = (write(tmp_path / name, t) for name, t in (("base", BASE), ("tuned", TUNED)))
    patch = tmp_path / "p.safetensors"
    make_patch(base / "model.safetensors", tuned / "model.safetensors", patch)
    apply_patch(base / "model.safetensors", patch, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tuned)


def test_finished_output_is_kept(scene):
    apply_patch(scene.base, scene.patch, scene.out)
    times = {path: path.stat().st_mtime_ns for path in scene.out.iterdir()}
    assert not apply_patch(scene.base, scene.patch, scene.out).written
    assert {path: path.stat().st_mtime_ns for path in scene.out.iterdir()} == times


@pytest.mark.parametrize(
    ("name", "data"),
    [("config.json", b'{"model_type": "other"}'), ("config.json", b"{}"), ("empty.txt", b"1")],
)
def test_another_output(scene, name, data):
    apply_patch(scene.base, scene.patch, scene.out)
    (scene.out / name).write_bytes(data)
    before = files_of(scene.out)
    with pytest.raises(PatchError, match=r"out: exists and is not this model: .* pass --force"):
        apply_patch(scene.base, scene.patch, scene.out)
    assert files_of(scene.out) == before
    assert apply_patch(scene.base, scene.patch, scene.out, force=True).written
    assert files_of(scene.out) == files_of(scene.tuned)


def test_one_bit_of_the_output(scene):
    apply_patch(scene.base, scene.patch, scene.out)
    path = scene.out / "model-00002-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(PatchError, match="exists and is not this model"):
        apply_patch(scene.base, scene.patch, scene.out)


def test_other_things_are_never_replaced(scene):
    scene.out.mkdir()
    (scene.out / "thesis.tex").write_text("years of work")
    with pytest.raises(PatchError, match=r"exists and holds thesis\.tex, which is not of this"):
        apply_patch(scene.base, scene.patch, scene.out, force=True)
    assert (scene.out / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("place", ["base", "."])
def test_the_base_is_never_replaced(scene, place):
    before = files_of(scene.base)
    with pytest.raises(PatchError, match="the base is there: name another folder"):
        apply_patch(scene.base, scene.patch, scene.base.parent / place, force=True)
    assert files_of(scene.base) == before


def test_a_file_is_no_folder(scene):
    scene.out.write_text("1")
    with pytest.raises(PatchError, match="exists and holds out, which is not of this model"):
        apply_patch(scene.base, scene.patch, scene.out, force=True)


def test_an_empty_folder_is_none(scene):
    scene.out.mkdir()
    assert apply_patch(scene.base, scene.patch, scene.out).written
    assert files_of(scene.out) == files_of(scene.tuned)


def test_output_in_a_bucket(scene):
    with pytest.raises(PatchError, match="is written to a local folder: name one"):
        apply_patch(scene.base, scene.patch, "s3://bucket/model")


def test_damaged_values(scene):
    """Found while the output is written; nothing of it is left."""
    data = bytearray(scene.patch.read_bytes())
    data[-1] ^= 1
    scene.patch.write_bytes(data)
    before = set(scene.base.parent.iterdir())
    with pytest.raises(PatchError, match=r"tensor lm_head\.weight\.values: XXH3 is not"):
        apply_patch(scene.base, scene.patch, scene.out)
    assert set(scene.base.parent.iterdir()) == before


@pytest.mark.parametrize("shard", [1, 2])
def test_base_changes_after_its_check(scene, shard):
    (path,) = scene.base.glob(f"*-0000{shard}-of-*")

    def swap(what, _total, work):
        if what == "patch apply":
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        return work(lambda nbytes: None)

    with pytest.raises(CheckpointError, match="changed between plan and read"):
        apply_patch(scene.base, scene.patch, scene.out, bar=swap)
    assert not scene.out.exists()


def test_full_disk(tmp_path):
    base = {"w": plain("BF16", (1 << 21,), 1)}
    write(tmp_path / "base", base)
    write(tmp_path / "tuned", {"w": flipped(base["w"], 0.1, 2)})
    patch = tmp_path / "p.safetensors"
    make_patch(tmp_path / "base", tmp_path / "tuned", patch)
    with small_disk(tmp_path / "disk", "size=2m") as disk:
        with pytest.raises(PatchError, match=r"No space left on device.*: free some space"):
            apply_patch(tmp_path / "base", patch, disk / "out")
        assert list(disk.iterdir()) == []


def test_a_chain(tmp_path):
    """Patches of one run, step by step: each makes the base of the next."""
    steps = [BASE]
    for seed in (1, 2):
        steps.append({name: flipped(tensor, 0.05, seed) for name, tensor in steps[-1].items()})
    for number, step in enumerate(steps):
        write(tmp_path / f"step-{number}", step)
    patches = [tmp_path / f"{number}.safetensors" for number in (0, 1)]
    for number, patch in enumerate(patches):
        make_patch(tmp_path / f"step-{number}", tmp_path / f"step-{number + 1}", patch)
    with pytest.raises(PatchError, match="not a patch of"):
        apply_patch(tmp_path / "step-0", patches[1], tmp_path / "wrong")
    apply_patch(tmp_path / "step-0", patches[0], tmp_path / "one")
    apply_patch(tmp_path / "one", patches[1], tmp_path / "two")
    assert tensors_of(tmp_path / "two") == steps[2]


def test_base_on_the_hub(hub, scene):
    shutil.copytree(scene.base, hub.folder("org/base"), dirs_exist_ok=True)
    assert apply_patch("hf://org/base", scene.patch, scene.out).written
    assert tensors_of(scene.out) == TUNED


def test_empty_model(scene, tmp_path):
    write_model(tmp_path / "empty", {})
    with pytest.raises(CheckpointError, match="holds no tensor"):
        apply_patch(tmp_path / "empty", scene.patch, scene.out)
