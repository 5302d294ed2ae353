"""Small models and masks for the optimizers."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rlsparse_ray.training import Subnetwork

Masks = dict[str, Tensor]


def small_net(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    """Tensors of odd sizes; the first is longer than a few vectors, the last ones very short."""
    torch.manual_seed(seed)
    layers = [nn.Linear(33, 70), nn.GELU(), nn.LayerNorm(70), nn.Linear(70, 5)]
    return nn.Sequential(*layers).to(dtype)


def masks_of(net: nn.Module, density: float = 0.3, without: tuple[str, ...] = ("2.bias",)) -> Masks:
    """Random masks of all tensors but those `without`; the first LayerNorm's is empty."""
    random = torch.Generator().manual_seed(7)
    found = {
        name: torch.rand(p.shape, generator=random) < density
        for name, p in net.named_parameters()
        if name not in without
    }
    return {name: mask & (name != "2.weight") for name, mask in found.items()}


def mask_in(masks: Masks, name: str, parameter: Tensor) -> Tensor:
    """The mask of a tensor; nothing of one that has none."""
    return masks.get(name, torch.zeros(parameter.shape, dtype=torch.bool))


def gradients(net: nn.Module, step: int) -> None:
    """Backward of one batch, which `step` alone determines; added to what is there."""
    dtype = next(net.parameters()).dtype
    x = torch.randn(16, 33, generator=torch.Generator().manual_seed(step)).to(dtype)
    (net(x) - step % 3).square().mean().backward()


def train(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: range,
    before_step: Callable[[], Any] = lambda: None,
) -> None:
    """An ordinary loop."""
    for step in steps:
        optimizer.zero_grad()
        gradients(net, step)
        before_step()
        optimizer.step()


def bits_of(parameter: Tensor) -> Tensor:
    """The bytes of a tensor: these tell -0 from 0."""
    return parameter.detach().contiguous().view(torch.uint8)


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same bytes."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(bits_of(a), bits_of(b)) for a, b in pairs)


def assert_frozen(net: nn.Module, start: nn.Module, masks: Masks) -> None:
    """Everything outside the masks has its first bits, and most of what is inside has moved."""
    for (name, now), before in zip(net.named_parameters(), start.parameters(), strict=True):
        inside = mask_in(masks, name, now)
        assert torch.equal(bits_of(now[~inside]), bits_of(before[~inside])), name
        if inside.any():
            assert (now[inside] != before[inside]).float().mean() > 0.8, name


def twins(dtype: torch.dtype = torch.float32, **kwargs: Any) -> tuple[nn.Module, nn.Module, Masks]:
    """A model, a copy of it, and masks."""
    net = small_net(dtype)
    return net, copy.deepcopy(net), masks_of(net, **kwargs)


def subnetwork_of(net: nn.Module, **kwargs: Any) -> Subnetwork:
    """The subnetwork of `masks_of`."""
    return Subnetwork.from_masks(masks_of(net, **kwargs))
