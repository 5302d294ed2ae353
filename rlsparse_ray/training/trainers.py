"""Training a subnetwork with a trainer of transformers or TRL.

    trainer = DPOTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer)
    train_subnetwork(trainer, sub)
    trainer.train()

One way for all of them: whatever a trainer of TRL does besides, its optimizer is made by
`Trainer.create_optimizer`, of the class in the trainer's `optimizer_cls_and_kwargs` if that is set.
Few constructors take that argument (of TRL 1.16's only those of SFT and Reward), and `optimizers=`,
which all take, wants groups and a learning rate that only the finished trainer has. So the
attribute is set on the trainer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from rlsparse_ray.errors import TrainingError
from rlsparse_ray.training.adamw import SubnetworkAdamW
from rlsparse_ray.training.optimizer import SubnetworkOptimizer
from rlsparse_ray.training.sgd import SubnetworkSGD
from rlsparse_ray.training.subnetwork import Subnetwork

if TYPE_CHECKING:
    from transformers import Trainer

_COUNTERPARTS: Mapping[type[torch.optim.Optimizer], type[SubnetworkOptimizer]] = {
    torch.optim.AdamW: SubnetworkAdamW,
    torch.optim.SGD: SubnetworkSGD,
}

Groups = Iterable[dict[str, Any]]
Choice = tuple[type[torch.optim.Optimizer], dict[str, Any]]
"""A class of optimizers and its arguments: transformers' `optimizer_cls_and_kwargs`."""


def train_subnetwork(
    trainer: Trainer,
    sub: Subnetwork,
    *,
    master_weights: bool = False,
    mask_gradients: bool = False,
) -> None:
    """Have a trainer train the weights of a subnetwork, and no other bit of its model.

    Call it once, after the trainer is made and before `trainer.train()`. The trainer keeps what it
    is set to: learning rate, schedule, betas, weight decay and its groups, clipping, accumulation,
    precision, checkpoints and resuming. Its `optim` says which optimizer: adamw_torch,
    adamw_torch_fused (the default) or sgd. The model may have moved or been wrapped since.

    Args:
        trainer: a transformers Trainer, or one of TRL's.
        sub: what to train; tensors of the model that it does not know are frozen as a whole.
        master_weights: as SubnetworkAdamW takes it: for models in 16 bits.
        mask_gradients: as SubnetworkAdamW takes it: clip by the norm of the subnetwork alone.

    Raises:
        TrainingError: the trainer has an optimizer already, or is set to one without a form for
            subnetworks; its model has PEFT adapters; it trains with DeepSpeed or FSDP 1, or saves
            the optimizer under FSDP 2. From `trainer.train()`: the subnetwork does not fit the
            model, or the trainer makes its optimizer in a way of its own.
    """
    from transformers import TrainerCallback  # noqa: PLC0415 - takes seconds to import

    _refuse_what_cannot_work(trainer)
    options = {"master_weights": master_weights, "mask_gradients": mask_gradients}
    trainer.optimizer_cls_and_kwargs = (_optimizer_class(trainer, sub, options), {})

    class UsesItsOptimizer(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            _check_in_use(parts["optimizer"], parts["model"])

    trainer.add_callback(UsesItsOptimizer())


def _refuse_what_cannot_work(trainer: Trainer) -> None:
    name = type(trainer).__name__
    if trainer.optimizer is not None:
        raise TrainingError(
            f"{name}: it has an optimizer already: call train_subnetwork on a new trainer, made "
            "without optimizers=, before it trains"
        )
    if hasattr(trainer.model, "peft_config"):
        raise TrainingError(
            f"{name}: its model has PEFT adapters, which change every weight of a matrix at once: "
            "train the model itself, without peft_config (merge_and_unload() an adapter first)"
        )
    if trainer.is_deepspeed_enabled:
        raise TrainingError(
            f"{name}: DeepSpeed flattens the tensors that masks are of, and makes its own "
            "optimizer: use DDP or FSDP 2"
        )
    if trainer.is_fsdp_enabled:
        _refuse_fsdp(trainer)


def _refuse_fsdp(trainer: Trainer) -> None:
    name = type(trainer).__name__
    if trainer.accelerator.state.fsdp_plugin.fsdp_version == 1:
        raise TrainingError(
            f"{name}: FSDP 1 flattens the tensors that masks are of: set "
            "fsdp_config={'version': 2}"
        )
    # accelerate writes what torch.distributed.checkpoint gathers: it takes vectors of equal name
    # for copies of one, and keeps that of one process
    if trainer.args.save_strategy != "no" and not trainer.args.save_only_model:
        raise TrainingError(
            f"{name}: under FSDP 2 its checkpoints would lose optimizer state: set "
            "save_only_model=True or save_strategy='no'"
        )


def _optimizer_class(trainer: Trainer, sub: Subnetwork, options: Mapping[str, bool]) -> type[Any]:
    """Make the class that the trainer calls with its groups of parameters."""
    given = trainer.optimizer_cls_and_kwargs
    base, _ = _counterpart(trainer, given)

    class OptimizerOfTrainer(base):  # type: ignore[misc,valid-type]
        def __init__(self, groups: Groups) -> None:
            # read again: a search over learning rates sets another one for every trial
            _, settings = _counterpart(trainer, given)
            super().__init__(_with_names(groups, trainer.model), sub, **settings, **options)

    return OptimizerOfTrainer


def _counterpart(
    trainer: Trainer, given: Choice | None
) -> tuple[type[SubnetworkOptimizer], dict[str, Any]]:
    """Find what makes the trainer's own update on some of the weights, and its arguments."""
    chosen, settings = given or trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    if chosen not in _COUNTERPARTS:
        raise TrainingError(
            f"{type(trainer).__name__}: there is no {getattr(chosen, '__name__', chosen)} for "
            "subnetworks: set optim='adamw_torch' or optim='sgd', and call train_subnetwork once"
        )
    return _COUNTERPARTS[chosen], settings


def _with_names(groups: Groups, model: torch.nn.Module) -> list[dict[str, Any]]:
    """Name parameters: a tied one by all its names; what the trainer leaves out is added.

    A trainer leaves out what requires no gradient. The subnetwork may know such a tensor as one
    without a set weight, and names are only told apart among all names of the model.
    """
    names: dict[torch.Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    named = [
        {**group, "params": [(name, p) for p in group["params"] for name in names.pop(p)]}
        for group in groups
    ]
    return [*named, {"params": [(name, p) for p, known in names.items() for name in known]}]


def _check_in_use(optimizer: Any, model: torch.nn.Module) -> None:
    """Raise unless the run steps an optimizer of a subnetwork, on the parameters of this model."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    if not isinstance(inner, SubnetworkOptimizer):
        raise TrainingError(
            f"this run would step a {type(inner).__name__}, and train every weight: its trainer "
            "does not make what optimizer_cls_and_kwargs says; give it a SubnetworkAdamW as "
            "optimizers=(optimizer, None)"
        )
    parameters = set(model.parameters())
    if not parameters.issuperset(p for group in inner.param_groups for p in group["params"]):
        raise TrainingError(
            "this run would train nothing: the parameters of its model were replaced after its "
            "optimizer was made"
        )
