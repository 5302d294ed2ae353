"""The format of torch.save before torch 1.6: five pickles, then the storages one after another.

The pickles are a magic number, a protocol version, facts of the machine, the object, and the keys
of the storages in their order. A storage is 8 bytes with its number of elements, then its data.
"""

from typing import BinaryIO

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.header import Header
from rlsparse_ray.weights.spec import FileRef
from rlsparse_ray.weights.unpickle import Storages, tensor_specs

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle: 0x1950a86a20f9469cfc6c."""

_PROTOCOL = 1001
_COUNT = 8


def read_legacy(stream: BinaryIO, file: FileRef) -> Header:
    """Parse the pickles of a file that begins with MAGIC; `stream` is at its begin.

    Raises:
        CheckpointError: naming the file, the tensor or the forbidden name, and the fix.
        ValueError, EOFError and others of unpickle.DAMAGED: a pickle is broken.
    """
    storages = Storages()
    _, protocol, machine, loaded, keys = (storages.load(stream, file.path) for _ in range(5))
    if protocol != _PROTOCOL:
        raise ValueError(f"protocol version {protocol}, not {_PROTOCOL}")
    if not machine["little_endian"]:
        raise CheckpointError(
            f"{file.path}: written on a big-endian machine: load it with torch and save it again"
        )
    end = stream.tell()
    stream.seek(0)
    raw = stream.read(end)
    starts = {}
    for key in map(str, keys):
        starts[key] = end + _COUNT
        end += _COUNT + storages.sizes[key]
    if end != file.size:
        raise CheckpointError(
            f"{file.path}: file is {file.size} bytes, its pickles promise {end}: download it again"
        )
    return Header(raw, tensor_specs(loaded, starts, storages.sizes, file))
