"""Sparse patches: the entries that tuning changed, as a file that makes the tuned model.

make_patch("base", "tuned", "patch.safetensors")
verify_patch("patch.safetensors", base="base")
apply_patch("base", "patch.safetensors", "tuned-again")   # the same bits, tensor by tensor
apply_to_model(model, "patch.safetensors")                # in place, in memory
"""

from rlsparse_ray.patches.apply import ApplyReport, apply_patch
from rlsparse_ray.patches.format import Patch, open_patch
from rlsparse_ray.patches.make import PatchReport, make_patch
from rlsparse_ray.patches.model import apply_to_model
from rlsparse_ray.patches.verify import Problem, VerifyReport, verify_patch

__all__ = [
    "ApplyReport",
    "Patch",
    "PatchReport",
    "Problem",
    "VerifyReport",
    "apply_patch",
    "apply_to_model",
    "make_patch",
    "open_patch",
    "verify_patch",
]
