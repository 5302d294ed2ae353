"""The optimizer of a run: all weights or a subnetwork's, with or without fp32 master values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from rlsparse_ray.experiments.precision import PRECISIONS
from rlsparse_ray.experiments.runs import CLIPPED_NORM, Run
from rlsparse_ray.training import Subnetwork, SubnetworkAdamW, SubnetworkSGD


def everything(model: Any) -> Subnetwork:
    """The subnetwork of all weights: dense training where only master values are wanted."""
    masks = {name: np.ones(p.shape, np.bool_) for name, p in model.named_parameters()}
    return Subnetwork.from_masks(masks, "all weights")


def make_optimizer(run: Run, model: Any, subnetwork: Subnetwork | None) -> torch.optim.Optimizer:
    """Build what `trl_trainers` has TRL build: AdamW or SGD without weight decay or momentum.

    Raises:
        TrainingError: the subnetwork does not fit the model.
    """
    masters = PRECISIONS[run.precision].masters
    rate = run.learning_rate
    if subnetwork is None and not masters:
        if run.optimizer == "sgd":
            return torch.optim.SGD(model.parameters(), lr=rate)
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    trained = everything(model) if subnetwork is None else subnetwork
    named = model.named_parameters()
    if run.optimizer == "sgd":
        return SubnetworkSGD(named, trained, lr=rate, master_weights=masters)
    return SubnetworkAdamW(named, trained, lr=rate, weight_decay=0.0, master_weights=masters)


def update(
    run: Run, weights: Iterable[torch.Tensor], optimizer: torch.optim.Optimizer, loss: torch.Tensor
) -> None:
    """Take one step down the gradient of a loss, its norm clipped if the run says so."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    if run.clipping:
        torch.nn.utils.clip_grad_norm_(weights, CLIPPED_NORM)
    optimizer.step()
