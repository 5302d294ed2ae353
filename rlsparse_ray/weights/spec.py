"""What a checkpoint consists of: tensors, and the bytes of files in which they lie."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

DTYPES: Mapping[str, int] = MappingProxyType(
    {
        "BF16": 2,
        "F16": 2,
        "F32": 4,
        "F64": 8,
        "F8_E4M3": 1,
        "F8_E5M2": 1,
        "I8": 1,
        "U8": 1,
        "BOOL": 1,
        "I16": 2,
        "U16": 2,
        "I32": 4,
        "U32": 4,
        "I64": 8,
        "U64": 8,
    }
)
"""Bytes an element of each dtype that can be compared."""

FLOAT_DTYPES: tuple[str, ...] = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""The floating dtypes from wide to narrow: of two, the later one is the common dtype."""


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file as it was when its header was read."""

    path: str
    """A local path, or an address: s3://bucket/key, hf://org/repo@sha/name."""
    size: int
    """Bytes."""
    stamp: str
    """What changes when the file does: mtime in nanoseconds of a local file, else the ETag."""
    content: str = ""
    """Hash of the whole content where the place knows one (sha256 of a hub's LFS file)."""

    @property
    def scheme(self) -> str:
        """What kind of place it is in; empty for a local path.

        >>> FileRef("s3://models/a/model.safetensors", 8, "etag").scheme
        's3'
        """
        scheme, found, _ = self.path.partition("://")
        return scheme if found else ""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor and where its bytes are: one range of a file, or inputs that it is made from."""

    name: str
    dtype: str
    """As in the safetensors header; not necessarily one of `DTYPES`."""
    shape: tuple[int, ...]
    file: FileRef
    offset: int
    """First byte, from the start of the file; of the first input if it has inputs."""
    nbytes: int
    """Bytes that are read for it: of all inputs if it has some."""
    encoding: str = ""
    """How its values are made from its inputs; empty: they are stored as they are."""
    inputs: tuple["TensorSpec", ...] = ()
    """Stored tensors that it is made from; empty: the range itself holds its values."""

    @property
    def numel(self) -> int:
        """Elements; 1 for a 0-d tensor.

        >>> TensorSpec("w", "BF16", (2, 3), FileRef("a", 20, ""), 8, 12).numel
        6
        """
        return prod(self.shape)

    @property
    def stored_name(self) -> str:
        """The tensor of the file in which it begins: another for a part, or if it is made.

        >>> TensorSpec("qkv[0:2]", "BF16", (2, 3), FileRef("a", 20, ""), 8, 12).stored_name
        'qkv'
        """
        if self.inputs:
            return self.inputs[0].name
        return self.name.rpartition("[")[0] if self.name.endswith("]") else self.name

    @property
    def content(self) -> tuple[object, ...]:
        """Equal for two tensors only if their values are made of the same bytes in the same way."""
        place = (self.file.content or self.file, self.offset, self.nbytes)
        made_of = tuple(spec.content for spec in self.inputs) or place
        return (self.dtype, self.shape, self.encoding, made_of)


def distinct_nbytes(specs: Iterable[TensorSpec]) -> int:
    """Bytes that are read for tensors: what several of them need counts once."""
    stored = (leaf for spec in specs for leaf in (spec.inputs or (spec,)))
    return sum({leaf.content: leaf.nbytes for leaf in stored}.values())


@dataclass(frozen=True, slots=True)
class Adapter:
    """What the config of a LoRA adapter says; its tensors are only A and B, and full modules."""

    config: str
    """adapter_config.json as it was found (text), so that the dataclass stays hashable."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model at one revision: its tensors, sorted by (file path, offset). Holds no weights."""

    source: str
    revision: str
    """Commit sha, or a fingerprint of a local folder."""
    tensors: tuple[TensorSpec, ...]
    tied_embeddings: bool | None
    """Whether the head is the embedding; None if config.json does not tell."""
    subfolder: str = ""
    """Folder of the model within the revision, where one repository holds several."""
    adapter: Adapter | None = None
    """Set if these are adapters, to be applied to the base of the pair."""

    @property
    def identity(self) -> str:
        """What the pair id rests on: a local folder keeps it when it is renamed.

        >>> Checkpoint("/models/base", "0a1b", (), None).identity
        'local@0a1b'
        """
        scheme, found, _ = self.source.partition("://")
        place = f"{scheme if found else 'local'}@{self.revision}"
        return f"{place}/{self.subfolder}" if self.subfolder else place

    @property
    def dtype(self) -> str:
        """The dtype in which most parameters are stored."""
        numel: Counter[str] = Counter()
        for tensor in self.tensors:
            numel[tensor.dtype] += tensor.numel
        return max(numel, key=lambda dtype: (numel[dtype], dtype), default="")

    @property
    def by_name(self) -> dict[str, TensorSpec]:
        """The tensors under their stored names; made anew at each use."""
        return {tensor.name: tensor for tensor in self.tensors}
