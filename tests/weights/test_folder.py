"""One logic wherever the folder is: disk, memory, a bucket of a real S3 server, a hub."""

import json
import shutil
import threading

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from rlsparse_ray.align import align
from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights import open_checkpoint, open_local
from rlsparse_ray.weights.choice import split_source
from rlsparse_ray.weights.folder import open_folder
from tests.weights.memory import MemoryFolder

INDEX = "model.safetensors.index.json"


def arrays(*names):
    return {name: np.full(4, len(name), np.float32) for name in names}


def tensors(*names):
    return {name: torch.from_numpy(array) for name, array in arrays(*names).items()}


def sharded(folder, shards=2):
    weight_map = {}
    for number in range(shards):
        file = f"model-{number:02d}.safetensors"
        save_file(arrays(f"a{number}", f"b{number}"), folder / file)
        weight_map |= dict.fromkeys((f"a{number}", f"b{number}"), file)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def safetensors_beside_a_pickle(folder):
    save_file(arrays("right"), folder / "model.safetensors")
    torch.save(tensors("wrong"), folder / "pytorch_model.bin")


def sharded_pickles(folder):
    torch.save(tensors("a"), folder / "pytorch_model-1.bin")
    torch.save(tensors("b", "cc"), folder / "pytorch_model-2.bin")
    weight_map = {"a": "pytorch_model-1.bin"} | dict.fromkeys(("b", "cc"), "pytorch_model-2.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def one_pickle_of_any_name(folder):
    torch.save(tensors("a"), folder / "policy.pt")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"):
        (folder / name).write_bytes(b"not read")


def value_head(folder):
    save_file(arrays("w"), folder / "model.safetensors")
    save_file(arrays("v_head.summary.weight"), folder / "value_head.safetensors")


def pickled_value_head(folder):
    torch.save(tensors("w"), folder / "pytorch_model.bin")
    torch.save(tensors("v_head.summary.weight"), folder / "value_head.bin")


def adapter(folder):
    save_file(arrays("x.lora_A.weight", "x.lora_B.weight"), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"r": 8}')
    (folder / "zero_to_fp32.py").write_text("what DeepSpeed leaves beside an adapter")


def export_beside_shards(folder):
    save_file(arrays("w"), folder / "policy.safetensors")
    (folder / "model_world_size_8_rank_0.pt").write_bytes(b"not read")


READABLE = {
    sharded: ["a0", "b0", "a1", "b1"],
    safetensors_beside_a_pickle: ["right"],
    sharded_pickles: ["a", "b", "cc"],
    one_pickle_of_any_name: ["a"],
    value_head: ["w", "v_head.summary.weight"],
    pickled_value_head: ["w", "v_head.summary.weight"],
    adapter: ["x.lora_A.weight", "x.lora_B.weight"],
    export_beside_shards: ["w"],
}


@pytest.fixture(params=["local", "memory", "s3", "hub"])
def opened(request):
    """Opens a copy of a folder of the disk in one kind of place."""
    if request.param == "local":
        return open_local
    if request.param == "memory":
        return lambda folder: open_folder(MemoryFolder(folder))
    if request.param == "hub":
        hub = request.getfixturevalue("hub")

        def copy_and_open(folder):
            shutil.copytree(folder, hub.folder("org/model"), dirs_exist_ok=True)
            return open_checkpoint("hf://org/model")

        return copy_and_open
    s3 = request.getfixturevalue("s3")
    s3.create_bucket("folders")

    def upload_and_open(folder):
        prefix = "/".join(folder.parts[-2:])
        for path in folder.iterdir():
            s3.store("folders").put(f"{prefix}/{path.name}", path.read_bytes())
        return open_checkpoint(f"s3://folders/{prefix}")

    return upload_and_open


def facts(checkpoint):
    """What has to be the same wherever the model is."""
    return [
        (t.name, t.dtype, t.shape, t.offset, t.nbytes, t.file.size, t.file.path.rpartition("/")[2])
        for t in checkpoint.tensors
    ]


@pytest.mark.parametrize("write", READABLE, ids=lambda write: write.__name__)
def test_the_same_tensors_in_the_same_order_everywhere(tmp_path, opened, write):
    write(tmp_path)
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}')
    checkpoint = opened(tmp_path)
    assert [tensor.name for tensor in checkpoint.tensors] == sorted(
        READABLE[write], key=lambda name: order_of_the_bytes(checkpoint, name)
    )
    assert facts(checkpoint) == facts(open_local(tmp_path))
    assert checkpoint.tied_embeddings is True
    assert (checkpoint.adapter is not None) == (write is adapter)


