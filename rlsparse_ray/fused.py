"""Tensors that one library stores fused and another split: cut where the other side has the parts.

A cut is a range of bytes: rows of a tensor in C order are contiguous. Fused tensors whose parts
alternate (query_key_value of GPT-NeoX and Falcon, by head; gate_up_proj of gpt-oss, by column) are
never cut, because their shapes do not tell them from plain concatenations.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod

from rlsparse_ray.weights.spec import DTYPES, TensorSpec

Tensors = dict[str, TensorSpec]

_QKV = (("q_proj", "k_proj", "v_proj"),)
_GATE_UP = (("gate_proj", "up_proj"), ("w1", "w3"))
_FUSED: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "qkv_proj": _QKV,
    "W_pack": _QKV,
    "gate_up_proj": _GATE_UP,
}
"""By the module's own name: what its parts may be called, in the order of their rows."""

_STACKED: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "gate_up_proj": _GATE_UP,
    "gate_proj": (("gate_proj",), ("w1",)),
    "up_proj": (("up_proj",), ("w3",)),
    "down_proj": (("down_proj",), ("w2",)),
}
"""The same for modules of `experts` that hold all experts: [experts, rows, columns]."""


def split_fused(one: Tensors, other: Tensors) -> tuple[Tensors, Tensors]:
    """Both sides by canonical names, fused tensors cut as the other side has them split.

    A tensor that does not fit stays as it is: nothing is left out.
    """
    return _split(one, other), _split(other, one)


def _split(fused: Tensors, split: Tensors) -> Tensors:
    found: Tensors = {}
    for name, tensor in fused.items():
        parts = _parts(name, tensor, fused, split) if name not in split else {}
        found |= parts or {name: tensor}
    return found


def _parts(name: str, tensor: TensorSpec, fused: Tensors, split: Tensors) -> Tensors:
    if tensor.inputs or tensor.dtype not in DTYPES:
        return {}
    for names in part_names(name, tensor.shape):
        if all(part in split and part not in fused for part in names):
            parts = _cut(tensor, names, split)
            if parts:
                return parts
    return {}


def part_names(name: str, shape: tuple[int, ...]) -> Iterator[list[str]]:
    """The names that the parts of a tensor may have, in the order of their bytes."""
    place, _, leaf = name.rpartition(".")
    if leaf not in ("weight", "bias"):
        place, leaf = name, "weight"
    parent, _, module = place.rpartition(".")
    if parent.endswith("experts") and len(shape) == 3:
        for modules in _STACKED.get(module, ()):
            yield [f"{parent}.{e}.{m}.{leaf}" for e in range(shape[0]) for m in modules]
    elif name.endswith((".weight", ".bias")):
        for modules in _FUSED.get(module, ()):
            yield [".".join(filter(None, (parent, m, leaf))) for m in modules]


def add_up(shape: tuple[int, ...], parts: Sequence[tuple[int, ...]]) -> bool:
    """Whether parts of these shapes, one after another, are a tensor of this one."""
    stacked = len(shape) == 3
    rest = shape[2:] if stacked else shape[1:]
    if any(part[1:] != rest or not part for part in parts):
        return False
    per_expert = len(parts) // shape[0] if stacked else len(parts)
    groups = [parts[at : at + per_expert] for at in range(0, len(parts), per_expert)]
    return all(sum(part[0] for part in group) == shape[int(stacked)] for group in groups)


def _cut(tensor: TensorSpec, names: list[str], split: Tensors) -> Tensors:
    """Consecutive parts with the shapes of the split side; none if they do not add up."""
    shapes = [split[name].shape for name in names]
    if not add_up(tensor.shape, shapes):
        return {}
    stacked = len(tensor.shape) == 3
    height = tensor.shape[int(stacked)]
    parts: Tensors = {}
    row = 0
    for name, shape in zip(names, shapes, strict=True):
        label = f"{row // height}," * stacked + f"{row % height}:{row % height + shape[0]}"
        width = DTYPES[tensor.dtype] * prod(tensor.shape[1 + stacked :])
        parts[name] = replace(
            tensor,
            name=f"{tensor.name}[{label}]",
            shape=shape,
            offset=tensor.offset + row * width,
            nbytes=shape[0] * width,
        )
        row += shape[0]
    return parts
