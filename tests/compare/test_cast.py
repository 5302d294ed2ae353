"""Rounding to the comparison dtype."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsparse_ray.compare import FORMATS, cast_bits
from tests.compare import oracle


def to_bf16(words):
    return cast_bits(np.array(words, np.uint32).view(np.uint8), "F32", FORMATS["BF16"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_f32_to_bf16_rounds_to_nearest_even_like_torch(words):
    got = to_bf16(words)
    values = torch.from_numpy(np.array(words, np.uint32).view(np.float32).copy())
    want = values.to(torch.bfloat16)
    finite = ~values.isnan().numpy()
    assert (got[finite] == want.view(torch.int16).numpy().view(np.uint16)[finite]).all()
    assert torch.from_numpy(got.view(np.int16)).view(torch.bfloat16).isnan().equal(want.isnan())


@pytest.mark.parametrize("low", [0x0000, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
@pytest.mark.parametrize("high", [0x0000, 0x0001, 0x3F80, 0x3F81, 0x7F7F, 0xBF80])
def test_ties_go_to_even(high, low):
    value = oracle.decode(high << 16 | low, FORMATS["F32"])
    (got,) = to_bf16([high << 16 | low])
    choices = [c for c in (high, high + 1) if c & 0x7FFF <= 0x7F80]
    values = {c: oracle.decode(c, FORMATS["BF16"]) for c in choices}
    beyond = Fraction(2) ** 128 * (-1 if high >> 15 else 1)
    exact = {c: beyond if isinstance(v, str) else v for c, v in values.items()}
    assert got == min(choices, key=lambda c: (abs(exact[c] - value), c & 1))


@pytest.mark.parametrize("stored", ["F16", "F64", "F32"])
@pytest.mark.parametrize("target", ["BF16", "F16", "F32", "F8_E4M3", "F8_E5M2"])
def test_every_float_to_every_narrower_one(stored, target):
    rng = np.random.default_rng(0)
    source = FORMATS[stored]
    values = (rng.standard_normal(500) * np.exp(rng.standard_normal(500) * 3)).astype(source.numpy)
    bits = cast_bits(values.view(np.uint8), stored, FORMATS[target])
    want = values.astype(np.float32).astype(FORMATS[target].numpy)
    assert bits.tobytes() == want.tobytes()


def test_the_same_dtype_is_a_view():
    raw = np.arange(8, dtype=np.uint8)
    assert np.shares_memory(cast_bits(raw, "BF16", FORMATS["BF16"]), raw)


def test_overflow_becomes_infinity_or_nan():
    big = np.array([3e38, -3e38], np.float32).view(np.uint8)
    assert cast_bits(big, "F32", FORMATS["F16"]).tolist() == [0x7C00, 0xFC00]
    assert np.isnan(cast_bits(big, "F32", FORMATS["F8_E4M3"]).view(ml_dtypes.float8_e4m3fn)).all()
