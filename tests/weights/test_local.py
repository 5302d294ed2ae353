import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights import open_checkpoint, open_local
from rlsparse_ray.weights.local import LocalFolder

INDEX = "model.safetensors.index.json"


def shards(folder, weight_map=None, **files):
    """A sharded model; each tensor holds 4 floats."""
    folder.mkdir(exist_ok=True)
    for shard, names in files.items():
        save_file({n: np.ones(4, np.float32) for n in names}, folder / f"{shard}.safetensors")
    weight_map = weight_map or {n: f"{s}.safetensors" for s, names in files.items() for n in names}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def single(folder, *names, file="model.safetensors", config=None):
    folder.mkdir(exist_ok=True)
    save_file({n: np.ones(4, np.float32) for n in names or ("w",)}, folder / file)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def refused(folder, *words):
    with pytest.raises(CheckpointError) as caught:
        open_local(folder)
    for word in (str(folder), *words):
        assert word in str(caught.value)


def test_single(tmp_path):
    checkpoint = open_local(single(tmp_path / "m", "b", "a"))
    assert sorted(checkpoint.by_name) == ["a", "b"]
    assert checkpoint.source == str(tmp_path / "m")
    assert checkpoint.dtype == "F32"
    assert checkpoint.tied_embeddings is None
    assert checkpoint.identity == f"local@{checkpoint.revision}"
    assert len(checkpoint.revision) == 16


def test_dtype_is_that_of_most_parameters(tmp_path):
    tensors = {f"norm{i}": np.ones(2, np.float32) for i in range(5)}
    save_file(tensors | {"w": np.ones(100, np.float16)}, tmp_path / "model.safetensors")
    assert open_local(tmp_path).dtype == "F16"


def test_sharded_in_the_order_of_files_and_offsets(tmp_path):
    checkpoint = open_local(shards(tmp_path / "m", s2=["a", "z"], s1=["b"]))
    order = [(t.file.path, t.offset) for t in checkpoint.tensors]
    assert order == sorted(order)
    assert [t.name for t in checkpoint.tensors] == ["b", "a", "z"]


def test_an_index_wins_over_other_files(tmp_path):
    folder = single(shards(tmp_path / "m", s1=["a"]), "other")
    assert list(open_local(folder).by_name) == ["a"]


def test_one_file_of_any_name_and_a_path_to_a_file(tmp_path):
    folder = single(tmp_path / "m", file="x.safetensors", config={"tie_word_embeddings": True})
    assert open_local(folder).by_name.keys() == {"w"}
    assert open_local(folder / "x.safetensors").tied_embeddings is True
    assert open_local(folder / "x.safetensors").revision == open_local(folder).revision


def test_symlinks_as_in_the_hub_cache(tmp_path):
    blobs = single(tmp_path / "blobs", file="0123abcd")
    snapshot = tmp_path / "snapshots"
    snapshot.mkdir()
    (snapshot / "model.safetensors").symlink_to(blobs / "0123abcd")
    checkpoint = open_local(snapshot)
    assert checkpoint.tensors[0].file.path == str(snapshot / "model.safetensors")
    assert checkpoint.tensors[0].file.size == (blobs / "0123abcd").stat().st_size


def test_missing_folder(tmp_path):
    refused(tmp_path / "none", "no such folder", "check the path")


def test_missing_shard(tmp_path):
    folder = shards(tmp_path / "m", s1=["a", "b"], s2=["c"])
    (folder / "s1.safetensors").unlink()
    refused(folder, "shard s1.safetensors is missing (2 of 3 tensors)", "download it again")


def test_index_and_shards_that_disagree(tmp_path):
    weight_map = {"a": "s1.safetensors", "gone": "s1.safetensors"}
    folder = shards(tmp_path / "m", weight_map, s1=["a"])
    refused(folder, "s1.safetensors: lacks gone", "from one revision")
    folder = shards(tmp_path / "m", {"a": "s1.safetensors"}, s1=["a", "b", "c", "d", "e"])
    refused(folder, "s1.safetensors: holds b, c, d and 1 more", "does not place there")


def test_one_tensor_in_two_shards(tmp_path):
    weight_map = {"a": "s1.safetensors", "b": "s2.safetensors"}
    refused(shards(tmp_path / "m", weight_map, s1=["a"], s2=["a", "b"]), "s2.safetensors: holds a")


@pytest.mark.parametrize("shard", ["../s1.safetensors", "/etc/s1.safetensors"])
def test_shards_stay_in_the_folder(tmp_path, shard):
    refused(shards(tmp_path / "m", {"a": shard}), "not a plain file name")


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not valid JSON"), ("[]", "not a JSON object"), ("{}", "no weight_map")],
)
def test_broken_index(tmp_path, text, words):
    (tmp_path / INDEX).write_text(text)
    refused(tmp_path, INDEX, words, "download it again")


def test_several_files_without_an_index(tmp_path):
    folder = single(single(tmp_path / "m", file="b.safetensors"), file="a.safetensors")
    refused(folder, "2 safetensors files (a.safetensors, b.safetensors)", INDEX)


def test_gguf(tmp_path):
    (tmp_path / "model-q4.gguf").touch()
    refused(tmp_path, "only model-q4.gguf", 'gguf_file="model-q4.gguf"')


