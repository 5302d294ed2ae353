"""The file format: a safetensors file whose metadata says which model becomes which.

For each tensor that changed it holds `{name}.indices` (int32, flat, C order, ascending; int64 where
a tensor has more than 2^31 elements) and `{name}.values` (the tuned model's own bits, in its stored
dtype). The metadata, which safetensors wants as strings:

- format, format_version, software;
- base, tuned: JSON {source, revision, xxh3}; `xxh3` is `model_xxh3`, and tells the weights wherever
  they are; of a folder on a disk only its name is kept, for its path says nothing elsewhere;
- tensors: JSON, by name {dtype, shape, base_xxh3, tuned_xxh3} of every tensor, changed or not, and
  of the changed {indices_xxh3, values_xxh3}. Each is XXH3-64 of a tensor's bytes, hex.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import xxhash
from pydantic import BaseModel, ConfigDict, Json, NonNegativeInt, ValidationError

from rlsparse_ray import __version__
from rlsparse_ray.errors import PatchError
from rlsparse_ray.patches.places import Source, locate_model
from rlsparse_ray.weights import Checkpoint, TensorSpec, read_header

FORMAT = "rlsparse.patch"
FORMAT_VERSION = "1"
INDICES, VALUES = ".indices", ".values"

AGAIN = "copy the file again, or make the patch again"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class ModelId(_Record):
    """Which model it is."""

    source: str
    """Address, or the name of a folder on some disk."""
    revision: str
    """Commit, or fingerprint of a bucket's files; empty for a folder."""
    xxh3: str
    """`model_xxh3`."""


class TensorRecord(_Record):
    """What the metadata says of a tensor."""

    dtype: str
    shape: tuple[NonNegativeInt, ...]
    base_xxh3: str
    tuned_xxh3: str
    indices_xxh3: str | None = None
    values_xxh3: str | None = None

    @property
    def numel(self) -> int:
        """Elements; 1 for a 0-d tensor."""
        return prod(self.shape)


class Manifest(_Record):
    """The metadata of a patch, less its format and version."""

    software: str
    base: Json[ModelId]
    tuned: Json[ModelId]
    tensors: Json[dict[str, TensorRecord]]


class Entries(NamedTuple):
    """The changed entries of a tensor, as ranges of the patch's file."""

    indices: TensorSpec
    values: TensorSpec

    @property
    def nbytes(self) -> int:
        """Of both."""
        return self.indices.nbytes + self.values.nbytes


@dataclass(frozen=True, slots=True)
class Patch:
    """An opened patch: what it says, and where its entries are. Holds none of them."""

    source: str
    nbytes: int
    """Of the file."""
    manifest: Manifest
    entries: Mapping[str, Entries]
    """By the tensor's name; those that changed alone, in the order of the file."""

    @property
    def tensors(self) -> Mapping[str, TensorRecord]:
        """Every tensor of the model, changed or not, by name."""
        return self.manifest.tensors


def index_dtype(numel: int) -> str:
    """The dtype of a tensor's indices.

    >>> index_dtype(2**31), index_dtype(2**31 + 1)
    ('I32', 'I64')
    """
    return "I32" if numel <= 2**31 else "I64"


def model_xxh3(tensors: Iterable[tuple[str, str, tuple[int, ...], str]]) -> str:
    """XXH3-64 of a line a tensor (name, dtype, shape, XXH3 of its bytes), sorted by name; hex.

    >>> model_xxh3([("w", "BF16", (2, 3), "2d06800538d394c2")])
    '32e484e95d2f16a8'
    """
    lines = (
        f"{name} {dtype} {'x'.join(map(str, shape))} {xxh3}\n"
        for name, dtype, shape, xxh3 in sorted(tensors)
    )
    return str(xxhash.xxh3_64_hexdigest("".join(lines).encode()))


def metadata_of(
    base: Checkpoint, tuned: Checkpoint, tensors: Mapping[str, TensorRecord]
) -> dict[str, str]:
    """The metadata of a patch from base to tuned, as safetensors keeps it."""
    records = {
        name: record.model_dump(exclude_none=True) for name, record in sorted(tensors.items())
    }
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "software": f"rlsparse_ray {__version__}",
        "base": _model_id(base, tensors, "base").model_dump_json(),
        "tuned": _model_id(tuned, tensors, "tuned").model_dump_json(),
        "tensors": json.dumps(records, separators=(",", ":")),
    }


