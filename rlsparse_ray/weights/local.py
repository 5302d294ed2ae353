"""Models on the disk: a folder, or one file with weights."""

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.disk import disk_errors
from rlsparse_ray.weights.folder import Located
from rlsparse_ray.weights.spec import Checkpoint, FileRef

_SAMPLES, _SAMPLE_BYTES = 64, 4096


def open_local(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a folder with a model, or one file of it.

    The revision is a fingerprint of file names, sizes, times, inodes, headers, samples of the
    content and config.json. So two models are never taken for one, even if an archive gave all
    files one time; a copy of a model is taken for another.

    Raises:
        CheckpointError: naming the folder or file, what is wrong and the fix.
    """
    return locate_local(path).open()


def locate_local(path: str | os.PathLike[str]) -> Located:
    """Find a folder with a model, or one file of it; nothing is read yet.

    Raises:
        CheckpointError: there is none.
    """
    found = Path(path).expanduser().absolute()
    with disk_errors(str(found)):
        there, is_folder = found.exists(), found.is_dir()
    if not there:
        raise CheckpointError(f"{found}: no such folder: check the path in the corpus file")
    if is_folder:
        return Located(LocalFolder(found), None)
    return Located(LocalFolder(found.parent), found.name)


class LocalFolder:
    """A folder on the disk, as it is when `files` is first looked at."""

    revision = None
    subfolder = ""

    def __init__(self, path: Path) -> None:
        self.source = str(path)

    @cached_property
    def files(self) -> Mapping[str, FileRef]:
        """Files by name; a link that leads nowhere is no file."""
        with disk_errors(self.source):
            paths = (path for path in Path(self.source).iterdir() if not path.is_dir())
            return {path.name: _ref(path) for path in sorted(paths) if path.exists()}

    def read(self, file: FileRef, offset: int, nbytes: int) -> bytes:
        """A range of a file.

        Raises:
            CheckpointError: it cannot be opened or read, or is shorter than it was.
        """
        with disk_errors(file.path), Path(file.path).open("rb") as stream:
            stream.seek(offset)
            data = stream.read(nbytes)
        if len(data) < nbytes:
            raise CheckpointError(
                f"{file.path}: ends before byte {offset + nbytes}, though it had {file.size} "
                "bytes: run again when nothing writes to it"
            )
        return data

    def identity(self, file: FileRef) -> bytes:
        """Time, inode and samples: files of one shape and time differ in at least one of them."""
        with disk_errors(file.path):
            inode = Path(file.path).stat().st_ino
            return repr((file.stamp, inode)).encode() + _samples(file)


def _ref(path: Path) -> FileRef:
    found = path.stat()
    return FileRef(str(path), found.st_size, str(found.st_mtime_ns))


def _samples(file: FileRef) -> bytes:
    """Evenly spaced pieces of a file, 256 KiB at most: a file rewritten in place is noticed."""
    step = max(_SAMPLE_BYTES, file.size // _SAMPLES)
    with Path(file.path).open("rb", buffering=0) as stream:
        descriptor = stream.fileno()
        return b"".join(os.pread(descriptor, _SAMPLE_BYTES, at) for at in range(0, file.size, step))
