"""Range reads of weights: pread into buffers that are used again, one thread ahead of the maths.

Nothing is mmapped: on network file systems page faults are 8 to 50 times slower than reads, and
a file that shrinks under a map kills the process.
"""

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.spec import FileRef


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """A range of bytes of one file."""

    file: FileRef
    offset: int
    nbytes: int


class Reader:
    """Reads ranges of local files; keeps each file open until it is closed. Thread-safe.

    A file is compared with its `FileRef` when it is opened; one that is overwritten in place
    after that is not noticed.
    """

    def __init__(self) -> None:
        self._descriptors: dict[FileRef, int] = {}
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every file; a read after that is a ValueError."""
        with self._lock:
            self._closed = True
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
            if self._closed:
                raise ValueError("read after close")
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


def prefetch(
    requests: Iterable[ReadRequest], reader: Reader, depth: int, hold: int = 1
) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes of each request in order, while a thread reads up to `depth` ahead.

    The arrays are views of `depth + hold` buffers that are used again, because the page faults
    of fresh ones cost as much as the read: an array is valid until `hold` more have been taken
    (with `hold=2` the last two may be used together). Each buffer is as long as the largest
    request so far.

    Args:
        requests: may be lazy; it is iterated in the caller's thread.
        reader: an open reader.
        depth: requests read ahead, at least 1.
        hold: arrays that the caller uses at the same time, at least 1.

    Raises:
        CheckpointError: in the place of the request that could not be read.
    """
    if depth < 1 or hold < 1:
        raise ValueError(f"depth {depth} and hold {hold} must be at least 1")
    return _prefetch(requests, _Ring(reader, depth + hold), depth)


def _prefetch(
    requests: Iterable[ReadRequest], ring: "_Ring", depth: int
) -> Iterator[NDArray[np.uint8]]:
    pending: deque[Future[NDArray[np.uint8]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="rlsparse-read") as pool:
        try:
            for number, request in enumerate(requests):
                pending.append(pool.submit(ring.read, number, request))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class _Ring:
    """Buffers in turn; used by one reading thread."""

    def __init__(self, reader: Reader, slots: int) -> None:
        self._reader = reader
        self._slots = [np.empty(0, np.uint8)] * slots
        self._largest = 0

    def read(self, number: int, request: ReadRequest) -> NDArray[np.uint8]:
        slot = number % len(self._slots)
        self._largest = max(self._largest, request.nbytes)
        if self._slots[slot].nbytes < request.nbytes:
            # the old buffer goes before the new one comes, so both never count
            self._slots[slot] = np.empty(0, np.uint8)
            self._slots[slot] = np.empty(self._largest, np.uint8)
        buffer = self._slots[slot][: request.nbytes]
        self._reader.read_into(request.file, request.offset, buffer.data)
        return buffer
