"""Where the tensors of a pickled checkpoint lie; the oracle is torch.load itself."""

import importlib
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.utils import serialization

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights import FileRef, Reader, open_local
from rlsparse_ray.weights.local import LocalFolder
from rlsparse_ray.weights.pickled import read_pickled
from tests.weights.memory import MemoryFolder

DTYPES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.complex64: "COMPLEX64",
}
NEVER_LEGACY = ("F8_E4M3", "F8_E5M2", "U16", "U32", "U64")
"""Dtypes younger than the zip format: torch cannot load what it saves of them in the old one."""
LEGACY = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def save(value, path, legacy=False):
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def header_of(path):
    return read_pickled(LocalFolder(path.parent), FileRef(str(path), path.stat().st_size, ""))


def data_of(tensor):
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def stored(path):
    """Name, dtype, shape and bytes of each tensor, as the header says where they are."""
    data = path.read_bytes()
    return {
        spec.name: (spec.dtype, spec.shape, data[spec.offset : spec.offset + spec.nbytes])
        for spec in header_of(path).tensors
    }


def loaded(path):
    """The same from torch.load."""
    state = torch.load(path, weights_only=True)
    return {
        name: (DTYPES[tensor.dtype], tuple(tensor.shape), data_of(tensor))
        for name, tensor in state.items()
    }


def refused(path, *words):
    with pytest.raises(CheckpointError) as caught:
        header_of(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def random_bits(generator, dtype, numel):
    data = generator.integers(0, 256, numel * dtype.itemsize, np.uint8)
    if dtype == torch.bool:
        data %= 2
    return torch.from_numpy(data).view(dtype)


@LEGACY
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())
def test_every_dtype(tmp_path, legacy, dtype):
    bits = random_bits(np.random.default_rng(0), dtype, 12)
    path = save({"w": bits.reshape(3, 4), "x": bits[:1]}, tmp_path / "m.bin", legacy)
    if not legacy or DTYPES[dtype] not in NEVER_LEGACY:
        assert stored(path) == loaded(path)
    assert stored(path)["w"] == (DTYPES[dtype], (3, 4), data_of(bits))


@st.composite
def state_dicts(draw, legacy):
    """Tensors of any dtype and shape, some of them views of one storage."""
    dtypes = [dtype for dtype, name in DTYPES.items() if not legacy or name not in NEVER_LEGACY]
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    state = {}
    for number in range(draw(st.integers(1, 4))):
        whole = random_bits(generator, draw(st.sampled_from(dtypes)), 60)
        for view in range(draw(st.integers(1, 3))):
            shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
            numel = int(np.prod(shape, dtype=int))
            first = draw(st.integers(0, 60 - numel))
            state[f"layers.{number}.{view}"] = whole[first : first + numel].reshape(shape)
    return state


@LEGACY
@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_state_dict_value_for_value(tmp_path, legacy, data):
    state = data.draw(state_dicts(legacy))
    path = save(state, tmp_path / "m.bin", legacy)
    assert stored(path) == loaded(path)
    order = [(spec.offset, spec.nbytes) for spec in header_of(path).tensors]
    assert order == sorted(order)


@LEGACY
def test_shared_storage_lies_in_one_place(tmp_path, legacy):
    whole = torch.arange(12.0)
    state = {"tied": whole, "head": whole, "view": whole[4:8], "copy": whole.clone()}
    path = save(state, tmp_path / "m.bin", legacy)
    specs = {spec.name: spec for spec in header_of(path).tensors}
    assert specs["tied"].offset == specs["head"].offset
    assert specs["view"].offset == specs["tied"].offset + 16
    assert specs["copy"].offset != specs["tied"].offset
    assert stored(path) == loaded(path)


@LEGACY
def test_parameters_of_a_real_module(tmp_path, legacy):
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    path = save(module.state_dict(), tmp_path / "m.bin", legacy)
    assert stored(path) == loaded(path)
    path = save(dict(module.named_parameters()), tmp_path / "p.bin", legacy)
    assert stored(path) == loaded(path)


