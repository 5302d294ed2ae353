"""Whatever is wrong with the input, the user reads which thing it is, where it lies and what to do
about it, and no traceback."""

import json
import shutil
import subprocess
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlsparse_ray.store import Store
from rlsparse_ray.tables import SCHEMA_VERSION
from rlsparse_ray.upkeep.checks import verify
from tests.builders import (
    BF16,
    assert_same_store,
    rows_of,
    tuned_from,
    weights,
    write_corpus,
    write_model,
    write_raw,
)

BASE = {
    "model.embed_tokens.weight": weights(1, (30, 16)),
    "model.layers.0.mlp.up_proj.weight": weights(2, (20, 16)),
    "lm_head.weight": weights(3, (30, 16)),
}


@pytest.fixture
def pair(tmp_path):
    """A corpus with one pair, `p`, whose tuned folder is yet to be written."""
    write_model(tmp_path / "base", BASE)
    entries = [{"name": "p", "base": "base", "tuned": "tuned"}]
    return write_corpus(tmp_path / "corpus.yaml", entries)


@pytest.fixture
def refused(rlsparse, pair, tmp_path):
    """The pair fails with this message, in a plan and in an extraction, before Ray starts."""

    def refused(*phrases):
        for words in (("plan", pair), ("extract", pair, "--store", tmp_path / "store")):
            answer = rlsparse(*words)
            assert answer.code == 1
            (line,) = answer.err.splitlines()
            assert line.startswith("failed: p: ")
            for phrase in phrases:
                assert phrase in line
        assert answer.out.startswith("1 failed; 0 B read")
        assert Store.open(tmp_path / "store").committed() == set()

    return refused


@pytest.fixture
def tuned(tmp_path):
    return tmp_path / "tuned"


# Checkpoints


def test_missing_folder(refused, tuned):
    refused(f"{tuned}: no such folder", "check the path in the corpus file")


def test_missing_shard(refused, tuned):
    write_model(tuned, tuned_from(BASE, 1), shards=2)
    (tuned / "model-00001-of-00002.safetensors").unlink()
    refused(
        f"{tuned}: shard model-00001-of-00002.safetensors is missing (2 of 3 tensors)",
        "download it again",
    )


def test_truncated_file(refused, tuned):
    path = write_model(tuned, tuned_from(BASE, 1)) / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    promised = f"{path}: file is {len(data) - 100} bytes, header promises {len(data)}"
    refused(promised, "download it again")


def test_file_with_bytes_that_belong_to_nothing(refused, tuned):
    path = write_model(tuned, tuned_from(BASE, 1)) / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"??")
    refused(f"{path}: file is ", "2 bytes belong to no tensor", "write or download it again")


def entry(shape, begin, end):
    return {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "lie"),
    [
        (
            {"a": entry([2, 4], 0, 16), "b": entry([4], 12, 20)},
            "tensor b: overlaps the tensor before it (begins at byte 12",
        ),
        (
            {"a": entry([2, 4], 0, 16), "b": entry([2], 20, 24)},
            "tensor b: follows a hole (begins at byte 20 of the data, expected 16)",
        ),
        (
            {"a": entry([2, 5], 0, 16)},
            "tensor a: BF16 of shape [2, 5] takes 20 bytes, data_offsets give 16",
        ),
        ({"a": entry([2, 4], 16, 0)}, "tensor a: data_offsets [16, 0] are no range"),
        ({"a": entry([2, -4], 0, 16)}, "tensor a: shape [2, -4] is not a list of sizes"),
    ],
)
def test_header_that_lies_about_offsets(refused, tuned, header, lie):
    path = write_raw(tuned / "model.safetensors", header, bytes(24))
    refused(f"{path}: {lie}", "write or download it again")


def test_header_that_lies_about_its_own_size(refused, tuned):
    path = write_model(tuned, tuned_from(BASE, 1)) / "model.safetensors"
    path.write_bytes((1 << 40).to_bytes(8, "little") + path.read_bytes()[8:])
    refused(f"{path}: header length {1 << 40} is over the limit", "not a safetensors file")


def test_different_architectures(refused, tuned, tmp_path):
    write_model(tuned, {"h.0.attn.c_attn.weight": weights(1, (4, 4))})
    refused(
        f"nothing in common: {tmp_path}/base has ",
        "embed_tokens.weight [30,16]",
        f"{tuned} has h.0.attn.c_attn.weight [4,4]: check that one was tuned from the other",
    )


def test_gptq_weights(refused, tuned):
    packed = np.zeros((2, 20), np.int32)
    write_model(tuned, {"model.layers.0.mlp.up_proj.qweight": packed})
    refused(
        f"{tuned}/model.safetensors: tensor model.layers.0.mlp.up_proj.qweight: packed quantised",
        "dequantise it and save it as bf16",
    )


def test_int4_weights_by_their_config(refused, tuned):
    config = {"quantization_config": {"quant_method": "awq", "bits": 4}}
    write_model(tuned, BASE, config=config)
    refused(f"{tuned}/config.json: quantised weights (quant_method awq)", "unquantised model")


