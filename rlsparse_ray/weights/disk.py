"""Range reads of local files: pread, because page faults of a map are slower.

On network file systems page faults are 8 to 50 times slower than reads, and a file that shrinks
under a map kills the process.
"""

import errno
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.spec import FileRef

_OF_THE_PATH = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}
)
"""What is no trouble of a disk or server, but of the path."""


class LocalRanges:
    """Keeps each file open until it is closed. Thread-safe.

    A file is compared with its `FileRef` when it is opened; one that is overwritten in place
    after that is not noticed.
    """

    def __init__(self) -> None:
        self._descriptors: dict[FileRef, int] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close every file."""
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])

    def read_into(self, file: FileRef, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `file` from `offset` on.

        Raises:
            CheckpointError: the file is gone, has changed since its header was read, ends early, or
                the disk fails.
        """
        descriptor = self._descriptor(file)
        view = buffer.cast("B")
        done = 0
        while done < len(view):
            with disk_errors(file.path):
                got = os.preadv(descriptor, [view[done:]], offset + done)
            if got == 0:
                raise CheckpointError(
                    f"{file.path}: ends at byte {offset + done}, but {len(view)} bytes from "
                    f"{offset} on were promised: it was cut; restore it and run again"
                )
            done += got

    def _descriptor(self, file: FileRef) -> int:
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = _open(file)
            return self._descriptors[file]


@contextmanager
def disk_errors(path: str) -> Iterator[None]:
    """Turn what the operating system says about a model into an error about that model.

    Raises:
        CheckpointError: it is not there, may not be read, or the disk or server that has it fails.
    """
    try:
        yield
    except OSError as error:
        fix = (
            "check the path and its permissions; every node has to see it"
            if error.errno in _OF_THE_PATH
            else "check the disk or the server that has it, then run again"
        )
        why = f"{error.strerror or error} on {socket.gethostname()}"
        raise CheckpointError(f"{path}: cannot be read: {why}: {fix}") from error


def _open(file: FileRef) -> int:
    with disk_errors(file.path):
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        found = os.fstat(descriptor)
    if (found.st_size, str(found.st_mtime_ns)) != (file.size, file.stamp):
        os.close(descriptor)
        raise CheckpointError(
            f"{file.path}: changed between plan and read ({file.size} bytes of "
            f"{_time(int(file.stamp))} then, {found.st_size} of {_time(found.st_mtime_ns)} now, on "
            f"{socket.gethostname()}): run again when nothing writes to it; copies on several "
            "nodes have to keep their times (rsync -a)"
        )
    return descriptor


def _time(nanoseconds: int) -> str:
    """To the nanosecond: a copy may keep the second alone."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{rest:09d}"
