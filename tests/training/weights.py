"""Masks of a model, and what changed in it."""

from __future__ import annotations

import torch

from rlsparse_ray.training import Subnetwork

DENSITY = 0.2

Weights = dict[str, torch.Tensor]


def masks_of(model: torch.nn.Module) -> Weights:
    """A fifth of each tensor at random; the norms are not in it, and one tensor has no bit."""
    rng = torch.Generator().manual_seed(0)
    masks = {
        name: torch.rand(p.shape, generator=rng) < DENSITY
        for name, p in model.named_parameters()
        if "norm" not in name
    }
    masks["model.layers.1.self_attn.o_proj.weight"].zero_()
    return masks


def everything(model: torch.nn.Module) -> Subnetwork:
    return Subnetwork.from_masks(
        {name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters()}
    )


def weights_of(model: torch.nn.Module) -> Weights:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def unequal(one: Weights, other: Weights) -> dict[str, int]:
    """Weights whose bits differ, by tensor; only tensors that have some."""
    assert one.keys() == other.keys()
    found = {name: int((bits(one[name]) != bits(other[name])).sum()) for name in one}
    return {name: count for name, count in found.items() if count}


def assert_only_masked_changed(before: Weights, after: Weights, masks: Weights) -> None:
    for name, old in before.items():
        changed = bits(old) != bits(after[name])
        mask = masks.get(name, torch.zeros(old.shape, dtype=torch.bool))
        assert not (changed & ~mask).any(), f"{name}: frozen weights changed"
        assert changed.any() or not mask.any(), f"{name}: no weight was trained"
