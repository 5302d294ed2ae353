"""What a patch says, what is refused, and that a patch appears whole or not at all."""

import json
import math
import subprocess
import sys

import numpy as np
import obstore
import pytest

from rlsparse_ray import __version__
from rlsparse_ray.errors import CheckpointError, PatchError
from rlsparse_ray.patches import apply_patch, make_patch, open_patch
from tests.builders import write_model
from tests.patches.builders import (
    elements,
    flipped,
    plain,
    read_safetensors,
    tensors_of,
    write,
    write_safetensors,
)
from tests.patches.conftest import BASE, TUNED
from tests.test_bad_input import remount, small_disk

GONE = "no patch from {base} to {tuned}: not the same tensors:"


def refused(scene, tuned, *lines):
    write(scene.out, tuned)
    with pytest.raises(PatchError) as caught:
        make_patch(scene.base, scene.out, scene.patch, force=True)
    said = str(caught.value).split("\n")
    assert said[0] == GONE.format(base=scene.base, tuned=scene.out)
    assert said[1:-1] == [f"  {line}" for line in lines]


def test_report(scene):
    report = make_patch(scene.base, scene.tuned, scene.patch, force=True)
    changed = {
        name: sum(a != b for a, b in zip(elements(BASE[name]), elements(TUNED[name]), strict=True))
        for name in BASE
    }
    assert changed.pop("model.norm.weight") == 0
    widths = {"model.embed_tokens.weight": 2, "model.layers.0.mlp.up_proj.weight": 4}
    bits = 0.0
    for name, count in changed.items():
        numel = math.prod(BASE[name].shape)
        p = count / numel
        bits -= numel * (p * math.log2(p) + (1 - p) * math.log2(1 - p))
    assert (report.tensors, report.tensors_changed) == (4, 3)
    assert report.numel == 300 * 16 + 20 * 16 + 16 + 300 * 16
    assert report.changed == sum(changed.values())
    assert report.density == report.changed / report.numel
    assert report.dense_bytes == sum(len(tensor.data) for tensor in BASE.values())
    assert report.indices_bytes == 4 * report.changed
    assert report.values_bytes == sum(n * widths.get(name, 1) for name, n in changed.items())
    assert report.patch_bytes == scene.patch.stat().st_size
    assert report.patch_share == report.patch_bytes / report.dense_bytes
    assert report.indices_entropy_bytes == math.ceil(bits / 8)
    assert report.patch == str(scene.patch)


def test_metadata(scene):
    header, _ = read_safetensors(scene.patch)
    metadata = header["__metadata__"]
    assert all(isinstance(value, str) for value in metadata.values())
    assert metadata["format"] == "rlsparse.patch"
    assert metadata["format_version"] == "1"
    assert metadata["software"] == f"rlsparse_ray {__version__}"
    base, tuned = (json.loads(metadata[side]) for side in ("base", "tuned"))
    assert (base["source"], base["revision"]) == ("base", "")
    assert (tuned["source"], tuned["revision"]) == ("tuned", "")
    assert base["xxh3"] != tuned["xxh3"]
    tensors = json.loads(metadata["tensors"])
    assert list(tensors) == sorted(BASE)
    norm = tensors["model.norm.weight"]
    assert (norm["dtype"], norm["shape"]) == ("BF16", [16])
    assert norm["base_xxh3"] == norm["tuned_xxh3"]
    assert "indices_xxh3" not in norm


def test_hashes_are_those_of_a_store(example, tmp_path):
    """So that a patch can be looked up among the pairs of a store."""
    import pyarrow.parquet as pq

    models = example.corpus.parent
    make_patch(models / "base", models / "grpo-0", tmp_path / "p.safetensors")
    patch = open_patch(tmp_path / "p.safetensors")
    rows = {}
    for path in (example.store / "tensors").glob("*/tensors.parquet"):
        if "grpo-0" in path.parent.name:
            rows = {row["tuned_name"]: row for row in pq.ParquetFile(path).read().to_pylist()}
    assert rows.keys() == patch.tensors.keys()
    for name, record in patch.tensors.items():
        found = rows[name]["base_xxh3"], rows[name]["tuned_xxh3"]
        assert (record.base_xxh3, record.tuned_xxh3) == found


