"""Which mask belongs to which parameter of a model: names, fused tensors, tied weights."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np

from rlsparse_ray.errors import TrainingError
from rlsparse_ray.fused import add_up, part_names
from rlsparse_ray.naming import canonical_names, describe
from rlsparse_ray.training.subnetwork import Subnetwork, TensorMask

_WRAPPERS = re.compile(r"\b(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
"""What FSDP 1, activation checkpointing and torch.compile put into names, anywhere in them."""

_LISTED = 5
"""Names that a message shows."""

Shape = tuple[int, ...]


def short_names(names: Iterable[str]) -> dict[str, str]:
    """The canonical name of each parameter of a model, whatever wraps it."""
    plain = {name: _WRAPPERS.sub("", name) for name in names}
    canonical = canonical_names(plain.values())
    return {name: canonical[plain[name]] for name in plain}


def fit(
    subnetwork: Subnetwork, shapes: Mapping[str, Shape], aliases: Iterable[Sequence[str]] = ()
) -> dict[str, TensorMask]:
    """The masks of a model's own tensors.

    Where the model has some tensors fused and the subnetwork split (qkv_proj; the experts of a
    layer), or the other way round, masks are joined and cut as `rlsparse_ray.fused` does it.

    Args:
        subnetwork: what is to be trained.
        shapes: shape of every parameter by the model's name.
        aliases: sets of names in `shapes` that stand for one parameter: tied weights.

    Returns:
        Masks by the model's name. A parameter without one is frozen; of tied weights the first
        name that the subnetwork knows has it.

    Raises:
        TrainingError: the subnetwork has tensors that the model lacks (those without a set bit do
            not count: some checkpoints store buffers), a shape differs, or the second of two tied
            tensors has set bits that the first has not.
    """
    own = {short: name for name, short in short_names(shapes).items()}
    masks = _fuse(subnetwork, {short: shapes[name] for short, name in own.items()})
    wrong = [
        f"{short}: {list(mask.shape)} in the subnetwork, {list(shapes[own[short]])} in the model"
        for short, mask in masks.items()
        if mask.shape != shapes[own[short]]
    ]
    if wrong:
        raise TrainingError(
            f"{subnetwork.source}: {_listed(wrong)}: train the base model of the pair, or resize it"
        )
    found = {own[short]: mask for short, mask in masks.items()}
    for names in aliases:
        _keep_one(found, names)
    return found


def _fuse(subnetwork: Subnetwork, shapes: Mapping[str, Shape]) -> dict[str, TensorMask]:
    """Masks by the canonical names of the model; every set bit of the subnetwork is in one."""
    left = {name: subnetwork[name] for name in subnetwork}
    found = {name: left.pop(name) for name in shapes if name in left}
    for name, shape in shapes.items():
        if name not in found:
            for parts in part_names(name, shape):
                if all(p in left for p in parts) and add_up(shape, [left[p].shape for p in parts]):
                    found[name] = _joined(shape, [left.pop(part) for part in parts])
                    break
    for name in list(left):
        mask = left[name]
        for parts in part_names(name, mask.shape):
            cuts = [shapes[part] for part in parts if part in shapes and part not in found]
            if len(cuts) == len(parts) and add_up(mask.shape, cuts):
                found |= zip(parts, _cut(left.pop(name), cuts), strict=True)
                break
    lacking = [
        name
        for name, mask in left.items()
        if mask.size and not _is_tied_head(name, mask, shapes, found)
    ]
    if lacking:
        more = [name for name in shapes if name not in found]
        raise TrainingError(
            f"{subnetwork.source}: {len(lacking)} tensors that the model lacks: {_listed(lacking)};"
            f" the model has {len(more)} that it does not know: {_listed(more)}: train the base "
            f"model of the pair, and give all of model.named_parameters(remove_duplicate=False)"
        )
    return found


def _is_tied_head(
    name: str, mask: TensorMask, shapes: Iterable[str], found: Mapping[str, TensorMask]
) -> bool:
    """Whether a tensor that the model lacks is its embedding under another name.

    Parameters do not say what they are tied to, and `named_parameters` gives each by one name. A
    model with a head of its own, such as a reward model's, lost the one that the pair has.
    """
    if describe(name).kind != "head" or any(describe(own).kind == "head" for own in shapes):
        return False
    for own, known in found.items():
        if describe(own).kind == "embedding" and known.shape == mask.shape:
            _check_contains(own, known, name, mask)
            return True
    return False


def _joined(shape: Shape, parts: Sequence[TensorMask]) -> TensorMask:
    flags = np.concatenate([part.flags().reshape(-1) for part in parts])
    return TensorMask.from_flags(flags.reshape(shape))


def _cut(mask: TensorMask, shapes: Sequence[Shape]) -> list[TensorMask]:
    flags = mask.flags().reshape(-1)
    ends = accumulate((int(np.prod(shape)) for shape in shapes), initial=0)
    pieces = zip(pairwise(ends), shapes, strict=True)
    return [TensorMask.from_flags(flags[a:b].reshape(shape)) for (a, b), shape in pieces]


def _keep_one(masks: dict[str, TensorMask], names: Sequence[str]) -> None:
    """Leave one mask to a parameter that has several names."""
    known = [name for name in names if name in masks]
    for name in known[1:]:
        _check_contains(known[0], masks[known[0]], name, masks[name])
        del masks[name]


def _check_contains(first: str, kept: TensorMask, name: str, mask: TensorMask) -> None:
    if (mask.bits & ~kept.bits).any():
        raise TrainingError(
            f"the mask of {name} has bits that the one of {first} has not, and the model has no "
            f"other parameter for it (tied weights are one): leave one of them out of the "
            f"subnetwork, before random() if it is called"
        )


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:_LISTED] or ["none"]) + (", ..." if len(shown) > _LISTED else "")
