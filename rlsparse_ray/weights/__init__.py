"""Where weights come from: checkpoints, their headers and range reads. No maths, no Ray."""

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.storage.buckets import SCHEMES
from rlsparse_ray.weights.adapters import applied, apply_adapter
from rlsparse_ray.weights.choice import split_source
from rlsparse_ray.weights.derived import derive
from rlsparse_ray.weights.folder import Located
from rlsparse_ray.weights.header import Header, read_header
from rlsparse_ray.weights.local import locate_local, open_local
from rlsparse_ray.weights.objects import open_objects
from rlsparse_ray.weights.places import Folder, ReadRequest
from rlsparse_ray.weights.reader import Reader, prefetch
from rlsparse_ray.weights.spec import (
    DTYPES,
    FLOAT_DTYPES,
    Checkpoint,
    FileRef,
    TensorSpec,
    distinct_nbytes,
)

__all__ = [
    "DTYPES",
    "FLOAT_DTYPES",
    "Checkpoint",
    "FileRef",
    "Header",
    "Located",
    "ReadRequest",
    "Reader",
    "TensorSpec",
    "applied",
    "apply_adapter",
    "derive",
    "distinct_nbytes",
    "locate",
    "open_checkpoint",
    "open_local",
    "prefetch",
    "read_header",
]


def open_checkpoint(source: str) -> Checkpoint:
    """Open a model by what the corpus calls it, headers only.

    Args:
        source: a local path, file://..., s3://, gs:// or az://bucket/prefix, or
            hf://org/repo[@revision][/subfolder]. It may end in the name of a file with weights
            (.safetensors, .bin, .pt, .pth): then that file alone is the model.

    Raises:
        CheckpointError: the place cannot be read; the message says why and what to do.
    """
    return locate(source).open()


def locate(source: str) -> Located:
    """Find a model by what the corpus calls it: one request on the hub, and no header is read.

    Raises:
        CheckpointError: as `open_checkpoint`, but for what only the files themselves can tell.
    """
    scheme, found, rest = source.partition("://")
    if not found or scheme == "file":
        return locate_local(rest if found else source)
    if scheme not in (*SCHEMES, "hf"):
        raise CheckpointError(
            f"{source}: {scheme}:// cannot be read: name a local folder, "
            "s3://, gs:// or az://bucket/prefix, or hf://org/repo@revision"
        )
    address, only = split_source(source)
    return Located(_remote(address), only)


def _remote(address: str) -> Folder:
    if not address.startswith("hf://"):
        return open_objects(address)
    # huggingface_hub takes 0.3 s to import: only who reads from it waits for it
    from rlsparse_ray.weights.hub import open_hub  # noqa: PLC0415

    return open_hub(address)