def test_same_bytes_again(scene, tmp_path):
    """From copies elsewhere, at another time, the tuned one in other shards."""
    write(tmp_path / "copy" / "base", BASE, shards=2)
    write(tmp_path / "copy" / "tuned", TUNED, shards=3)
    again = tmp_path / "again.safetensors"
    make_patch(tmp_path / "copy" / "base", tmp_path / "copy" / "tuned", again)
    assert again.read_bytes() == scene.patch.read_bytes()


def test_nothing_changed(scene):
    report = make_patch(scene.base, scene.base, scene.patch, force=True)
    assert (report.changed, report.tensors_changed, report.indices_entropy_bytes) == (0, 0, 0)
    apply_patch(scene.base, scene.patch, scene.out)
    assert tensors_of(scene.out) == BASE


def test_other_tensors(scene):
    tuned = {name: tensor for name, tensor in TUNED.items() if "up_proj" not in name}
    refused(
        scene,
        tuned | {"value.weight": plain("BF16", (2,), 5)},
        "model.layers.0.mlp.up_proj.weight: only in base",
        "value.weight: only in tuned",
    )


def test_other_shape_and_dtype(scene):
    tuned = TUNED | {
        "lm_head.weight": plain("I8", (300, 16), 5),
        "model.embed_tokens.weight": plain("BF16", (304, 16), 5),
        "model.norm.weight": plain("BF16", (4, 4), 5),
    }
    refused(
        scene,
        tuned,
        "lm_head.weight: F8_E4M3 [300, 16] in base, I8 [300, 16] in tuned",
        "model.embed_tokens.weight: BF16 [300, 16] in base, BF16 [304, 16] in tuned",
        "model.norm.weight: BF16 [16] in base, BF16 [4, 4] in tuned",
    )


def test_a_long_list_is_cut(scene):
    extra = {f"extra.{k:02}": plain("BF16", (2,), k) for k in range(25)}
    shown = [f"extra.{k:02}: only in tuned" for k in range(20)]
    refused(scene, TUNED | extra, *shown, "and 5 more")


def test_elements_below_a_byte(tmp_path):
    header = {"w": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]}}
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        write_safetensors(tmp_path / name / "model.safetensors", header, b"1234")
    with pytest.raises(PatchError, match="tensor w: F4 has no whole bytes an element"):
        make_patch(tmp_path / "base", tmp_path / "tuned", tmp_path / "p.safetensors")


def test_adapter(scene, tmp_path):
    adapter = tmp_path / "adapter"
    write_model(adapter, {"base_model.model.q.lora_A.weight": np.zeros((2, 2), np.float32)})
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(PatchError, match=r"tuned .*/adapter: a LoRA adapter: ship it as it is"):
        make_patch(scene.base, adapter, tmp_path / "p.safetensors")


def test_missing_model(scene, tmp_path):
    with pytest.raises(PatchError, match=r"tuned .*/none: no such file or folder: check the path"):
        make_patch(scene.base, tmp_path / "none", scene.patch, force=True)


def test_a_patch_that_is_there(scene):
    before = scene.patch.read_bytes()
    with pytest.raises(PatchError, match=r"patch\.safetensors: exists: .* or pass --force"):
        make_patch(scene.base, scene.base, scene.patch)
    assert scene.patch.read_bytes() == before
    make_patch(scene.base, scene.base, scene.patch, force=True)
    assert scene.patch.read_bytes() != before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("patch.bin", "patch.bin: the name of a patch ends in .safetensors: add it"),
        ("hf://org/repo/p.safetensors", "hf://org/repo/p.safetensors: cannot be written to"),
    ],
)
def test_bad_output(scene, name, said):
    with pytest.raises(PatchError, match=said):
        make_patch(scene.base, scene.tuned, name)


def test_an_unreadable_model_leaves_nothing(scene, tmp_path):
    """The tuned model is cut while the base is read."""
    place = tmp_path / "new" / "p.safetensors"
    (path,) = scene.tuned.glob("*-00002-of-*")

    def cut(_what, _total, work):
        path.write_bytes(path.read_bytes()[:-1])
        return work(lambda nbytes: None)

    with pytest.raises(CheckpointError, match="changed between plan and read"):
        make_patch(scene.base, scene.tuned, place, bar=cut)
    assert list(place.parent.iterdir()) == []