def test_packed_dtype_that_safetensors_knows(refused, tuned):
    header = {
        name: {"dtype": "F4", "shape": list(array.shape), "data_offsets": [0, 0]}
        for name, array in BASE.items()
    }
    at = 0
    for name, array in BASE.items():
        header[name]["data_offsets"] = [at, at := at + array.size // 2]
    write_raw(tuned / "model.safetensors", header, bytes(at))
    refused("dtype F4 cannot be compared (base BF16, tuned F4)", "convert it to bf16")


def test_wrong_shape_is_shown_and_no_error(rlsparse, pair, tuned, tmp_path, local_ray):
    model = tuned_from(BASE, 1) | {"model.layers.0.mlp.up_proj.weight": weights(2, (16, 20))}
    write_model(tuned, model)
    store = tmp_path / "store"
    assert rlsparse("extract", pair, "--store", store).code == 0
    ask = "SELECT tensor, base_shape, tuned_shape, numel FROM tensors WHERE status='shape_mismatch'"
    (row,) = json.loads(rlsparse("sql", ask, "--store", store, "--json").out)
    assert row == {
        "tensor": "layers.0.mlp.up_proj.weight",
        "base_shape": [20, 16],
        "tuned_shape": [16, 20],
        "numel": 0,
    }
    (pair_id,) = Store.open(store).committed()
    facts = rows_of(store, "pairs", pair_id)[0]
    assert (facts["tensors_mismatched"], facts["numel_mismatched"]) == (1, 320)
    (planned,) = json.loads(rlsparse("plan", pair, "--json").out)
    assert (planned["tensors"], planned["tensors_not_compared"]) == (2, 1)


# Corpus files


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (
            "version: 1\npairs:\n- {name: a, base: x, tuned: y}\n- {name: a, base: x, tuned: z}\n",
            4,
            "pair name 'a' is already on line 3: rename one",
        ),
        (
            "version: 1\npairs:\n- name: a\n  base: x\n  tuned: y\n  algoritm: GRPO\n",
            6,
            "unknown key 'algoritm': did you mean 'algorithm'? (free labels go under `labels:`)",
        ),
        (
            "version: 1\nsettings:\n  criteria: [abs]\npairs:\n- {name: a, base: x, tuned: y}\n",
            3,
            "unknown criterion 'abs': write exact, abs:TOLERANCE or rel:TOLERANCE",
        ),
        ("version: 1\npairs: [\n", 3, "not valid YAML"),
    ],
)
def test_corpus(rlsparse, tmp_path, text, line, message):
    path = tmp_path / "corpus.yaml"
    path.write_text(text)
    for words in (("plan", path), ("extract", path, "--store", tmp_path / "store")):
        answer = rlsparse(*words)
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.startswith(f"error: {path}:{line}: ")
        assert message in answer.err
    assert not (tmp_path / "store").exists()


def test_missing_corpus(rlsparse, tmp_path):
    answer = rlsparse("plan", tmp_path / "none.yaml")
    assert answer.code == 2
    assert f"{tmp_path}/none.yaml: cannot be read: No such file or directory" in answer.err


# Stores

NEWER = (
    f"schema version 99, but this rlsparse_ray reads up to {SCHEMA_VERSION}: "
    "pip install --upgrade rlsparse-ray"
)
READERS = [
    ("query", "sparsity_by_pair"),
    ("sql", "FROM pairs"),
    ("status",),
    ("verify",),
]


@pytest.mark.parametrize("words", READERS, ids=lambda words: words[0])
def test_no_store(rlsparse, tmp_path, words):
    answer = rlsparse(*words, "--store", tmp_path / "none")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(f"error: {tmp_path}/none")
    assert f"rlsparse extract CORPUS --store {tmp_path}/none" in answer.err


@pytest.mark.parametrize("words", READERS, ids=lambda words: words[0])
def test_store_of_a_newer_version(rlsparse, example, tmp_path, words):
    (tmp_path / "store.json").write_text('{"format": "rlsparse_ray", "schema_version": 99}')
    for command in (words, ("extract", example.corpus)):
        answer = rlsparse(*command, "--store", tmp_path)
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.startswith(f"error: {tmp_path}")
        assert NEWER in answer.err


def test_pair_of_a_newer_version(rlsparse, example, tmp_path):
    store = shutil.copytree(example.store, tmp_path / "store")
    path = store / f"pairs/pair_id={example.plan.pairs[0].pair_id}/pairs.parquet"
    table = pq.ParquetFile(path).read(use_threads=False)
    place = table.schema.get_field_index("schema_version")
    newer = table.set_column(place, table.field(place), pa.array([99], pa.int32()))
    pq.write_table(
        newer.replace_schema_metadata({**table.schema.metadata, b"rlsparse_schema_version": b"99"}),
        path,
    )
    for command in (("query", "storage"), ("extract", example.corpus)):
        answer = rlsparse(*command, "--store", store)
        assert (answer.code, answer.out) == (2, "")
        assert NEWER in answer.err


