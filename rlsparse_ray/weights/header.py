"""Reads and checks the header of a safetensors file; the weights themselves are not touched.

A file is 8 bytes of length (little endian), that many bytes of JSON, and the tensors without
gaps. Every statement of the header is checked against the others and the file's size, so that
later range reads cannot go wrong in silence.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.spec import DTYPES, FileRef, TensorSpec

MAX_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library. Real headers stay below 10 MB."""

_AGAIN = "write or download it again"

_FIRST = 64 << 10
"""Bytes asked for at first: most headers with their length, in one round trip."""


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header."""

    raw: bytes
    """The JSON as stored: part of the fingerprint of a folder."""
    tensors: tuple[TensorSpec, ...]
    """Sorted by offset."""


def read_header(
    read: Callable[[int, int], bytes], file: FileRef, name: str | None = None
) -> Header:
    """Parse and validate the header of one safetensors file.

    Args:
        read: `read(offset, nbytes)` gives bytes of the file; it is called once, and a second
            time if the header is longer than 64 KiB.
        file: the file; its size is what the header is checked against.
        name: how messages call the file; its path if not given.

    Raises:
        CheckpointError: naming the file, the tensor, what is wrong and the fix.
    """
    name = name or file.path
    raw = _raw_header(read, file.size, name)
    start = 8 + len(raw)
    entries = _parse_json(raw, name)
    entries.pop("__metadata__", None)
    tensors = [_tensor(name, key, entry, start, file) for key, entry in entries.items()]
    tensors.sort(key=lambda t: (t.offset, t.nbytes))
    end = _check_contiguous(name, tensors, start)
    _check_size(name, file.size, end)
    return Header(raw, tuple(tensors))


def _raw_header(read: Callable[[int, int], bytes], size: int, name: str) -> bytes:
    if size < 8:
        raise CheckpointError(f"{name}: file is {size} bytes, too short for a header: {_AGAIN}")
    first = read(0, min(size, _FIRST))
    refuse_pointer(first, name)
    length = int.from_bytes(first[:8], "little")
    if length > MAX_HEADER:
        raise CheckpointError(
            f"{name}: header length {length} is over the limit of {MAX_HEADER} bytes: "
            f"not a safetensors file, or damaged: {_AGAIN}"
        )
    _check_size(name, size, 8 + length, exact=False)
    if 8 + length <= len(first):
        return first[8 : 8 + length]
    return first[8:] + read(len(first), 8 + length - len(first))


def refuse_pointer(first: bytes, name: str) -> None:
    """Refuse a file that begins as git-lfs pointers do.

    Raises:
        CheckpointError: it is one.
    """
    if first.startswith(b"version "):
        raise CheckpointError(f"{name}: a git-lfs pointer, not weights: run `git lfs pull`")


def _check_size(name: str, size: int, promised: int, *, exact: bool = True) -> None:
    if size < promised:
        raise CheckpointError(
            f"{name}: file is {size} bytes, header promises {promised}: download it again"
        )
    if exact and size > promised:
        raise CheckpointError(
            f"{name}: file is {size} bytes, header promises {promised}: "
            f"{size - promised} bytes belong to no tensor: {_AGAIN}"
        )


def _parse_json(raw: bytes, name: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise CheckpointError(f"{name}: header has {twice!r} twice: {_AGAIN}")
        return table

    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name}: header is not valid JSON ({error}): {_AGAIN}") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{name}: header is not a JSON object: {_AGAIN}")
    return entries


def _tensor(name: str, key: str, entry: Any, start: int, file: FileRef) -> TensorSpec:
    where = f"{name}: tensor {key}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"{where}: header lacks dtype, shape or data_offsets: {_AGAIN}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not dtype:
        raise CheckpointError(f"{where}: dtype {dtype!r} is not a name: {_AGAIN}")
    if not _are_sizes(shape):
        raise CheckpointError(f"{where}: shape {shape!r} is not a list of sizes: {_AGAIN}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: data_offsets {offsets!r} are no range: {_AGAIN}")
    begin, end = offsets
    _check_nbytes(where, dtype, shape, end - begin)
    return TensorSpec(key, dtype, tuple(shape), file, start + begin, end - begin)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_nbytes(where: str, dtype: str, shape: list[int], nbytes: int) -> None:
    """Dtypes that we cannot compare may have sizes below a byte: only alignment refuses them."""
    if dtype not in DTYPES:
        return
    promised = prod(shape) * DTYPES[dtype]
    if nbytes != promised:
        raise CheckpointError(
            f"{where}: {dtype} of shape {shape} takes {promised} bytes, "
            f"data_offsets give {nbytes}: {_AGAIN}"
        )


def _check_contiguous(name: str, tensors: list[TensorSpec], start: int) -> int:
    """The end of the last tensor, counted from the start of the file."""
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            what = "overlaps the tensor before it" if tensor.offset < end else "follows a hole"
            raise CheckpointError(
                f"{name}: tensor {tensor.name}: {what} (begins at byte {tensor.offset - start} "
                f"of the data, expected {end - start}): {_AGAIN}"
            )
        end += tensor.nbytes
    return end
