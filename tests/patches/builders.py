"""Models of any dtype as plain bytes, and the slow way to compare them."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlsparse_ray.weights import DTYPES


class Plain(NamedTuple):
    """A tensor."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


Tensors = Mapping[str, Plain]

OTHER_FILES = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "empty.txt": b""}


def plain(dtype: str, shape: tuple[int, ...], seed: int) -> Plain:
    """Random bits: among floats there are NaN, infinities and zeros of both signs."""
    nbytes = prod(shape) * DTYPES[dtype]
    return Plain(dtype, shape, np.random.default_rng(seed).bytes(nbytes))


def elements(tensor: Plain) -> list[bytes]:
    width = DTYPES[tensor.dtype]
    return [tensor.data[at : at + width] for at in range(0, len(tensor.data), width)]


def with_changes(tensor: Plain, changes: Mapping[int, bytes]) -> Plain:
    """The tensor with other elements at some flat places."""
    found = elements(tensor)
    for place, element in changes.items():
        found[place] = element
    return tensor._replace(data=b"".join(found))


def flipped(tensor: Plain, density: float, seed: int) -> Plain:
    """The tensor with one bit of some elements flipped."""
    bits = np.frombuffer(tensor.data, f"u{DTYPES[tensor.dtype]}").copy()
    bits ^= (np.random.default_rng(seed).random(bits.size) < density).astype(bits.dtype)
    return tensor._replace(data=bits.tobytes())


def write(folder: Path, tensors: Tensors, shards: int = 1) -> Path:
    """A model folder with a config and a tokenizer; sharded ones have an index."""
    folder.mkdir(parents=True)
    for name, data in OTHER_FILES.items():
        (folder / name).write_bytes(data)
    if shards == 1:
        _write_file(folder / "model.safetensors", tensors)
        return folder
    names, weight_map = list(tensors), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[number::shards]
        _write_file(folder / file, {name: tensors[name] for name in mine})
        weight_map |= dict.fromkeys(mine, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _write_file(path: Path, tensors: Tensors) -> None:
    header, end = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        offsets = [end, end + len(data)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        end += len(data)
    data = b"".join(tensor.data for tensor in tensors.values())
    write_safetensors(path, header, data)


def write_safetensors(path: Path, header: Mapping[str, object], data: bytes) -> Path:
    """A safetensors file from its header and its data, right or wrong."""
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def read_safetensors(path: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    """Header and data of a safetensors file."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def tensors_of(folder: Path) -> dict[str, Plain]:
    """Every tensor in every safetensors file of a folder."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        header, data = read_safetensors(path)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            found[name] = Plain(entry["dtype"], tuple(entry["shape"]), data[begin:end])
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
