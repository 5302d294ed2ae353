"""Do two models have the same tensors?"""

from collections.abc import Iterator, Mapping

from rlsparse_ray.errors import PatchError
from rlsparse_ray.patches.format import Patch, TensorRecord
from rlsparse_ray.patches.windows import width_of
from rlsparse_ray.weights import Checkpoint, TensorSpec

_MOST = 20
"""Differences listed in a message."""


def match_tensors(base: Checkpoint, tuned: Checkpoint) -> tuple[tuple[TensorSpec, TensorSpec], ...]:
    """The tensors of both, in the order of the base's files.

    Raises:
        PatchError: a tensor that one alone has, or of another shape or dtype; all are listed.
    """
    for side, model in (("base", base), ("tuned", tuned)):
        if model.adapter is not None:
            raise PatchError(
                f"{side} {model.source}: a LoRA adapter: ship it as it is, or merge it into its "
                "base first (peft: merge_and_unload(), then save_pretrained())"
            )
    other = tuned.by_name
    differences = list(_differences(base.by_name, other, ("base", "tuned")))
    if differences:
        raise PatchError(
            f"no patch from {base.source} to {tuned.source}: not the same tensors:"
            f"{_listed(differences)}\na patch keeps names, shapes and dtypes: save the tuned model "
            "as the base is saved, or name one file of each"
        )
    for tensor in base.tensors:
        width_of(tensor)
    return tuple((tensor, other[tensor.name]) for tensor in base.tensors)


def check_model(model: Checkpoint, patch: Patch, side: str) -> None:
    """Compare the tensors of a model with those that a patch is for; reads no weights.

    Raises:
        PatchError: they have not the same names, shapes and dtypes; all differences are listed.
    """
    differences = list(_differences(model.by_name, patch.tensors, (side, "patch")))
    if differences:
        raise PatchError(
            f"{patch.source}: not a patch of {side} {model.source}: not the same tensors:"
            f"{_listed(differences)}\nit was made from {patch.manifest.base.source} to "
            f"{patch.manifest.tuned.source}: name those models"
        )


def _differences(
    one: Mapping[str, TensorSpec],
    other: Mapping[str, TensorSpec] | Mapping[str, TensorRecord],
    sides: tuple[str, str],
) -> Iterator[str]:
    for name in sorted(one.keys() | other.keys()):
        a, b = one.get(name), other.get(name)
        if a is None or b is None:
            yield f"{name}: only in {sides[0] if b is None else sides[1]}"
        elif (a.dtype, tuple(a.shape)) != (b.dtype, tuple(b.shape)):
            yield f"{name}: {_form(a)} in {sides[0]}, {_form(b)} in {sides[1]}"


def _form(tensor: TensorSpec | TensorRecord) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _listed(differences: list[str]) -> str:
    more = len(differences) - _MOST
    lines = differences[:_MOST] + ([f"and {more} more"] if more > 0 else [])
    return "".join(f"\n  {line}" for line in lines)