def test_nothing_at_all(tmp_path):
    refused(tmp_path, "no safetensors file (found nothing)")
    (tmp_path / "README.md").touch()
    refused(tmp_path, "found README.md", "model.safetensors")


def test_no_tensors(tmp_path):
    save_file({}, tmp_path / "model.safetensors")
    refused(tmp_path, "holds no tensor")


def test_broken_file_is_named(tmp_path):
    folder = single(tmp_path / "m")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    refused(folder, str(file), "download it again")


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    refused(tmp_path, "no safetensors file (found nothing)")


def test_a_link_to_nothing_is_no_file(tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blob")
    refused(tmp_path, "no safetensors file (found nothing)")


def test_a_file_that_goes_or_shrinks_after_it_was_listed(tmp_path):
    folder = LocalFolder(single(tmp_path / "m"))
    file = folder.files["model.safetensors"]
    os.truncate(file.path, 5)
    with pytest.raises(CheckpointError, match=f"safetensors: ends before byte {file.size}, though"):
        folder.read(file, 0, file.size)
    Path(file.path).unlink()
    with pytest.raises(CheckpointError, match=r"safetensors: cannot be read: No such file"):
        folder.read(file, 0, file.size)


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({}, None),
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, False),
        ({"text_config": {"tie_word_embeddings": True}}, True),
        ({"model_type": "gemma2"}, True),
        ({"model_type": "gemma2", "tie_word_embeddings": False}, False),
        ({"model_type": "llama"}, None),
        ({"model_type": "paligemma", "text_config": {"model_type": "gemma"}}, True),
        ({"model_type": "mistral3", "text_config": {"model_type": "mistral"}}, None),
        ({"model_type": ["gemma2"]}, None),
        ({"quantization_config": None}, None),
        ({"quantization_config": {"quant_method": "fp8"}}, None),
        ({"quantization_config": {"quant_method": "mxfp4"}}, None),
    ],
)
def test_config(tmp_path, config, tied):
    assert open_local(single(tmp_path / "m", config=config)).tied_embeddings is tied


def test_broken_config(tmp_path):
    folder = single(tmp_path / "m")
    (folder / "config.json").write_text("{")
    refused(folder, "config.json: not valid JSON")


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors"])
@pytest.mark.parametrize("where", [None, "text_config"])
def test_quantised_by_config(tmp_path, method, where):
    config = {"quantization_config": {"quant_method": method, "bits": 4}}
    folder = single(tmp_path / "m", config={where: config} if where else config)
    refused(folder, f"quant_method {method}", "dequantise it")


def test_quantised_without_a_method(tmp_path):
    folder = single(tmp_path / "m", config={"quantization_config": {"bits": 4}})
    refused(folder, "quant_method unnamed method")


@pytest.mark.parametrize(
    "name",
    [
        "layers.0.q_proj.qweight",
        "layers.0.q_proj.qzeros",
        "layers.0.q_proj.weight_packed",
        "layers.0.q_proj.weight.quant_state.bitsandbytes__nf4",
        "layers.0.q_proj.SCB",
    ],
)
def test_quantised_by_names(tmp_path, name):
    refused(single(tmp_path / "m", name), f"tensor {name}: packed quantised", "dequantise it")


def test_a_moved_model_is_the_same_and_a_copy_is_another(tmp_path):
    folder = single(tmp_path / "m", config={})
    first = open_local(folder)
    moved = open_local(folder.rename(tmp_path / "moved"))
    assert moved.identity == first.identity
    assert moved.source != first.source
    shutil.copytree(tmp_path / "moved", tmp_path / "copy")
    assert open_local(tmp_path / "copy").identity != first.identity


def test_models_of_one_shape_and_time_are_not_taken_for_one(tmp_path):
    seen = set()
    for name in ("a", "b"):
        folder = single(tmp_path / name, config={})
        os.utime(folder / "model.safetensors", ns=(1, 1))
        seen.add(open_local(folder).identity)
    assert len(seen) == 2


def test_a_file_rewritten_in_place_within_one_tick_is_noticed(tmp_path):
    folder = single(tmp_path / "m", config={})
    file = folder / "model.safetensors"
    os.utime(file, ns=(1, 1))
    first = open_local(folder)
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))
    os.utime(file, ns=(1, 1))
    assert open_local(folder).identity != first.identity


def test_revision_follows_everything_that_is_read(tmp_path):
    folder = single(tmp_path / "m", config={})
    first = open_local(folder)
    file = folder / "model.safetensors"
    stamp = file.stat().st_mtime_ns
    os.utime(file, ns=(stamp, stamp + 1))
    touched = open_local(folder)
    os.utime(file, ns=(stamp, stamp))
    (folder / "config.json").write_text('{"a": 1}')
    configured = open_local(folder)
    (folder / "config.json").unlink()
    bare = open_local(folder)
    single(folder, "other", config={})
    os.utime(file, ns=(stamp, stamp))
    renamed = open_local(folder)
    revisions = {c.revision for c in (first, touched, configured, bare, renamed)}
    assert len(revisions) == 5


def test_open_checkpoint(tmp_path):
    folder = single(tmp_path / "m")
    assert open_checkpoint(str(folder)) == open_checkpoint(f"file://{folder}")
    with pytest.raises(CheckpointError, match=r"http://host/m: http:// cannot be read: name a"):
        open_checkpoint("http://host/m")
