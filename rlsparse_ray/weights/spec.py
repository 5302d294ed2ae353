"""What a checkpoint consists of: tensors, and the bytes of files in which they lie."""

from collections import Counter
from collections.abc import Mapping
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
    size: int
    """Bytes."""
    stamp: str
    """What changes when the file does: for a local file its mtime in nanoseconds."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A stored tensor and where its bytes are."""

    name: str
    dtype: str
    """As in the safetensors header; not necessarily one of `DTYPES`."""
    shape: tuple[int, ...]
    file: FileRef
    offset: int
    """First byte, from the start of the file."""
    nbytes: int

    @property
    def numel(self) -> int:
        """Elements; 1 for a 0-d tensor.

        >>> TensorSpec("w", "BF16", (2, 3), FileRef("a", 20, ""), 8, 12).numel
        6
        """
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model at one revision: its tensors, sorted by (file path, offset). Holds no weights."""

    source: str
    revision: str
    """Commit sha, or a fingerprint of a local folder."""
    tensors: tuple[TensorSpec, ...]
    tied_embeddings: bool | None
    """`tie_word_embeddings` of config.json; None if it does not say."""

    @property
    def identity(self) -> str:
        """What the pair id rests on: a local folder keeps it when it is renamed.

        >>> Checkpoint("/models/base", "0a1b", (), None).identity
        'local@0a1b'
        """
        scheme, found, _ = self.source.partition("://")
        return f"{scheme if found else 'local'}@{self.revision}"

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