def order_of_the_bytes(checkpoint, name):
    tensor = checkpoint.by_name[name]
    return tensor.file.path, tensor.offset


UNREADABLE = {
    "model_world_size_4_rank_3.pt": "python -m verl.model_merger merge --backend fsdp --local_dir",
    "fsdp/.metadata": "python -m torch.distributed.checkpoint.format_utils dcp_to_torch",
    "__0_0.distcp": "python -m torch.distributed.checkpoint.format_utils dcp_to_torch",
    "zero_to_fp32.py": "python zero_to_fp32.py . NEW --safe_serialization",
    "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt": "python zero_to_fp32.py",
    "mp_rank_00_model_states.pt": "python zero_to_fp32.py",
    "model_optim_rng.pt": "AutoBridge.export_ckpt of Megatron Bridge",
    "latest_checkpointed_iteration.txt": "--backend megatron",
    "model-q4.gguf": 'gguf_file="model-q4.gguf"',
    "README.md": "no safetensors file (found README.md)",
}


@pytest.mark.parametrize(("name", "words"), UNREADABLE.items())
def test_formats_that_must_be_converted_first(tmp_path, opened, name, words):
    name = name.rpartition("/")[2]
    (tmp_path / name).write_bytes(b"not read")
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path)
    assert words in str(caught.value)
    assert name in str(caught.value)
    assert ("download it and merge it" in str(caught.value)) == (
        "not a model yet" in str(caught.value) and opened is not open_local
    )


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors"])
def test_quantised_by_config(tmp_path, opened, method):
    save_file(arrays("w"), tmp_path / "model.safetensors")
    config = {"quantization_config": {"quant_method": method}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"config.json: .*quant_method {method}\)"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["w.qweight", "w.weight_packed", "w.weight.absmax"])
def test_quantised_by_names(tmp_path, opened, name):
    save_file(arrays(name), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"tensor {name}: packed quantised weights"):
        opened(tmp_path)


def test_several_pickles_without_an_index(tmp_path):
    for name in ("a.pt", "b.pth"):
        torch.save(tensors("w"), tmp_path / name)
    with pytest.raises(CheckpointError, match=r"2 pickled weight files \(a.pt, b.pth\) but no pyt"):
        open_local(tmp_path)


def test_a_tensor_in_the_model_and_beside_it(tmp_path):
    save_file(arrays("w", "v_head.summary.weight"), tmp_path / "model.safetensors")
    save_file(arrays("v_head.summary.weight"), tmp_path / "value_head.safetensors")
    with pytest.raises(CheckpointError, match=r"v_head.summary.weight is in .*/model.safetensors"):
        open_local(tmp_path)


@pytest.mark.parametrize("write", [value_head, pickled_value_head])
def test_a_value_head_is_a_row_of_the_tuned_model_alone(tmp_path, write):
    for side in ("base", "tuned"):
        (tmp_path / side).mkdir()
    save_file(arrays("w"), tmp_path / "base" / "model.safetensors")
    write(tmp_path / "tuned")
    rows = align(open_local(tmp_path / "base"), open_local(tmp_path / "tuned"))
    statuses = [(row.tensor, row.status) for row in rows]
    assert statuses == [("w", "compared"), ("v_head.summary.weight", "tuned_only")]


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_comes_with_its_config(tmp_path, opened, file):
    if file.endswith(".bin"):
        torch.save(tensors("lora_A"), tmp_path / file)
    else:
        save_file(arrays("lora_A"), tmp_path / file)
    with pytest.raises(CheckpointError, match=r"LoRA adapter without adapter_config.json.*merge_"):
        opened(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    assert opened(tmp_path).adapter.config == '{"r": 8}'
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"adapter_config.json: not valid JSON"):
        opened(tmp_path)


