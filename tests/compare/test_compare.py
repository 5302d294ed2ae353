"""Both backends against the slow oracle, in every format, at every edge that matters."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsparse_ray.blocks import BLOCK
from rlsparse_ray.compare import COUNTED, FORMATS, BaseScan, PairScan, Request, parse_criterion
from rlsparse_ray.compare.cpu import CpuBackend
from rlsparse_ray.compare.torch_backend import TorchBackend
from tests.compare import oracle

MASKED = tuple(parse_criterion(t) for t in ("exact", "abs:1e-5", "rel:2e-1"))
CPU, TORCH = CpuBackend(), TorchBackend("cpu")
BACKENDS = {"cpu": CPU, "torch": TORCH}


def scan(backend, base, tuned, fmt, shape=None, window=None):
    """Windows through a backend and the scans, as a tensor is extracted."""
    request = Request(fmt, MASKED)
    pair, alone = PairScan(request, shape or (len(base),)), BaseScan(request)
    windows = []
    for at in range(0, len(base), window or BLOCK):
        x = backend.load(base[at : at + (window or BLOCK)])
        y = backend.load(tuned[at : at + (window or BLOCK)])
        alone.add(backend.scan_base(x, request))
        windows.append(pair.compare(backend, x, y, len(x)))
    return pair, alone, windows


def facts(pair, alone, windows):
    """The scans in the oracle's words."""
    margins = None
    if pair.margins is not None:
        margins = {c: tuple(m.tolist() for m in pair.margins_under(c)) for c in MASKED}
    return {
        "changed": {c: pair.changed_under(c) for c in pair.request.counted},
        "bits": {c: b"".join(w.bits[k].tobytes() for w in windows) for k, c in enumerate(MASKED)},
        "block_changed": {
            c: [int(n) for w in windows for n in w.block_changed[k]] for k, c in enumerate(MASKED)
        },
        "strata": {
            c: {s.exponent: (s.numel, s.changed) for s in pair.strata(alone, c)} for c in MASKED
        },
        "steps": {(s.low, s.high): s.numel for s in pair.step_buckets()},
        "largest": pair.largest,
        "update_l2": pair.l2,
        "nan": alone.nan + pair.nan,
        "inf": alone.inf + pair.inf,
        "margins": margins,
    }


def check(base, tuned, fmt, shape=None, backend=CPU):
    got = facts(*scan(backend, base, tuned, fmt, shape))
    want = oracle.compare(base, tuned, fmt, MASKED, Request(fmt, MASKED).counted, shape or (1,))
    assert got.pop("update_l2") == pytest.approx(want.pop("update_l2"), rel=1e-12)
    assert got == want


def edges(fmt):
    """Bits of zero, subnormals, the ends of the normals, infinity, NaNs; both signs."""
    if fmt.kind != "float":
        top = (1 << fmt.bits) - 1
        return [0, 1, 2, 3, top, top - 1, top >> 1, (top >> 1) + 1, (top >> 1) + 2]
    one = fmt.bias << fmt.mantissa_bits
    least = 1 << fmt.mantissa_bits
    magnitudes = [0, 1, 2, least - 1, least, least + 1, one - 1, one, one + 1]
    magnitudes += [fmt.nonfinite_from - 1, fmt.nonfinite_from, fmt.magnitude_mask]
    magnitudes += [fmt.nan_from] if fmt.nan_from <= fmt.magnitude_mask else []
    sign = 1 << (fmt.bits - 1)
    return sorted({m | s for m in magnitudes for s in (0, sign)})


