"""Trainers on two processes, their models wrapped: torchrun -m tests.training.wrapped BASE OUT

By DDP and by FSDP 2 in turn; fails where a frozen weight changed or no weight was trained.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from rlsparse_ray.training import Subnetwork, train_subnetwork
from tests.training import tiny
from tests.training.weights import assert_only_masked_changed, masks_of


def shard_on_cpus() -> None:
    """Have accelerate shard, which it refuses to on CPUs: FSDP 2 itself runs there."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    make = Accelerator.__init__

    def make_sharding(self: Accelerator, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        self.state.distributed_type = DistributedType.FSDP
        self.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        )

    Accelerator.__init__ = make_sharding


def whole(parameter: torch.Tensor) -> torch.Tensor:
    full = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
    return full.detach().clone()


def train_wrapped(base: Path, out: Path) -> None:
    trainer = tiny.make_trainer("Trainer", base, out)
    masks = masks_of(trainer.model)
    before = {name: whole(p) for name, p in trainer.model.named_parameters()}
    train_subnetwork(trainer, Subnetwork.from_masks(masks))
    trainer.train()
    # in one piece: print() writes the newline by itself, and the other process comes between
    sys.stdout.write(f"wrapped as {type(trainer.model_wrapped).__name__}\n")
    sys.stdout.flush()
    after = {name: whole(p) for name, p in trainer.model.named_parameters()}
    assert_only_masked_changed(before, after, masks)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tiny.quiet()
    places = [Path(argument) for argument in sys.argv[1:]]
    train_wrapped(*places)
    shard_on_cpus()
    train_wrapped(*places)
