"""AdamW over the entries of a subnetwork."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from rlsparse_ray.training.optimizer import Parameters, State, SubnetworkOptimizer
from rlsparse_ray.training.subnetwork import Subnetwork


class SubnetworkAdamW(SubnetworkOptimizer):
    """`torch.optim.AdamW` on the weights of a subnetwork, and on no other.

    optimizer = SubnetworkAdamW(model.named_parameters(), sub, lr=1e-5, weight_decay=0.1)

    The update is torch's own: with the same gradients, every entry has the bits that
    torch.optim.AdamW(foreach=False) would give it (in pure bf16 all but a few: where torch's vector
    loops end, torch itself rounds in another way). The state takes two values an entry in the dtype
    of its weights, as torch's does: 8 bytes in fp32, 4 in bf16; and 4 bytes for its place.

    Args:
        params: (name, parameter) of the whole model, or groups of such with settings of their own.
        subnetwork: what to train.
        lr: learning rate.
        betas: decay of both moments.
        eps: added to the denominator.
        weight_decay: decoupled, as in AdamW.
        maximize: go up the gradient.
        fused: torch's fused kernel: faster, and equal up to the last bit.
        master_weights: keep fp32 values of entries stored in 16 bits, and state in fp32: the update
            is that of fp32 weights, and what is stored is rounded from them. Without it an update
            of less than half a bf16 step is lost.
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
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        maximize: bool = False,
        fused: bool = False,
        master_weights: bool = False,
        mask_gradients: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "fused": fused,
        }
        # torch's own checks of these values
        torch.optim.AdamW([torch.empty(0)], **defaults)  # type: ignore[arg-type]
        super().__init__(
            params,
            subnetwork,
            defaults,
            master_weights=master_weights,
            mask_gradients=mask_gradients,
        )

    def _begin(self, group: dict[str, Any], values: Tensor) -> State:
        # torch keeps the count on the CPU unless the kernel that reads it is fused
        device = values.device if group["fused"] else torch.device("cpu")
        return {
            "step": torch.zeros((), dtype=torch.float32, device=device),
            "exp_avg": torch.zeros_like(values),
            "exp_avg_sq": torch.zeros_like(values),
        }

    def _update(self, group: dict[str, Any], values: Tensor, grads: Tensor, state: State) -> None:
        beta1, beta2 = group["betas"]
        adamw(
            [values],
            [grads],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            foreach=False,
            fused=group["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )
