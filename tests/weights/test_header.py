import json
import re
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights import DTYPES, FileRef, read_header

NUMPY = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "I16": np.int16,
    "U16": np.uint16,
    "I32": np.int32,
    "U32": np.uint32,
    "I64": np.int64,
    "U64": np.uint64,
}


def header_of(path, name="m.safetensors"):
    data = path.read_bytes()
    file = FileRef(str(path), len(data), "")
    return read_header(lambda offset, n: data[offset : offset + n], file, name)


def refused(path, *words):
    with pytest.raises(CheckpointError) as caught:
        header_of(path)
    message = str(caught.value)
    assert message.startswith("m.safetensors: ")
    for word in words:
        assert word in message
    return message


def entry(dtype="F32", shape=(2,), begin=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(st.sampled_from(sorted(NUMPY)), st.lists(st.integers(0, 4), max_size=3)),
        max_size=6,
    )
)
def test_what_safetensors_writes_is_read_back_bit_for_bit(tmp_path: Path, wanted):
    tensors = {
        name: np.frombuffer(np.random.default_rng(0).bytes(prod(shape) * DTYPES[dtype]), np.uint8)
        .view(NUMPY[dtype])
        .reshape(shape)
        for name, (dtype, shape) in wanted.items()
    }
    path = tmp_path / "m.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    data = path.read_bytes()
    header = header_of(path)
    assert {t.name: (t.dtype, list(t.shape)) for t in header.tensors} == {
        name: (dtype, list(shape)) for name, (dtype, shape) in wanted.items()
    }
    for tensor in header.tensors:
        stored = data[tensor.offset : tensor.offset + tensor.nbytes]
        assert stored == tensors[tensor.name].tobytes()
        assert tensor.nbytes == tensor.numel * DTYPES[tensor.dtype]
    assert [t.offset for t in header.tensors] == sorted(t.offset for t in header.tensors)
    assert data[8 : 8 + len(header.raw)] == header.raw


@pytest.mark.parametrize(("tensors", "reads"), [(1, 1), (2000, 2)])
def test_a_header_takes_one_read_and_a_long_one_two(tmp_path, tensors, reads):
    path = tmp_path / "m.safetensors"
    save_file({f"w{i}": np.zeros(100, np.float32) for i in range(tensors)}, path)
    data, asked = path.read_bytes(), []

    def read(offset, n):
        asked.append((offset, n))
        return data[offset : offset + n]

    header = read_header(read, FileRef(str(path), len(data), ""))
    assert len(asked) == reads
    assert sum(n for _, n in asked) <= max(8 + len(header.raw), 64 << 10)
    assert header.raw == data[8 : 8 + len(header.raw)]
    assert len(header.tensors) == tensors


def test_a_dtype_that_cannot_be_compared_is_kept(tmp_path, write_raw):
    path = write_raw(tmp_path / "m", {"w": entry("F4", (4, 4), 0, 8)}, bytes(8))
    (tensor,) = header_of(path).tensors
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == ("F4", (4, 4), 8)


def test_truncated(tmp_path, write_raw):
    path = write_raw(tmp_path / "m", {"w": entry(end=8)}, bytes(5))
    size = path.stat().st_size
    refused(path, f"file is {size} bytes, header promises {size + 3}: download it again")


def test_truncated_inside_the_header(tmp_path, write_raw):
    path = write_raw(tmp_path / "m", {"w": entry(end=8)}, bytes(8))
    whole = path.read_bytes()
    path.write_bytes(whole[:30])
    refused(path, "file is 30 bytes, header promises", "download it again")
    path.write_bytes(whole[:5])
    refused(path, "file is 5 bytes, too short for a header")


def test_bytes_after_the_last_tensor(tmp_path, write_raw):
    path = write_raw(tmp_path / "m", {"w": entry(end=8)}, bytes(11))
    refused(path, "3 bytes belong to no tensor")


def test_absurd_header_length(tmp_path):
    path = tmp_path / "m"
    path.write_bytes((100_000_001).to_bytes(8, "little") + bytes(50))
    refused(path, "header length 100000001 is over the limit", "not a safetensors file")


def test_git_lfs_pointer(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    refused(path, "git-lfs pointer", "git lfs pull")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{]", "not valid JSON"),
        (b'{"\xff": 1}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[" + b"9" * 5000 + b"]", "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"w": 1, "w": 2}', "'w' twice"),
    ],
)
def test_no_header(tmp_path, write_raw, raw, words):
    refused(write_raw(tmp_path / "m", raw), words, "write or download it again")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"dtype": "F32", "shape": [2]}, "lacks dtype, shape or data_offsets"),
        ([], "lacks dtype, shape or data_offsets"),
        (entry(dtype=7), "dtype 7 is not a name"),
        (entry(dtype=""), "dtype '' is not a name"),
        ({**entry(), "shape": [-2]}, "shape [-2] is not a list of sizes"),
        ({**entry(), "shape": [True]}, "shape [True] is not a list of sizes"),
        ({**entry(), "shape": 2}, "shape 2 is not a list of sizes"),
        ({**entry(), "data_offsets": [8, 0]}, "data_offsets [8, 0] are no range"),
        ({**entry(), "data_offsets": [0, 4, 8]}, "data_offsets [0, 4, 8] are no range"),
        ({**entry(), "data_offsets": [-8, 0]}, "data_offsets [-8, 0] are no range"),
        ({**entry(), "data_offsets": [0, 8.0]}, "data_offsets [0, 8.0] are no range"),
        (entry(shape=(3,)), "F32 of shape [3] takes 12 bytes, data_offsets give 8"),
    ],
)
def test_wrong_entry(tmp_path, write_raw, wrong, words):
    message = refused(write_raw(tmp_path / "m", {"a.w": wrong}, bytes(8)), words)
    assert message.startswith("m.safetensors: tensor a.w: ")
    assert message.endswith(": write or download it again")


def test_overlap_and_hole(tmp_path, write_raw):
    overlap = {"a": entry(end=8), "b": entry(begin=4, end=12)}
    message = refused(write_raw(tmp_path / "m", overlap, bytes(12)), "tensor b: overlaps")
    assert "begins at byte 4 of the data, expected 8" in message
    hole = {"a": entry(end=8), "b": entry(begin=12, end=20)}
    refused(write_raw(tmp_path / "m", hole, bytes(20)), "tensor b: follows a hole")
    late = {"a": entry(begin=4, end=12)}
    refused(write_raw(tmp_path / "m", late, bytes(12)), "tensor a: follows a hole")


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.integers(0, 80))
def test_damage_is_an_error_of_ours_or_harmless(junk, place):
    raw = json.dumps({"a": entry(end=8), "b": entry(begin=8, end=16)}).encode()
    good = len(raw).to_bytes(8, "little") + raw + bytes(16)
    data = good[:place] + junk + good[place + len(junk) :]
    file = FileRef("m", len(data), "")
    try:
        header = read_header(lambda offset, n: data[offset : offset + n], file)
    except CheckpointError as error:
        assert re.match("m: ", str(error))
    else:
        assert sum(t.nbytes for t in header.tensors) + 8 + len(header.raw) == len(data)