def test_a_folder_of_something_else(rlsparse, example):
    models = example.corpus.parent / "base"
    answer = rlsparse("extract", example.corpus, "--store", models)
    assert answer.code == 2
    assert answer.err == (
        f"error: {models}: not a store and not empty: name a new or empty folder\n"
    )


@contextmanager
def small_disk(place, options):
    """A tmpfs; only root may mount one."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"NOT TESTED: full and read-only disks need mount: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def remount(place, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def test_read_only_store(rlsparse, example, tmp_path, local_ray):
    with small_disk(tmp_path / "disk", "size=10m") as disk:
        remount(disk, "ro")
        answer = rlsparse("extract", example.corpus, "--store", disk / "store")
        assert (answer.code, answer.out) == (2, "")
        expected = f"error: store {disk}/store: "
        assert answer.err.startswith(expected)
        assert "Read-only file system" in answer.err
        assert "the file system is read-only: choose another --store" in answer.err
        remount(disk, "rw")
        shutil.copytree(example.store, disk / "store")
        for pair in (disk / "store" / "pairs").iterdir():
            shutil.rmtree(pair)
        remount(disk, "ro")
        # the marker is there: now it is a worker that cannot write
        answer = rlsparse("extract", example.corpus, "--store", disk / "store")
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.startswith(expected)
        assert answer.err.endswith("the file system is read-only: choose another --store\n")


def test_a_complete_store_may_be_read_only(rlsparse, example, tmp_path):
    with small_disk(tmp_path / "disk", "size=10m") as disk:
        shutil.copytree(example.store, disk / "store")
        remount(disk, "ro")
        assert rlsparse("extract", example.corpus, "--store", disk / "store").code == 0
        assert rlsparse("verify", "--store", disk / "store").code == 0


@pytest.mark.parametrize("size", [40, 200, 320])
def test_full_disk(rlsparse, example, tmp_path, local_ray, size):
    """With more space the same command goes on, and the store ends as if nothing had been."""
    with small_disk(tmp_path / "disk", f"size={size}k") as disk:
        store = disk / "store"
        answer = rlsparse("extract", example.corpus, "--store", store)
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.startswith(f"error: store {store}: ")
        assert "No space left on device" in answer.err
        assert answer.err.endswith(
            "free some space or choose another store; run again to go on where it stopped\n"
        )
        assert "Traceback" not in answer.err
        remount(disk, "size=20m")
        assert rlsparse("extract", example.corpus, "--store", store).code == 0
        assert_same_store(example.store, store)
        assert verify(store) == []


# Questions


def test_no_such_query(rlsparse, example):
    answer = rlsparse("query", "sparsity_by_pairs", "--store", example.store)
    assert (answer.code, answer.out) == (2, "")
    expected = "no query named 'sparsity_by_pairs'; did you mean 'sparsity_by_pair'?"
    assert answer.err == f"error: {expected}\n"


def test_missing_parameter(rlsparse, example):
    answer = rlsparse("query", "overlap", "--store", example.store, "-p", "a=grpo-0")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: query 'overlap' needs parameter 'b'; its parameters:\n")
    assert "\n  b (required): " in answer.err


def test_unknown_parameter(rlsparse, example):
    words = ("query", "sparsity_by_pair", "--store", example.store, "-p")
    answer = rlsparse(*words, "tolerance=1")
    assert answer.code == 2
    assert "query 'sparsity_by_pair' has no parameter 'tolerance'; its parameters:" in answer.err
    assert "--param 'tolerance': write name=value" in rlsparse(*words, "tolerance").err


def test_unknown_pair(rlsparse, example):
    words = ("query", "overlap", "--store", example.store, "-p", "a=grpo-0", "-p", "b=grpo-9")
    answer = rlsparse(*words)
    assert answer.code == 2
    assert "grpo-9" in answer.err
    assert "Traceback" not in answer.err


def test_query_without_a_store(rlsparse):
    answer = rlsparse("query", "storage")
    assert answer.code == 2
    assert "say which store: --store PATH, or set RLSPARSE_STORE" in answer.err


def test_wrong_sql(rlsparse, example):
    answer = rlsparse("sql", "SELECT sparsty FROM pairs", "--store", example.store)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: ")
    assert '"sparsty" not found' in answer.err


def test_cuda_without_a_gpu(rlsparse, example, tmp_path, local_ray):
    import ray

    if ray.cluster_resources().get("GPU"):
        pytest.skip("this machine has a GPU")
    answer = rlsparse("extract", example.corpus, "--store", tmp_path / "s", "--device", "cuda")
    assert (answer.code, answer.out) == (2, "")
    expected = "--device cuda: the Ray cluster has no GPU; use --device cpu or auto"
    assert answer.err == f"error: {expected}\n"


def test_unknown_device(rlsparse, example, tmp_path):
    answer = rlsparse("extract", example.corpus, "--store", tmp_path / "s", "--device", "gpu")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == "error: --device gpu: unknown; use --device auto, cpu or cuda\n"
    assert not (tmp_path / "s").exists()


def test_bf16_stays_bf16():
    """What the other tests rest on: the weights written here are two bytes a parameter."""
    assert {array.dtype for array in BASE.values()} == {np.dtype(BF16)}