def random_pair(fmt, n, seed, share=0.3):
    """Random bits, of which a share moved a little and a few anywhere."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 1 << fmt.bits, n, dtype=np.uint64).astype(fmt.unsigned)
    step = rng.integers(-3, 4, n).astype(fmt.unsigned)
    tuned = np.where(rng.random(n) < share, base + step, base).astype(fmt.unsigned)
    return base, np.where(rng.random(n) < 0.02, base[::-1], tuned).astype(fmt.unsigned)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_every_pair_of_edge_values(fmt, backend):
    couples = list(itertools.product(edges(fmt), repeat=2))
    base = np.array([x for x, _ in couples], fmt.unsigned)
    tuned = np.array([y for _, y in couples], fmt.unsigned)
    check(base, tuned, fmt, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_random_bits(fmt, backend):
    check(*random_pair(fmt, 1155, seed=fmt.bits), fmt, shape=(3, 35, 11), backend=backend)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 63, 64, 65])
@pytest.mark.parametrize("name", ["BF16", "F32", "F8_E4M3", "I32"])
def test_sizes_that_fill_no_byte_or_word(n, name):
    for backend in BACKENDS.values():
        check(*random_pair(FORMATS[name], n, seed=n), FORMATS[name], backend=backend)


def test_a_0d_tensor_has_one_value_and_no_margins():
    base, tuned = np.array([0x3F80], np.uint16), np.array([0x3F81], np.uint16)
    check(base, tuned, FORMATS["BF16"], shape=())


@pytest.mark.parametrize("n", [BLOCK - 1, BLOCK, BLOCK + 1])
def test_sizes_around_a_block(n):
    fmt = FORMATS["BF16"]
    base, tuned = random_pair(fmt, n, seed=n)
    pair, _, windows = scan(CPU, base, tuned, fmt)
    differ = (base != tuned) & (((base | tuned) & 0x7FFF) != 0)
    bits = b"".join(w.bits[0].tobytes() for w in windows)
    assert bits == np.packbits(differ, bitorder="little").tobytes()
    assert pair.changed_under(MASKED[0]) == differ.sum()


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_backends_agree_to_the_last_bit_over_blocks_and_windows(fmt):
    n = 3 * BLOCK + 12_345
    base, tuned = random_pair(fmt, n, seed=1, share=0.9)
    shape = (-(-n // 977), 977)
    n = shape[0] * shape[1]
    base, tuned = np.resize(base, n), np.resize(tuned, n)
    one = facts(*scan(CPU, base, tuned, fmt, shape, window=2 * BLOCK))
    two = facts(*scan(TORCH, base, tuned, fmt, shape, window=4 * BLOCK))
    assert one == two
    assert scan(CPU, base, tuned, fmt)[1].l2 == scan(TORCH, base, tuned, fmt)[1].l2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU: CUDA kernels not checked")
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_cuda_gives_the_bits_of_the_cpu(fmt):
    base, tuned = random_pair(fmt, 5 * BLOCK + 77, seed=2, share=0.5)
    gpu = TorchBackend("cuda")
    assert facts(*scan(gpu, base, tuned, fmt)) == facts(*scan(CPU, base, tuned, fmt))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 65535)), max_size=300))
def test_any_bf16_bits(couples):
    base = np.array([x for x, _ in couples], np.uint16)
    tuned = np.array([y for _, y in couples], np.uint16)
    check(base, tuned, FORMATS["BF16"])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 7))
def test_packing_is_read_back(data, cut):
    flags = np.unpackbits(np.frombuffer(data, np.uint8))[: max(0, 8 * len(data) - cut)]
    base = np.zeros(len(flags), np.uint16)
    _, _, windows = scan(CPU, base, flags.astype(np.uint16), FORMATS["BF16"])
    packed = b"".join(w.bits[0].tobytes() for w in windows)
    assert len(packed) == -(-len(flags) // 8)
    back = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    assert back[: len(flags)].tolist() == flags.tolist()
    assert not back[len(flags) :].any()


def test_signed_zero_is_no_change_and_nan_is_by_bits():
    fmt = FORMATS["BF16"]
    base = np.array([0x0000, 0x8000, 0x7FC0, 0x7FC0, 0x7F80, 0x7F80, 0x3F80], np.uint16)
    tuned = np.array([0x8000, 0x0000, 0x7FC0, 0x7FC1, 0x7F80, 0xFF80, 0x7F80], np.uint16)
    _, _, (window,) = scan(CPU, base, tuned, fmt)
    for k in range(len(MASKED)):
        assert np.unpackbits(window.bits[k], bitorder="little")[:7].tolist() == [
            0,
            0,
            0,
            1,
            0,
            1,
            1,
        ]


def test_tolerance_is_applied_to_a_difference_that_bf16_never_rounded():
    # 1.0000 and 1.0078 are neighbours in bf16; the fp32 difference is exactly 2^-7
    base, tuned = np.array([0x3F80], np.uint16), np.array([0x3F81], np.uint16)
    for text, expected in (("abs:7.8124e-3", 1), ("abs:7.8125e-3", 0)):
        request = Request(FORMATS["BF16"], (parse_criterion(text),))
        window = CPU.compare(base, tuned, request, None, 0)
        assert int(window.changed[-1]) == expected


def test_standard_criteria_are_always_counted():
    request = Request(FORMATS["BF16"], (parse_criterion("abs:3e-4"),))
    assert request.counted[: len(COUNTED)] == COUNTED
    assert str(request.counted[-1]) == "abs:3e-4"


@pytest.mark.parametrize("text", ["abs:1e400", "abs:1e39", "rel:1e39", "abs:1e-400", "abs:1e-46"])
def test_a_tolerance_is_a_number_of_fp32(text):
    """An infinite one would leave changes to NaN and Inf uncounted."""
    with pytest.raises(ValueError, match=r"in fp32.*: give one from 1e-45 to 3\.4e38"):
        parse_criterion(text)


@pytest.mark.parametrize("text", ["abs:1e-45", "abs:3.4e38", "rel:2e0"])
def test_every_tolerance_that_is_taken_can_be_written(text):
    assert str(parse_criterion(text)) == text