def test_a_model_with_an_adapter_beside_it_is_the_model(tmp_path):
    adapter(tmp_path)
    save_file(arrays("w"), tmp_path / "model.safetensors")
    assert open_local(tmp_path).adapter is None
    assert open_local(tmp_path / "adapter_model.safetensors").adapter is not None


def test_the_config_of_an_adapter_is_part_of_its_revision(tmp_path):
    adapter(tmp_path)
    before = open_folder(MemoryFolder(tmp_path)).revision
    (tmp_path / "adapter_config.json").write_text('{"r": 9}')
    assert open_folder(MemoryFolder(tmp_path)).revision != before


def test_only_one_file(tmp_path):
    sharded(tmp_path)
    folder = MemoryFolder(tmp_path)
    checkpoint = open_folder(folder, "model-01.safetensors")
    assert sorted(checkpoint.by_name) == ["a1", "b1"]
    assert checkpoint.source == f"{folder.source}/model-01.safetensors"
    assert checkpoint.subfolder == ""
    with pytest.raises(CheckpointError, match=r"no file other.bin there \(found model-00.safe"):
        open_folder(folder, "other.bin")
    (tmp_path / "model_world_size_1_rank_0.pt").touch()
    with pytest.raises(CheckpointError, match="verl"):
        open_folder(MemoryFolder(tmp_path), "model_world_size_1_rank_0.pt")


def test_a_commit_is_the_revision_and_a_file_of_it_is_another_model(tmp_path):
    sharded(tmp_path)
    folder = MemoryFolder(tmp_path, revision="0a1b2c")
    whole = open_folder(folder)
    parts = [open_folder(folder, f"model-0{i}.safetensors") for i in range(2)]
    assert {c.revision for c in (whole, *parts)} == {"0a1b2c"}
    assert len({c.identity for c in (whole, *parts)}) == 3


def test_the_fingerprint_follows_names_headers_config_and_content(tmp_path):
    folder = MemoryFolder(tmp_path)
    seen = set()
    for contents in (
        {"model.safetensors": arrays("w")},
        {"other.safetensors": arrays("w")},
        {"model.safetensors": arrays("v")},
        {"model.safetensors": {"w": np.zeros(4, np.float32)}},
    ):
        folder.contents = {}
        for name, model in contents.items():
            save_file(model, tmp_path / name)
            folder.contents[name] = (tmp_path / name).read_bytes()
        seen |= {open_folder(folder).revision, open_folder(folder).revision}
    folder.contents["config.json"] = b"{}"
    assert open_folder(folder).revision not in seen
    assert len(seen) == 4


def test_headers_are_read_at_once_and_with_one_read_each(tmp_path):
    sharded(tmp_path, shards=16)
    folder = MemoryFolder(tmp_path)
    at_once, caller = threading.Barrier(8, timeout=60), threading.current_thread()
    # only when eight reads wait at the same time does any of them go on
    folder.before_read = lambda: threading.current_thread() is caller or at_once.wait()
    assert len(open_folder(folder).tensors) == 32
    shards = [f"model-{number:02d}.safetensors" for number in range(16)]
    assert sorted(name for name, _ in folder.reads) == [*shards, INDEX]


@pytest.mark.parametrize(
    ("source", "folder", "only"),
    [
        ("s3://bucket/run/model.safetensors", "s3://bucket/run", "model.safetensors"),
        ("s3://bucket/policy.pt", "s3://bucket", "policy.pt"),
        ("s3://bucket/run.v1/", "s3://bucket/run.v1/", None),
        ("gs://odd.bin", "gs://odd.bin", None),
        ("hf://org/policy.pt", "hf://org/policy.pt", None),
        ("hf://org/repo@v1/sub/policy.pt", "hf://org/repo@v1/sub", "policy.pt"),
    ],
)
def test_a_source_may_name_a_file(source, folder, only):
    assert split_source(source) == (folder, only)
