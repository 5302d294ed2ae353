"""SGD over the entries of a subnetwork."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from rlsparse_ray.errors import TrainingError
from rlsparse_ray.training.optimizer import Parameters, State, SubnetworkOptimizer
from rlsparse_ray.training.subnetwork import Subnetwork


class SubnetworkSGD(SubnetworkOptimizer):
    """`torch.optim.SGD` on the weights of a subnetwork, and on no other.

    optimizer = SubnetworkSGD(model.named_parameters(), sub, lr=0.1, momentum=0.9)

    The update is torch's own: with the same gradients, every entry has the bits that
    torch.optim.SGD(foreach=False) would give it (in pure bf16 all but a few; see SubnetworkAdamW).
    With momentum the state takes one value an entry
    in the dtype of its weights, else none; and 4 bytes for its place.

    Args:
        params: (name, parameter) of the whole model, or groups of such with settings of their own.
        subnetwork: what to train.
        lr: learning rate.
        momentum: share of the last update that is kept.
        dampening: of the gradient in the momentum.
        weight_decay: coefficient of the L2 penalty.
        nesterov: Nesterov's momentum.
        maximize: go up the gradient.
        master_weights: keep fp32 values of entries stored in 16 bits; see SubnetworkAdamW.
        mask_gradients: see SubnetworkOptimizer.

    Raises:
        TrainingError: the subnetwork does not fit the parameters, one of its tensors requires no
            gradient, or the parameters have no names.
    """

    def __init__(
        self,
        params: Parameters,
        subnetwork: Subnetwork,
        lr: float = 1e-3,
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        master_weights: bool = False,
        mask_gradients: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        # torch's own checks of these values
        torch.optim.SGD([torch.empty(0)], **defaults)  # type: ignore[arg-type]
        super().__init__(
            params,
            subnetwork,
            defaults,
            master_weights=master_weights,
            mask_gradients=mask_gradients,
        )

    def _begin(self, group: dict[str, Any], values: Tensor) -> State:
        state = {"step": torch.zeros(())}
        return state | {"momentum_buffer": torch.zeros_like(values)} if group["momentum"] else state

    def _update(self, group: dict[str, Any], values: Tensor, grads: Tensor, state: State) -> None:
        kept = state.get("momentum_buffer")
        if group["momentum"] and kept is None:
            raise TrainingError("momentum was 0 at the first step: set it before, or keep it at 0")
        # the first gradient is not dampened: torch takes it as it is where there is no buffer
        buffers = [kept if state["step"] else None]
        sgd(
            [values],
            [grads],
            buffers,
            foreach=False,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
        if kept is not None and buffers[0] is not None and not state["step"]:
            kept.copy_(buffers[0])
        state["step"] += 1
