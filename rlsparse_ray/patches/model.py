"""A patch applied to a model in memory, in place: how an inference server takes new weights."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import xxhash

from rlsparse_ray.errors import PatchError
from rlsparse_ray.naming import canonical_names
from rlsparse_ray.patches.entries import Chunk, chunks
from rlsparse_ray.patches.format import Patch, open_patch
from rlsparse_ray.patches.hashing import wrong_base
from rlsparse_ray.patches.places import Source
from rlsparse_ray.weights import Reader

if TYPE_CHECKING:
    import torch

_DTYPES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "BOOL": "bool",
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
"""torch's names of the dtypes of safetensors."""


def apply_to_model(model: "torch.nn.Module", patch: Source | Patch, *, verify: bool = True) -> int:
    """Set the changed entries of a loaded model, on whatever device it is.

    Names are matched by their canonical form, so DDP and torch.compile wrappers do no harm; tied
    weights are set once. The model has to be whole, unquantised and in the dtypes of the patch.

    Args:
        model: the base, as loaded.
        patch: path, address, or an opened patch.
        verify: hash the patched tensors before anything is set and again after it, on the CPU:
            a copy of each from a GPU. Without it only names, shapes, dtypes and the patch's own
            hashes are checked.

    Returns:
        How many entries were set.

    Raises:
        PatchError: the model is not the base, or the patch is damaged; nothing is set then. If a
            result has the wrong hash, the message says so: load the model anew.
        CheckpointError: the patch cannot be read.
    """
    import torch  # noqa: PLC0415 (2 s)

    opened = patch if isinstance(patch, Patch) else open_patch(patch)
    found = _matched(model, opened)
    with torch.no_grad(), Reader() as reader:
        # all of a damaged patch, or of a wrong model, is refused before anything is set
        for _ in chunks(opened, found, reader):
            pass
        for name in found if verify else ():
            if problem := wrong_base(opened, name, _xxh3(found[name])):
                raise PatchError(f"{opened.source}: not a patch of this model: {name}: {problem}")
        changed = 0
        for chunk in chunks(opened, found, reader):
            _set(found[chunk.tensor], chunk)
            changed += chunk.indices.size
        for name in found if verify else ():
            xxh3, wanted = _xxh3(found[name]), opened.tensors[name].tuned_xxh3
            if xxh3 != wanted:
                raise PatchError(
                    f"{opened.source}: tensor {name} has XXH3 {xxh3} instead of {wanted} after it "
                    "was patched: make the patch again, and load the model anew"
                )
    return changed


def _matched(model: "torch.nn.Module", patch: Patch) -> Mapping[str, "torch.Tensor"]:
    """The tensors of the model that the patch changes, by the patch's names."""
    import torch  # noqa: PLC0415

    state = model.state_dict()
    ours = {canonical: state[name] for name, canonical in canonical_names(state).items()}
    theirs = canonical_names(patch.tensors)
    found = {}
    for name in patch.entries:
        record, tensor = patch.tensors[name], ours.get(theirs[name])
        if tensor is None:
            raise PatchError(f"{patch.source}: tensor {name}: the model has none of that name")
        dtype = getattr(torch, _DTYPES.get(record.dtype, ""), None)
        if tensor.shape != record.shape or tensor.dtype != dtype:
            raise PatchError(
                f"{patch.source}: tensor {name}: {record.dtype} {list(record.shape)} in the patch, "
                f"{tensor.dtype} {list(tensor.shape)} in the model: load the base whole and in "
                "its own dtype"
            )
        if not tensor.is_contiguous():
            raise PatchError(
                f"{patch.source}: tensor {name}: not contiguous in the model: patch it before it "
                "is transposed or packed"
            )
        found[name] = tensor
    return found


def _set(tensor: "torch.Tensor", chunk: Chunk) -> None:
    import torch  # noqa: PLC0415

    flat = tensor.view(-1)
    elements = flat.view(getattr(torch, f"int{8 * flat.element_size()}"))
    values = torch.from_numpy(chunk.values.view(f"i{chunk.values.itemsize}"))
    places = torch.from_numpy(chunk.indices)
    # half the time of elements[places] = values
    elements.scatter_(0, places.to(tensor.device), values.to(tensor.device))


def _xxh3(tensor: "torch.Tensor") -> str:
    import torch  # noqa: PLC0415

    raw = tensor.detach().view(-1).view(torch.uint8).cpu().numpy()
    return str(xxhash.xxh3_64_hexdigest(raw.data))
