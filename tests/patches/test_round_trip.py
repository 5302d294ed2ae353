"""What a patch makes of the base is the tuned model, to the bit, whatever the bits are."""

import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsparse_ray.patches import apply_patch, make_patch, open_patch, verify_patch
from rlsparse_ray.patches.entries import chunks
from rlsparse_ray.patches.windows import WINDOW
from rlsparse_ray.weights import DTYPES, Reader
from tests.patches.builders import (
    OTHER_FILES,
    Plain,
    elements,
    files_of,
    flipped,
    plain,
    read_safetensors,
    tensors_of,
    with_changes,
    write,
    write_safetensors,
)

DTYPE_NAMES = (*DTYPES, "F8_E8M0")


def width_of(dtype):
    return DTYPES.get(dtype, 1)


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(DTYPE_NAMES))
    shape = tuple(draw(st.lists(st.integers(0, 7), max_size=3)))
    width, count = width_of(dtype), int(np.prod(shape))
    data = draw(st.binary(min_size=count * width, max_size=count * width))
    return Plain(dtype, shape, data)


@st.composite
def models(draw):
    """A base and a tuned model."""
    names = draw(
        st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=5, unique=True)
    )
    base = {name: draw(tensors()) for name in names}
    tuned = {}
    for name, tensor in base.items():
        width, data = width_of(tensor.dtype), bytearray(tensor.data)
        count = len(data) // width
        for place in draw(st.sets(st.integers(0, count - 1))) if count else ():
            data[place * width : (place + 1) * width] = draw(
                st.binary(min_size=width, max_size=width)
            )
        tuned[name] = tensor._replace(data=bytes(data))
    return base, tuned


def entries_of(base, tuned):
    """The slow way: what differs, element by element."""
    found = {}
    for name in base:
        width = width_of(base[name].dtype)
        pieces = [
            (old[at : at + width], new[at : at + width])
            for old, new in [(base[name].data, tuned[name].data)]
            for at in range(0, len(old), width)
        ]
        places = [i for i, (old, new) in enumerate(pieces) if old != new]
        if places:
            found[f"{name}.indices"] = Plain(
                "I32", (len(places),), struct.pack(f"<{len(places)}i", *places)
            )
            values = b"".join(pieces[i][1] for i in places)
            found[f"{name}.values"] = Plain(base[name].dtype, (len(places),), values)
    return found


