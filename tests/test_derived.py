"""Quantised tensors: the values that the official conversions give, however the windows cut."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from rlsparse_ray.align import align
from rlsparse_ray.compare.dequant import fp8_to_bf16, mxfp4_to_bf16
from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.values import values_of
from rlsparse_ray.weights import DTYPES, Reader, derive, open_local, prefetch
from tests.builders import (
    BF16,
    extract_directly,
    mask_rows,
    rows_of,
    sparsely_changed,
    weights,
    write_corpus,
    write_model,
)
from tests.test_align import model

FP8 = ml_dtypes.float8_e4m3fn


def windowed(spec, window, reader):
    """All values of a tensor, as a slice reads them."""
    planned, values = values_of(spec), values_of(spec)
    ranges = [(s, min(s + window, spec.numel)) for s in range(0, spec.numel, window)]
    requests = [r for start, stop in ranges for r in planned.requests(start, stop)]
    buffers = prefetch(requests, reader, 2, hold=values.arrays)
    pieces = []
    for start, stop in ranges:
        width = DTYPES[spec.dtype]
        whole = (windowed(o, o.numel, reader) for o in values.operands)
        operands = [raw[start * width : stop * width] for raw in whole]
        pieces.append(values.take(start, stop, lambda: next(buffers), operands).copy())
    assert next(buffers, None) is None
    assert sum(r.nbytes for r in requests) == spec.nbytes - sum(o.nbytes for o in values.operands)
    return np.concatenate(pieces)


def naive_fp8(codes, scales, block):
    """Element by element in float64, which holds the float32 product before it is rounded."""
    wide = np.kron(scales.astype(np.float64), np.ones(block))[: codes.shape[0], : codes.shape[1]]
    return (codes.astype(np.float64) * wide).astype(np.float32).astype(BF16)


def fp8_tensor(seed, shape, block=(128, 128)):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, shape).astype(np.uint8).view(FP8)
    grid = tuple(-(-n // b) for n, b in zip(shape, block, strict=True))
    return codes, rng.lognormal(-8, 2, grid).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 99))
def test_fp8_against_elementwise_products(rows, columns, seed):
    codes, scales = fp8_tensor(seed, (rows, columns))
    found = fp8_to_bf16(codes.view(np.uint8), "F8_E4M3", scales, (128, 128)).view(BF16)
    expected = naive_fp8(codes, scales, (128, 128))
    nan = np.isnan(expected)
    assert (np.isnan(found.reshape(rows, columns)) == nan).all()
    assert (
        found.reshape(rows, columns)[~nan].view(np.uint16) == expected[~nan].view(np.uint16)
    ).all()


def test_fp8_against_transformers():
    codes, scales = fp8_tensor(1, (256, 384))
    theirs = Fp8Dequantize(None)._dequantize_one(
        torch.from_numpy(codes.view(np.uint8)).view(torch.float8_e4m3fn),
        torch.from_numpy(scales),
        torch.bfloat16,
    )
    ours = fp8_to_bf16(codes.view(np.uint8), "F8_E4M3", scales, (128, 128))
    same = torch.from_numpy(ours.view(np.int16)).view(torch.bfloat16).reshape(256, 384)
    assert torch.equal(same.nan_to_num(7.0), theirs.nan_to_num(7.0))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 4), st.integers(0, 99))
def test_mxfp4_against_transformers(rows, groups, seed):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (2, rows, groups, 16)).astype(np.uint8)
    scales = rng.integers(0, 256, (2, rows, groups)).astype(np.uint8)
    theirs = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales))
    ours = np.stack([mxfp4_to_bf16(b, s) for b, s in zip(blocks, scales, strict=True)])
    same = torch.from_numpy(ours.view(np.int16)).view(torch.bfloat16).reshape(theirs.shape)
    assert torch.equal(same.isnan(), theirs.isnan())
    kept = ~theirs.isnan()
    assert torch.equal(same[kept].view(torch.int16), theirs[kept].view(torch.int16))


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """A file with every encoding, and the values of each tensor."""
    folder = tmp_path_factory.mktemp("quantised")
    rng = np.random.default_rng(3)
    tensors, expected = {}, {}
    for name, shape, block, suffix in (
        ("blocks", (300, 200), (128, 128), "_scale_inv"),
        ("rows", (37, 50), (1, 50), "_scale"),
        ("whole", (150, 41), (150, 41), "_scale"),
    ):
        codes, scales = fp8_tensor(len(tensors), shape, block)
        codes = np.where(np.isnan(codes.astype(np.float32)), FP8(1), codes)
        tensors |= {f"model.{name}.weight": codes, f"model.{name}.weight{suffix}": scales}
        expected[f"{name}.weight"] = naive_fp8(codes, scales, block)
    blocks = rng.integers(0, 256, (5, 24, 3, 16)).astype(np.uint8)
    scales = rng.integers(110, 130, (5, 24, 3)).astype(np.uint8)
    experts = "model.layers.0.mlp.experts.gate_up_proj"
    tensors |= {f"{experts}_blocks": blocks, f"{experts}_scales": scales}
    theirs = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales))
    expected["layers.0.mlp.experts.gate_up_proj"] = (
        theirs.contiguous().view(torch.int16).numpy().view(BF16)
    )
    tensors["model.norm.weight"] = expected["norm.weight"] = weights(5, (64,))
    write_model(folder, tensors)
    return folder, expected


@pytest.mark.parametrize("window", [1, 7, 4096, 10_000, 1 << 20])
def test_windows_that_cut_anywhere(quantised, window):
    folder, expected = quantised
    with Reader() as reader:
        for spec in derive(open_local(folder)).tensors:
            if window == 1 and spec.numel > 5000:
                continue
            values = windowed(spec, window, reader).view(BF16)
            wanted = expected[spec.name.removeprefix("model.")]
            assert spec.shape == wanted.shape
            assert (values.view(np.uint16) == wanted.reshape(-1).view(np.uint16)).all(), spec.name


def test_a_quantised_model_against_its_own_values(quantised, tmp_path):
    """Nothing has changed, either way; and a tuned model has the same masks against both."""
    folder, expected = quantised
    plain = {f"model.{name}": np.ascontiguousarray(array) for name, array in expected.items()}
    write_model(tmp_path / "plain", plain)
    write_model(tmp_path / "tuned", {n: sparsely_changed(a, 1) for n, a in plain.items()})
    codes = str(folder)
    sides = [
        (codes, "plain"),
        ("plain", codes),
        (codes, "tuned"),
        ("plain", "tuned"),
        (codes, codes),
    ]
    pairs = [{"name": f"p{n}", "base": a, "tuned": b} for n, (a, b) in enumerate(sides)]
    corpus = write_corpus(tmp_path / "c.yaml", pairs, slice_bytes=50_000)
    ids = [pair.pair_id for pair in extract_directly(corpus, tmp_path / "s").pairs]
    for pair_id in (ids[0], ids[1], ids[4]):
        rows = rows_of(tmp_path / "s", "tensors", pair_id)
        assert {r["status"] for r in rows} == {"identical"}
        assert len(rows) == len(expected)
    by_name = {r["tensor"]: r for r in rows_of(tmp_path / "s", "tensors", ids[0])}
    encodings = {name: r["base_encoding"] for name, r in by_name.items()}
    assert encodings == {
        "blocks.weight": "fp8 blocks 128x128",
        "rows.weight": "fp8 blocks 1x50",
        "whole.weight": "fp8 blocks 150x41",
        "layers.0.mlp.experts.gate_up_proj": "mxfp4",
        "norm.weight": None,
    }
    assert {r["tuned_encoding"] for r in by_name.values()} == {None}
    assert by_name["layers.0.mlp.experts.gate_up_proj"]["base_name"].endswith("gate_up_proj_blocks")
    one, other = (
        sorted(mask_rows(tmp_path / "s", i, "exact"), key=lambda r: (r["tensor_key"], r["block"]))
        for i in ids[2:4]
    )
    assert one == other
    assert sum(r["changed"] for r in one) > 0


@pytest.mark.parametrize(
    ("scales", "shape"),
    [("_scale_inv", ("F32", 2, 7)), ("_scale", ("F32", 5)), ("_scale", ("I32", 3, 3))],
)
def test_scales_that_do_not_fit(scales, shape):
    odd = model({"q.weight": ("F8_E4M3", 300, 300), f"q.weight{scales}": shape})
    with pytest.raises(CheckpointError, match=r"does not scale q.weight .*dequantise the model"):
        align(odd, odd)


def test_mxfp4_scales_that_do_not_fit():
    odd = model({"w_blocks": ("U8", 2, 3, 4, 16), "w_scales": ("U8", 2, 3, 5)})
    with pytest.raises(CheckpointError, match="does not scale the MXFP4 blocks w_blocks"):
        derive(odd)


def test_fp8_without_scales_is_compared_as_it_is():
    (row,) = align(model({"w": ("F8_E4M3", 4, 4)}), model({"w": (4, 4)}))
    assert (row.compare_dtype, row.base.encoding) == ("F8_E4M3", "")


def test_memory_is_bounded_by_an_expert(tmp_path):
    """40 experts of 2 MiB: the whole tensor would be 80 MiB."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (40, 1024, 32, 16)).astype(np.uint8)
    scales = rng.integers(100, 130, (40, 1024, 32)).astype(np.uint8)
    save_file({"w_blocks": blocks, "w_scales": scales}, tmp_path / "model.safetensors")
    (spec,) = derive(open_local(tmp_path)).tensors
    values, window = values_of(spec), 100_000
    with Reader() as reader:
        ranges = [(s, min(s + window, spec.numel)) for s in range(0, spec.numel, window)]
        requests = (r for start, stop in ranges for r in values_of(spec).requests(start, stop))
        buffers = prefetch(requests, reader, 2, hold=2)
        total = 0
        tracemalloc.start()
        for start, stop in ranges:
            total += values.take(start, stop, lambda: next(buffers), []).nbytes
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert total == 80 << 20
    assert peak < 12 << 20
    assert peak < values.working + (4 << 20)
