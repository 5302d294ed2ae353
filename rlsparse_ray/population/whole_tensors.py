"""Whole tensors of models, read again and checked against the hashes that a store keeps."""

from dataclasses import dataclass

import numpy as np
import torch
import xxhash

from rlsparse_ray.compare import FORMATS, cast_bits
from rlsparse_ray.compare.dequant import as_float32
from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.values import Raw, values_of
from rlsparse_ray.weights import DTYPES, Reader, TensorSpec

_TORCH = {
    "BF16": (np.int16, torch.bfloat16),
    "F16": (np.float16, torch.float16),
    "F32": (np.float32, torch.float32),
    "F64": (np.float64, torch.float64),
}
"""Of the comparison dtypes that torch computes with: how the bits are handed over, and as what."""


@dataclass(frozen=True, slots=True)
class Side:
    """A tensor of one model, and the XXH3-64 that `tensors` has of its bytes (hex)."""

    spec: TensorSpec
    xxh3: str
    source: str
    """The model, for messages."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory while it is read: what is read, and what is made of it."""
        made = values_of(self.spec).working if self.spec.inputs else 0
        return self.spec.nbytes + made + self.spec.numel * DTYPES[self.spec.dtype]


def read_values(side: Side, reader: Reader, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The values that were compared, as numbers.

    Args:
        side: where they are.
        reader: an open reader.
        dtype: the comparison dtype, to which they are rounded as they were then.
        shape: the compared shape: the first rows where the tensor has more.

    Returns:
        A tensor of `shape` in the comparison dtype; float32, which holds it exactly, for F8.

    Raises:
        CheckpointError: they cannot be read, or are not those that were compared.
    """
    raw = _read(side.spec, reader)
    found = xxhash.xxh3_64_hexdigest(raw.data)
    if found != side.xxh3:
        raise CheckpointError(
            f"tensor {side.spec.name}: the bytes in {side.source} have XXH3 {found}, `tensors` "
            f"says {side.xxh3}: the model was changed in place: put the old one back, or extract "
            f"again"
        )
    numel = int(np.prod(shape, dtype=np.int64))
    bits = cast_bits(raw[: numel * DTYPES[side.spec.dtype]], side.spec.dtype, FORMATS[dtype])
    if dtype not in _TORCH:
        return torch.from_numpy(as_float32(bits.view(np.uint8), dtype)).view(shape)
    numpy, kind = _TORCH[dtype]
    return torch.from_numpy(bits.view(numpy)).view(kind).view(shape)


def _read(spec: TensorSpec, reader: Reader) -> Raw:
    """All bytes of the values of a tensor, made from its inputs if it has some."""
    values = values_of(spec)
    operands = [_read(operand, reader) for operand in values.operands]
    requests = iter(values.requests(0, spec.numel))

    def take() -> Raw:
        request = next(requests)
        buffer = np.empty(request.nbytes, np.uint8)
        reader.read_into(request.file, request.offset, buffer.data)
        return buffer

    return values.take(0, spec.numel, take, operands)