@settings(max_examples=60)
@given(models(), st.integers(1, 3), st.integers(1, 3))
def test_any_models(pair, shards, other_shards):
    base, tuned = pair
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "patches").mkdir()
        shards, other_shards = min(shards, len(base)), min(other_shards, len(base))
        write(folder / "base", base, shards)
        write(folder / "tuned", tuned, other_shards)
        patch = folder / "patches" / "patch.safetensors"
        report = make_patch(folder / "base", folder / "tuned", patch)
        entries = entries_of(base, tuned)
        assert tensors_of(patch.parent) == entries
        indices = [t for name, t in entries.items() if name.endswith(".indices")]
        assert report.changed == sum(len(tensor.data) // 4 for tensor in indices)
        models = {"base": folder / "base", "tuned": folder / "tuned"}
        assert verify_patch(patch, **models).problems == []
        apply_patch(folder / "base", patch, folder / "out")
        assert tensors_of(folder / "out") == tuned
        assert files_of(folder / "out").keys() == files_of(folder / "base").keys()


def test_bits_not_values(tmp_path):
    """-0 against +0, and two NaN, are no change of a value."""
    one, payload, other = (struct.pack("<I", bits) for bits in (0x7FC00000, 0x7FC00001, 0xFF800001))
    zero, negative = struct.pack("<ff", 0.0, -0.0)[:4], struct.pack("<f", -0.0)
    base = {"w": Plain("F32", (5,), zero + negative + one + one + zero)}
    tuned = {"w": Plain("F32", (5,), negative + zero + payload + other + zero)}
    write(tmp_path / "base", base)
    write(tmp_path / "tuned", tuned)
    assert (
        make_patch(tmp_path / "base", tmp_path / "tuned", tmp_path / "p.safetensors").changed == 4
    )
    apply_patch(tmp_path / "base", tmp_path / "p.safetensors", tmp_path / "out")
    assert tensors_of(tmp_path / "out") == tuned


@pytest.mark.parametrize("density", [0.0, 1e-5, 0.6, 1.0])
def test_many_windows(tmp_path, density):
    """Tensors of several windows, with an odd rest, and more entries than are read at once."""
    shapes = {"a": ("BF16", (3 * WINDOW // 2 + 77,)), "b": ("U8", (WINDOW,)), "c": ("F64", (5,))}
    base = {name: plain(dtype, shape, 1) for name, (dtype, shape) in shapes.items()}
    tuned = {name: flipped(tensor, density, 2) for name, tensor in base.items()}
    write(tmp_path / "base", base)
    write(tmp_path / "tuned", tuned)
    patch = tmp_path / "p.safetensors"
    report = make_patch(tmp_path / "base", tmp_path / "tuned", patch)
    changed = sum(
        np.count_nonzero(np.frombuffer(base[n].data, "u1") != np.frombuffer(tuned[n].data, "u1"))
        for n in base
    )
    assert report.changed == changed
    apply_patch(tmp_path / "base", patch, tmp_path / "out")
    assert tensors_of(tmp_path / "out") == tuned
    # one of the first and one of the last window alone
    for place in (0, 3 * WINDOW // 2 + 76):
        one = {**base, "a": with_changes(base["a"], {place: b"\1\2"})}
        write(tmp_path / f"tuned-{place}", one)
        make_patch(tmp_path / "base", tmp_path / f"tuned-{place}", patch, force=True)
        apply_patch(tmp_path / "base", patch, tmp_path / f"out-{place}")
        assert tensors_of(tmp_path / f"out-{place}") == one


def test_elements_are_aligned(scene):
    """So that readers may map them: each begins at a multiple of its width."""
    raw = scene.patch.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header, _ = read_safetensors(scene.patch)
    del header["__metadata__"]
    widths = {"I32": 4, **DTYPES}
    assert start % 8 == 0
    assert len(header) == 6
    for entry in header.values():
        assert entry["data_offsets"][0] % widths[entry["dtype"]] == 0


def test_the_library_reads_it(scene):
    from safetensors.torch import load_file

    found = load_file(scene.patch)
    base, tuned = load_file_of(scene.base), load_file_of(scene.tuned)
    names = {name.rpartition(".")[0] for name in found}
    assert names == base.keys() - {"model.norm.weight"}
    for name in names:
        import torch

        size = getattr(torch, f"int{8 * base[name].element_size()}")
        patched = base[name].view(-1)
        patched[found[f"{name}.indices"].long()] = found[f"{name}.values"]
        assert torch.equal(patched.view(size), tuned[name].view(-1).view(size))


def load_file_of(folder):
    from safetensors.torch import load_file

    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def test_64_bit_indices(tmp_path):
    """A tensor with more elements than int32 counts; the files are holes."""
    numel = 2**31 + 5
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        header = {"w": {"dtype": "I8", "shape": [numel], "data_offsets": [0, numel]}}
        path = write_safetensors(tmp_path / name / "model.safetensors", header, b"")
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size + numel)
            if name == "tuned":
                file.seek(-1, 2)
                file.write(b"\7")
    patch = tmp_path / "p.safetensors"
    assert make_patch(tmp_path / "base", tmp_path / "tuned", patch).changed == 1
    header, data = read_safetensors(patch)
    assert header["w.indices"]["dtype"] == "I64"
    assert data == struct.pack("<qb", numel - 1, 7)
    with Reader() as reader:
        ((name, indices, values),) = chunks(open_patch(patch), ["w"], reader)
    assert (name, indices.tolist(), values.tolist()) == ("w", [numel - 1], [7])


def test_other_files_are_the_bases(scene):
    apply_patch(scene.base, scene.patch, scene.out)
    found, base, tuned = map(files_of, (scene.out, scene.base, scene.tuned))
    assert found == tuned
    assert {name: found[name] for name in OTHER_FILES} == OTHER_FILES
    assert found != base
    assert len(elements(tensors_of(scene.out)["model.norm.weight"])) == 16