@LEGACY
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "args": {"lr": [1e-6, None], "name": "x"}},
        lambda state: {"module": {"model": state}},
        lambda state: {"model_state_dict": state},
        lambda state: {**state, "step": 7, "dtype": torch.bfloat16},
    ],
)
def test_wrappers_and_plain_entries(tmp_path, legacy, wrap):
    state = {"a": torch.ones(3), "b": torch.zeros(2, 2)}
    bare = stored(save(state, tmp_path / "bare.bin", legacy))
    assert stored(save(wrap(state), tmp_path / "m.bin", legacy)) == bare


@LEGACY
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([torch.ones(2)], "holds a list, no state dict"),
        ({"state_dict": {}, "optimizer": {0: torch.ones(2)}}, "'optimizer' is neither a tensor"),
        ({"model": {"w": torch.ones(1)}, "v": torch.ones(2)}, "tensors beside 'model' (v, ...)"),
        ({"w": torch.ones(1), "encoder": {"v": torch.ones(1)}}, "'encoder' is neither a tensor"),
        ({3: torch.ones(2)}, "entry 3 is neither"),
        ({"w": torch.ones(3, 4).t()}, "tensor w: not stored row after row (shape [4, 3], str"),
        ({"w": torch.ones(1).expand(3)}, "tensor w: not stored row after row"),
        ({"w": torch.eye(2).to_sparse()}, "tensor w: a torch.sparse_coo, not a plain dense"),
    ],
)
def test_what_is_no_plain_tensor_is_refused_and_named(tmp_path, legacy, value, words):
    refused(save(value, tmp_path / "m.bin", legacy), words)


