"""The part of a parameter that this process holds: all of it, or its shard of a DTensor."""

import sys
from typing import TYPE_CHECKING, TypeGuard

import torch

from rlsparse_ray.errors import TrainingError
from rlsparse_ray.training.subnetwork import TensorMask

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Window = tuple[tuple[int, int], ...]
"""First and last + 1 along every axis of the whole tensor."""


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """The values that this process holds, not a copy, outside autograd."""
    tensor = tensor.detach()
    return tensor.to_local() if _is_dtensor(tensor) else tensor


def gradient_of(name: str, parameter: torch.Tensor) -> torch.Tensor:
    """The gradient of a parameter that has one, its values where the parameter's are.

    Of a replicated weight under a batch in shards every process has a summand: they are added up
    here, as torch's own optimizers do it. So all processes of its mesh have to call.

    Raises:
        TrainingError: it is sparse.
    """
    gradient = parameter.grad
    assert gradient is not None
    if gradient.layout != torch.strided:
        raise TrainingError(f"{name}: its gradient is sparse: make the layer sparse=False")
    if (
        _is_dtensor(gradient)
        and _is_dtensor(parameter)
        and gradient.placements != parameter.placements
    ):
        return gradient.redistribute(placements=parameter.placements)
    return gradient


def window_of(name: str, parameter: torch.Tensor) -> Window:
    """Where they lie in the whole tensor.

    Raises:
        TrainingError: they are not one contiguous block of its values.
    """
    start, shape = (0,) * parameter.dim(), tuple(parameter.shape)
    if _is_dtensor(parameter):
        start, shape = _block_of(name, parameter)
    if not local_of(parameter).is_contiguous():
        raise TrainingError(f"{name}: not contiguous: make it so with .contiguous() beforehand")
    return tuple((at, at + size) for at, size in zip(start, shape, strict=True))


def indices_of(mask: TensorMask, window: Window, device: torch.device) -> torch.Tensor:
    """Flat positions, in the local values, of the entries that are set: int32 where that fits."""
    flags = mask.flags()
    if any(found != (0, size) for found, size in zip(window, mask.shape, strict=True)):
        flags = flags[tuple(slice(*found) for found in window)]
    positions = torch.from_numpy(flags.reshape(-1).nonzero()[0])
    small = flags.size <= torch.iinfo(torch.int32).max
    return positions.to(torch.int32 if small else torch.int64).to(device)


def _is_dtensor(tensor: torch.Tensor) -> "TypeGuard[DTensor]":
    # where nobody has imported it there is none, and its import takes a second
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _block_of(name: str, parameter: "DTensor") -> tuple[tuple[int, ...], tuple[int, ...]]:
    from torch.distributed.tensor import Replicate, Shard  # noqa: PLC0415
    from torch.distributed.tensor._utils import (  # noqa: PLC0415
        compute_local_shape_and_global_offset,
    )

    # exact types: a strided shard is a subclass whose rows do not follow each other
    if any(type(placement) not in (Replicate, Shard) for placement in parameter.placements):
        raise TrainingError(
            f"{name}: placements {parameter.placements} are not understood: shard it with "
            f"fully_shard alone, or replicate it"
        )
    shape, start = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    return start, shape