def _model_id(model: Checkpoint, tensors: Mapping[str, TensorRecord], side: str) -> ModelId:
    xxh3 = _side_xxh3(tensors, side)
    if "://" in model.source:
        return ModelId(source=model.source, revision=model.revision, xxh3=xxh3)
    return ModelId(source=model.source.rpartition("/")[2], revision="", xxh3=xxh3)


def _side_xxh3(tensors: Mapping[str, TensorRecord], side: str) -> str:
    return model_xxh3(
        (name, record.dtype, record.shape, getattr(record, f"{side}_xxh3"))
        for name, record in tensors.items()
    )


def open_patch(source: Source) -> Patch:
    """Open a patch by path or address and check all that its header says; reads no entries.

    Raises:
        PatchError: it is no patch, of a newer format, or its header contradicts itself.
        CheckpointError: the file is not there, cut, or cannot be read.
    """
    located = locate_model(source, "patch")
    if located.only is None:
        raise PatchError(f"{source}: a folder: name the file of the patch in it")
    file = located.folder.files.get(located.only)
    if file is None:
        raise PatchError(f"{source}: no such file: check the address")
    header = read_header(lambda *span: located.folder.read(file, *span), file)
    manifest = _manifest(file.path, json.loads(header.raw).get("__metadata__"))
    stored = {spec.name: spec for spec in header.tensors}
    problem = next(_contradictions(manifest, stored), None)
    if problem:
        raise PatchError(f"{file.path}: {problem}: {AGAIN}")
    entries = {
        name: Entries(stored[name + INDICES], stored[name + VALUES])
        for name, record in manifest.tensors.items()
        if record.indices_xxh3 is not None
    }
    return Patch(file.path, file.size, manifest, entries)


def _manifest(path: str, metadata: Any) -> Manifest:
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise PatchError(
            f"{path}: a safetensors file, but no patch (its metadata has no format {FORMAT!r}): "
            "name what `rlsparse patch make` wrote"
        )
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise PatchError(
            f"{path}: format version {version} of patches (written by "
            f"{metadata.get('software')}), this software reads {FORMAT_VERSION}: update it"
        )
    try:
        return Manifest.model_validate(metadata)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise PatchError(f"{path}: metadata {place}: {first['msg']}: {AGAIN}") from error


def _contradictions(manifest: Manifest, stored: Mapping[str, TensorSpec]) -> Iterator[str]:
    """What of the metadata and the tensors of the file does not fit together."""
    expected = set()
    for name, record in manifest.tensors.items():
        if (record.indices_xxh3 is None) != (record.values_xxh3 is None):
            yield f"tensor {name}: its metadata has a hash of indices or of values, not of both"
        elif record.indices_xxh3 is not None:
            expected |= {name + INDICES, name + VALUES}
            yield from _wrong_entries(name, record, stored)
        elif record.base_xxh3 != record.tuned_xxh3:
            yield f"tensor {name}: changed by its hashes, but without entries"
    for name in sorted(stored.keys() - expected):
        yield f"tensor {name}: not in the metadata"
    for side, model in (("base", manifest.base), ("tuned", manifest.tuned)):
        if _side_xxh3(manifest.tensors, side) != model.xxh3:
            yield f"metadata: the hash of the {side} model is not that of its tensors"


def _wrong_entries(
    name: str, record: TensorRecord, stored: Mapping[str, TensorSpec]
) -> Iterator[str]:
    dtypes = {INDICES: index_dtype(record.numel), VALUES: record.dtype}
    for suffix, dtype in dtypes.items():
        found = stored.get(name + suffix)
        if found is None:
            yield f"tensor {name}{suffix}: missing"
        elif found.dtype != dtype or len(found.shape) != 1:
            yield (
                f"tensor {name}{suffix}: {found.dtype} of shape {list(found.shape)}, must be one "
                f"row of {dtype}"
            )
    sizes = {stored[name + s].numel for s in dtypes if name + s in stored}
    if len(sizes) > 1:
        yield f"tensor {name}: not as many values as indices"
    if sizes and not 0 < max(sizes) <= record.numel:
        yield f"tensor {name}: {max(sizes)} entries for a tensor of {record.numel} elements"