def test_full_disk(tmp_path):
    base = {"w": plain("BF16", (1 << 20,), 1)}
    write(tmp_path / "base", base)
    write(tmp_path / "tuned", {"w": flipped(base["w"], 0.5, 2)})
    with small_disk(tmp_path / "disk", "size=2m") as disk:
        place = disk / "p.safetensors"
        with pytest.raises(PatchError, match=r"No space left on device.*: free some space"):
            make_patch(tmp_path / "base", tmp_path / "tuned", place)
        assert list(disk.iterdir()) == []
        remount(disk, "ro")
        with pytest.raises(PatchError, match="the file system is read-only: write elsewhere"):
            make_patch(tmp_path / "base", tmp_path / "tuned", place)


STOPPED = """
import sys, time
from rlsparse_ray.patches import make_patch, apply_patch

def stop(what, total, work):
    def advance(nbytes):
        if what == sys.argv[1]:
            print("stopped", flush=True)
            time.sleep(600)
    return work(advance)

{"make": make_patch, "apply": apply_patch}[sys.argv[1].split()[1]](*sys.argv[2:], bar=stop)
"""


def kill_in_the_middle(what, *words):
    """Run a verb in a process of its own and kill it once it has read some bytes."""
    command = [sys.executable, "-c", STOPPED, what, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "stopped\n"
        process.kill()


def test_killed(scene, tmp_path):
    place = tmp_path / "new" / "p.safetensors"
    kill_in_the_middle("patch make", scene.base, scene.tuned, place)
    assert list(place.parent.iterdir()) == []
    make_patch(scene.base, scene.tuned, place)
    assert place.read_bytes() == scene.patch.read_bytes()


def test_apply_killed(scene):
    before = set(scene.base.parent.iterdir())
    kill_in_the_middle("patch apply", scene.base, scene.patch, scene.out)
    assert not scene.out.exists()
    (left,) = set(scene.base.parent.iterdir()) - before
    assert left.name.startswith("out.")
    assert left.name.endswith(".partial")
    apply_patch(scene.base, scene.patch, scene.out)
    assert tensors_of(scene.out) == TUNED


PEAK = """
import sys
from pathlib import Path
from rlsparse_ray.patches import make_patch, apply_patch, verify_patch

def peak():
    # not ru_maxrss, which begins with that of the parent
    (line,) = (s for s in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in s)
    return int(line.split()[1])

base, tuned, small, patch, out = sys.argv[1:]
make_patch(small, small, patch)
before = peak()
make_patch(base, tuned, patch, force=True)
verify_patch(patch, base=base, tuned=tuned)
apply_patch(base, patch, out)
print((peak() - before) >> 10)
"""


def test_memory_does_not_grow_with_the_model(tmp_path):
    base = {"w": plain("BF16", (1 << 25,), 1)}
    write(tmp_path / "base", base)
    write(tmp_path / "tuned", {"w": flipped(base["w"], 0.5, 2)})
    write(tmp_path / "small", {"w": plain("BF16", (4,), 1)})
    places = ("base", "tuned", "small", "p.safetensors", "out")
    command = [sys.executable, "-c", PEAK, *(str(tmp_path / place) for place in places)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # a side has 64 MiB, its patch 96; buffers of 2 MiB and what a window makes of them stay
    assert int(done.stdout) < 48, done.stdout


def test_from_and_to_a_bucket(s3, scene):
    s3.create_bucket("patches")
    s3.upload(scene.base, "patches", "base")
    s3.upload(scene.tuned, "patches", "tuned")
    address = "s3://patches/out/p.safetensors"
    report = make_patch("s3://patches/base", "s3://patches/tuned", address)
    assert report.patch == address
    patch = open_patch(address)
    assert patch.manifest.base.source == "s3://patches/base"
    assert patch.manifest.base.revision
    with pytest.raises(PatchError, match="exists"):
        make_patch("s3://patches/base", "s3://patches/tuned", address)
    entries = tensors_of(scene.patch.parent)
    stored = bytes(obstore.get(s3.store("patches"), "out/p.safetensors").bytes())
    scene.patch.write_bytes(stored)
    assert tensors_of(scene.patch.parent) == entries
    apply_patch("s3://patches/base", address, scene.out)
    assert tensors_of(scene.out) == TUNED
