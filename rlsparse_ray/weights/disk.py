"""Range reads of local files: pread, because page faults of a map are slower.

On network file systems page faults are 8 to 50 times slower than reads, and a file that shrinks
under a map kills the process.
"""

import os
import threading

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.spec import FileRef


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
            CheckpointError: the file is gone, has changed since its header was read, or ends early.
        """
        descriptor = self._descriptor(file)
        view = buffer.cast("B")
        done = 0
        while done < len(view):
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


def _open(file: FileRef) -> int:
    try:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{file.path}: {error.strerror}, though its header could be read: "
            "restore it and run again"
        ) from error
    found = os.fstat(descriptor)
    if (found.st_size, str(found.st_mtime_ns)) != (file.size, file.stamp):
        os.close(descriptor)
        raise CheckpointError(
            f"{file.path}: changed between plan and read ({file.size} bytes then, "
            f"{found.st_size} now): run again when nothing writes to it"
        )
    return descriptor
