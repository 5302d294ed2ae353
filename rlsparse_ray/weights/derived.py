"""Finds quantised tensors and says what they are made from; the values are made when they are read.

fp8 codes with scales become BF16 as DeepSeek's own conversion and transformers make it, MXFP4
blocks become BF16 in the layout in which transformers keep them.
"""

from collections.abc import Mapping
from dataclasses import replace

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.spec import Checkpoint, TensorSpec

_FP8 = ("F8_E4M3", "F8_E5M2")
_FP8_SCALES = ("_scale_inv", "_scale")
_SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0")
_BLOCKS, _MXFP4_SCALES = "_blocks", "_scales"

_USUAL_BLOCKS = (128, 64, 256, 32, 512)
"""Block sizes in the order in which they are tried: the count of scales does not tell 128 from
100 where the last block is short, and every published fp8 model but toys has 128."""


def derive(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with quantised tensors in place of their codes and scales.

    Raises:
        CheckpointError: scales that do not fit their codes.
    """
    stored = checkpoint.by_name
    found: dict[str, TensorSpec] = {}
    for tensor in checkpoint.tensors:
        made = _fp8(tensor, stored) or _mxfp4(tensor, stored)
        if made is not None:
            found[tensor.name] = made
    used = {spec.name for made in found.values() for spec in made.inputs}
    tensors = (
        found.get(tensor.name, tensor)
        for tensor in checkpoint.tensors
        if tensor.name in found or tensor.name not in used
    )
    return replace(checkpoint, tensors=tuple(tensors))


def _fp8(codes: TensorSpec, stored: Mapping[str, TensorSpec]) -> TensorSpec | None:
    if codes.dtype not in _FP8:
        return None
    names = (codes.name + suffix for suffix in _FP8_SCALES)
    scales = next((stored[name] for name in names if name in stored), None)
    if scales is None:
        return None
    block = _block(codes, scales)
    if block is None or scales.dtype not in _SCALE_DTYPES:
        raise CheckpointError(
            f"{scales.file.path}: tensor {scales.name}: {scales.dtype} of shape "
            f"{list(scales.shape)} does not scale {codes.name} {list(codes.shape)} by blocks, "
            "rows or as a whole: dequantise the model to bf16"
        )
    inputs = (codes, scales)
    return _made(codes, "fp8 blocks {}x{}".format(*block), codes.shape, inputs)


def _block(codes: TensorSpec, scales: TensorSpec) -> tuple[int, int] | None:
    """Rows and columns that share a scale; None where the shapes do not fit."""
    if len(codes.shape) != 2 or codes.numel == 0:
        return None
    rows, columns = codes.shape
    if scales.numel == 1:
        return rows, columns
    if scales.shape in ((rows,), (rows, 1)):
        return 1, columns
    if len(scales.shape) != 2:
        return None
    found = [_size(n, count) for n, count in zip(codes.shape, scales.shape, strict=True)]
    return (found[0], found[1]) if all(found) else None


def _size(numel: int, count: int) -> int:
    """The block size that cuts `numel` in `count` blocks; 0 if there is none."""
    sizes = (*_USUAL_BLOCKS, numel // max(1, count))
    return next((size for size in sizes if size and -(-numel // size) == count), 0)


def _mxfp4(blocks: TensorSpec, stored: Mapping[str, TensorSpec]) -> TensorSpec | None:
    if not blocks.name.endswith(_BLOCKS) or blocks.dtype != "U8":
        return None
    name = blocks.name.removesuffix(_BLOCKS)
    scales = stored.get(name + _MXFP4_SCALES)
    if scales is None:
        return None
    shape = blocks.shape
    if len(shape) != 4 or shape[3] != 16 or scales.shape != shape[:3] or scales.dtype != "U8":
        raise CheckpointError(
            f"{scales.file.path}: tensor {scales.name}: {scales.dtype} of shape "
            f"{list(scales.shape)} does not scale the MXFP4 blocks {blocks.name} {list(shape)}: "
            "dequantise the model to bf16"
        )
    result = (shape[0], shape[2] * 32, shape[1])
    return _made(replace(blocks, name=name), "mxfp4", result, (blocks, scales))


def _made(
    like: TensorSpec, encoding: str, shape: tuple[int, ...], inputs: tuple[TensorSpec, ...]
) -> TensorSpec:
    nbytes = sum(spec.nbytes for spec in inputs)
    return replace(like, dtype="BF16", shape=shape, nbytes=nbytes, encoding=encoding, inputs=inputs)
