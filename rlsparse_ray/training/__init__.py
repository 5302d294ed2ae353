"""Training only a subnetwork: the weights that a mask sets, and no other bit of the model.

    sub = load_subnetwork("./store", "grpo-seed0")
    optimizer = SubnetworkAdamW(model.named_parameters(), sub, lr=1e-5)

The rest of the loop stays as it is.
"""

from rlsparse_ray.training.adamw import SubnetworkAdamW
from rlsparse_ray.training.optimizer import StateBytes, SubnetworkOptimizer
from rlsparse_ray.training.sgd import SubnetworkSGD
from rlsparse_ray.training.stored import load_subnetwork
from rlsparse_ray.training.subnetwork import Subnetwork, TensorMask
from rlsparse_ray.training.trainers import train_subnetwork

__all__ = [
    "StateBytes",
    "Subnetwork",
    "SubnetworkAdamW",
    "SubnetworkOptimizer",
    "SubnetworkSGD",
    "TensorMask",
    "load_subnetwork",
    "train_subnetwork",
]
