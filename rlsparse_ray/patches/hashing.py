"""Hashes of a model's tensors: is it the one that a patch was made from?"""

from collections.abc import Generator
from contextlib import closing

import xxhash

from rlsparse_ray.errors import PatchError
from rlsparse_ray.patches.format import Patch
from rlsparse_ray.patches.windows import read, windows
from rlsparse_ray.progress import Progress
from rlsparse_ray.weights import Checkpoint, Reader


def model_nbytes(model: Checkpoint) -> int:
    """Bytes of all tensors."""
    return sum(spec.nbytes for spec in model.tensors)


def hash_tensors(model: Checkpoint, advance: Progress) -> Generator[tuple[str, str]]:
    """The name of each tensor and XXH3-64 of its bytes, in the order of the files.

    Raises:
        CheckpointError: a tensor cannot be read.
    """
    requests = (request for spec in model.tensors for request in windows(spec))
    with Reader() as reader, closing(read(requests, reader)) as arrays:
        for spec in model.tensors:
            digest = xxhash.xxh3_64()
            for _ in windows(spec):
                array = next(arrays)
                digest.update(array.data)
                advance(array.nbytes)
            yield spec.name, digest.hexdigest()


def check_base(model: Checkpoint, patch: Patch, advance: Progress) -> None:
    """Hash every tensor of the base.

    Raises:
        PatchError: naming the first tensor of another hash.
        CheckpointError: a tensor cannot be read.
    """
    with closing(hash_tensors(model, advance)) as hashes:
        for name, xxh3 in hashes:
            problem = wrong_base(patch, name, xxh3)
            if problem:
                raise PatchError(
                    f"{patch.source}: not a patch of {model.source}: tensor {name}: {problem}: "
                    f"name its base, {patch.manifest.base.source}"
                )


def wrong_base(patch: Patch, name: str, xxh3: str) -> str:
    """Why a tensor with this hash is not that of the base; empty if it is."""
    record = patch.tensors[name]
    if xxh3 == record.base_xxh3:
        return ""
    whose = ", that of the tuned model," if xxh3 == record.tuned_xxh3 else ""
    return f"XXH3 {xxh3}{whose} instead of {record.base_xxh3}"
