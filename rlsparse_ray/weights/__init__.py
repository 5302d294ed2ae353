"""Where weights come from: checkpoints, their headers and range reads. No maths, no Ray."""

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.header import Header, read_header
from rlsparse_ray.weights.local import open_local
from rlsparse_ray.weights.reader import Reader, ReadRequest, prefetch
from rlsparse_ray.weights.spec import DTYPES, FLOAT_DTYPES, Checkpoint, FileRef, TensorSpec

__all__ = [
    "DTYPES",
    "FLOAT_DTYPES",
    "Checkpoint",
    "FileRef",
    "Header",
    "ReadRequest",
    "Reader",
    "TensorSpec",
    "open_checkpoint",
    "open_local",
    "prefetch",
    "read_header",
]


def open_checkpoint(source: str) -> Checkpoint:
    """Open a model by what the corpus calls it: a folder, a file or a file:// address.

    Raises:
        CheckpointError: the place cannot be read; the message says why.
    """
    scheme, found, rest = source.partition("://")
    if not found:
        return open_local(source)
    if scheme != "file":
        raise CheckpointError(
            f"{source}: only local folders can be read, not {scheme}://: "
            "download the model and name its folder"
        )
    return open_local(rest)