@LEGACY
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:TypedStorage")
def test_quantised_tensors(tmp_path, legacy):
    state = {"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}
    path = save(state, tmp_path / "m.bin", legacy)
    refused(path, "does not hold plain tensors", "aten::_empty_affine_quantized")


class Malicious:
    """Would write a file if it were loaded as pickles are."""

    def __init__(self, sentinel):
        self.sentinel = str(sentinel)

    def __reduce__(self):
        return os.mkdir, (self.sentinel,)


@LEGACY
@pytest.mark.parametrize("where", ["beside", "inside", "alone"])
def test_a_malicious_pickle_is_not_run(tmp_path, legacy, where):
    sentinel = tmp_path / "it ran"
    bad = Malicious(sentinel)
    value = {
        "beside": {"w": torch.ones(2), "bad": bad},
        "inside": {"state_dict": {"w": torch.ones(2)}, "args": [bad]},
        "alone": bad,
    }
    path = save(value[where], tmp_path / "m.bin", legacy)
    refused(path, "posix.mkdir", "it was not run", "safetensors.torch.save_file")
    assert not sentinel.exists()
    torch.load(path, weights_only=False)
    assert sentinel.exists()


def test_a_malicious_pickle_in_front_of_the_legacy_ones(tmp_path):
    sentinel = tmp_path / "it ran"
    path = tmp_path / "m.bin"
    path.write_bytes(pickle.dumps(Malicious(sentinel), protocol=2))
    refused(path, "torch.save has not written")
    whole = save({"w": torch.ones(1)}, tmp_path / "whole.bin", legacy=True).read_bytes()
    for at in (17, whole.index(b"}q\x00(X\x10")):
        path.write_bytes(whole[:at] + pickle.dumps(Malicious(sentinel), protocol=2))
        refused(path, "posix.mkdir")
    assert not sentinel.exists()


def test_objects_that_weights_do_not_need(tmp_path):
    path = save({"w": torch.ones(1), "path": Path("x")}, tmp_path / "m.bin")
    refused(path, "pathlib.PosixPath", "if you trust who made the file")


@pytest.mark.parametrize("imported", [False, True])
def test_shards_of_a_distributed_tensor(tmp_path, imported):
    if imported:
        importlib.import_module("torch.distributed.tensor")
    path = tmp_path / "m.bin"
    rewrite(
        save({"w": torch.ones(1)}, tmp_path / "plain.bin"),
        path,
        {"data.pkl": b"\x80\x02ctorch.distributed.tensor\nDTensor\n."},
    )
    refused(path, "shard of a distributed model", "python -m verl.model_merger merge")


# Files that are damaged, or not written by torch.save


def rewrite(source, target, replaced, compression=zipfile.ZIP_STORED):
    """The archive as other programs write it, with some records replaced."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for record in old.infolist():
            name = record.filename.partition("/")[2]
            new.writestr(record.filename, replaced.get(name, old.read(record)))
    return target


def test_an_archive_that_was_packed_again(tmp_path):
    state = {f"w{n}": torch.arange(float(n)) for n in range(40)}
    path = save(state, tmp_path / "m.bin")
    again = rewrite(path, tmp_path / "again.bin", {})
    assert stored(again) == loaded(again) == stored(path)


@pytest.mark.parametrize("alignment", [1, 4096])
def test_another_alignment_of_the_storages(tmp_path, alignment):
    with serialization.config.patch({"save.storage_alignment": alignment}):
        path = save({f"w{n}": torch.arange(float(n)) for n in range(40)}, tmp_path / "m.bin")
    assert stored(path) == loaded(path)


def test_a_compressed_archive(tmp_path):
    path = save({"w": torch.ones(9)}, tmp_path / "m.bin")
    packed = rewrite(path, tmp_path / "p.bin", {}, zipfile.ZIP_DEFLATED)
    refused(packed, "is compressed", "save it again")


def test_big_endian(tmp_path):
    path = save({"w": torch.ones(9)}, tmp_path / "m.bin")
    refused(rewrite(path, tmp_path / "b.bin", {"byteorder": b"big"}), "big-endian")
    legacy = save({"w": torch.ones(9)}, tmp_path / "l.bin", legacy=True)
    data = legacy.read_bytes()
    at = data.index(b"\x88", data.index(b"little_endian"))
    legacy.write_bytes(data[:at] + b"\x89" + data[at + 1 :])
    refused(legacy, "big-endian")


@LEGACY
def test_a_file_cut_anywhere_is_refused(tmp_path, legacy):
    path = save({"w": torch.ones(50), "v": torch.ones(3, 3)}, tmp_path / "m.bin", legacy)
    data = path.read_bytes()
    for length in (*range(0, len(data), 7), len(data) - 1):
        path.write_bytes(data[:length])
        # "not run": what is left of the name of a global is one that is not known
        with pytest.raises(CheckpointError, match=r"download it again|calls .* it was not run"):
            header_of(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(data=st.data(), legacy=st.booleans())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_header_is_refused_or_gives_ranges_inside_the_file(tmp_path, data, legacy):
    state = {"w": torch.ones(50), "v": torch.ones(3, 3, dtype=torch.bfloat16)}
    path = save(state, tmp_path / "m.bin", legacy)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        specs = header_of(path).tensors
    except CheckpointError as error:
        assert str(path) in str(error)
    else:
        assert all(spec.offset > 0 and spec.offset + spec.nbytes <= len(raw) for spec in specs)


def test_a_storage_of_another_size_than_the_pickle_says(tmp_path):
    path = save({"w": torch.ones(9)}, tmp_path / "m.bin")
    short = rewrite(path, tmp_path / "s.bin", {"data/0": bytes(35)})
    refused(short, "storage 0 takes 36 bytes, the archive has 35 bytes", "download it again")


def test_a_tensor_outside_its_storage(tmp_path):
    """torch grows the storage of such a tensor in silence."""
    path = save({"w": torch.ones(9)}, tmp_path / "m.bin")
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        pickled = archive.read(name)
    # ..., numel 9 of the storage, t, Q (storage), K\x00 (offset), K\x09\x85 (shape)
    assert pickled.count(b"QK\x00K\x09\x85") == 1
    longer = {"data.pkl": pickled.replace(b"QK\x00K\x09\x85", b"QK\x01K\x09\x85")}
    refused(rewrite(path, tmp_path / "o.bin", longer), "tensor w: ends outside its storage")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes that torch.save has not written"),
        (b"\x93NUMPY", "torch.save has not written"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (pickle.dumps({"w": [1.0]}, protocol=2), "torch.save has not written"),
    ],
)
def test_other_files(tmp_path, data, words):
    path = tmp_path / "m.bin"
    path.write_bytes(data)
    refused(path, words)


def test_other_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("readme", "hello")
    refused(tmp_path / "a.pt", "a zip archive without data.pkl")
    with pytest.deprecated_call():
        program = torch.jit.script(torch.nn.Linear(2, 2))
    program.save(str(tmp_path / "program.pt"))
    refused(tmp_path / "program.pt", "a TorchScript program", "state_dict()")


def test_another_pickle_protocol(tmp_path):
    path = tmp_path / "m.bin"
    torch.save({"w": torch.ones(2)}, path, pickle_protocol=4)
    with pytest.warns(UserWarning, match="pickle protocol 4"):
        refused(path, "does not hold plain tensors", "its defaults")


# The whole way


@LEGACY
def test_few_requests_and_no_data(tmp_path, legacy):
    state = {f"model.layers.{n}.mlp.up_proj.weight": torch.zeros(1 << 14) for n in range(300)}
    path = save(state, tmp_path / "pytorch_model.bin", legacy)
    folder = MemoryFolder(tmp_path)
    header = read_pickled(folder, folder.files[path.name])
    assert len(header.tensors) == 300
    assert len(folder.reads) <= 3
    assert sum(nbytes for _, nbytes in folder.reads) < 800_000 < path.stat().st_size / 20


def test_values_come_through_the_reader(tmp_path):
    weights = torch.randn(40, 7).bfloat16()
    save({"skip": torch.ones(3), "w": weights}, tmp_path / "pytorch_model.bin")
    spec = open_local(tmp_path).by_name["w"]
    buffer = bytearray(spec.nbytes)
    with Reader() as reader:
        reader.read_into(spec.file, spec.offset, memoryview(buffer))
    assert bytes(buffer) == data_of(weights)


@pytest.mark.parametrize("form", ["zip", "legacy", "sharded"])
def test_a_pickled_model_equals_its_safetensors_twin(tmp_path, form):
    from tests.builders import extract_directly, id_of, rows_of, write_corpus

    generator = torch.Generator().manual_seed(0)
    names = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"]
    state = {name: torch.randn(300, 64, generator=generator).bfloat16() for name in names}
    for side in ("base", "tuned"):
        (tmp_path / side).mkdir()
    save_file(state, tmp_path / "base" / "model.safetensors")
    if form == "sharded":
        weight_map = {}
        for number, name in enumerate(names):
            shard = f"pytorch_model-{number}.bin"
            save({name: state[name]}, tmp_path / "tuned" / shard)
            weight_map[name] = shard
        index = tmp_path / "tuned" / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
    else:
        save(state, tmp_path / "tuned" / "pytorch_model.bin", legacy=form == "legacy")
    corpus = write_corpus(
        tmp_path / "corpus.yaml", [{"name": "p", "base": "base", "tuned": "tuned"}]
    )
    plan = extract_directly(corpus, tmp_path / "store")
    counts = rows_of(tmp_path / "store", "counts", id_of(plan, "p"))
    assert {row["changed"] for row in counts} == {0}
    assert sum(row["numel"] for row in counts if row["criterion"] == "exact") == 3 * 300 * 64
