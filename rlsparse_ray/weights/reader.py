"""Reads of weights, wherever they are, ahead of the maths.

Local files are read by one thread into a ring of buffers; remote ones in large merged ranges by
several threads (`fetch`). One stream may mix them.
"""

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rlsparse_ray.storage.buckets import SCHEMES
from rlsparse_ray.weights.disk import LocalRanges
from rlsparse_ray.weights.fetch import fetch
from rlsparse_ray.weights.objects import ObjectRanges
from rlsparse_ray.weights.places import Ranges, ReadRequest
from rlsparse_ray.weights.spec import FileRef


class Reader:
    """Reads ranges of files of every place; opens what it needs and closes it. Thread-safe."""

    def __init__(self) -> None:
        self._ranges: dict[str, Ranges] = {}
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
        """Close every file and connection; a read after that is a ValueError."""
        with self._lock:
            self._closed = True
            while self._ranges:
                self._ranges.popitem()[1].close()

    def read_into(self, file: FileRef, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `file` from `offset` on.

        Raises:
            CheckpointError: the file is gone, has changed since its header was read, ends early
                or cannot be reached.
        """
        self._of(file.scheme).read_into(file, offset, buffer)

    def _of(self, scheme: str) -> Ranges:
        with self._lock:
            if self._closed:
                raise ValueError("read after close")
            if scheme not in self._ranges:
                self._ranges[scheme] = _open(scheme)
            return self._ranges[scheme]


def _open(scheme: str) -> Ranges:
    if not scheme:
        return LocalRanges()
    if scheme in SCHEMES:
        return ObjectRanges()
    # huggingface_hub takes 0.3 s to import: only who reads from it waits for it
    from rlsparse_ray.weights.hub_ranges import HubRanges  # noqa: PLC0415

    return HubRanges()


def prefetch(
    requests: Iterable[ReadRequest], reader: Reader, depth: int, hold: int = 1
) -> Generator[NDArray[np.uint8]]:
    """Yield the bytes of each request in order, while threads read ahead.

    Local files: one thread reads up to `depth` requests ahead, into `depth + hold` buffers that
    are used again, because the page faults of fresh ones cost as much as the read; each is as
    long as the largest request so far. Remote files: as `fetch` says, whatever the depth.

    An array is valid until `hold` more have been taken (with `hold=2` the last two may be used
    together).

    Args:
        requests: may be lazy; it is iterated in the caller's thread.
        reader: an open reader.
        depth: requests of local files read ahead, at least 1.
        hold: arrays that the caller uses at the same time, at least 1.

    Raises:
        CheckpointError: in the place of the request that could not be read.
    """
    if depth < 1 or hold < 1:
        raise ValueError(f"depth {depth} and hold {hold} must be at least 1")
    return _prefetch(_Kinds(requests), reader, depth, hold)


def _prefetch(
    kinds: "_Kinds", reader: Reader, depth: int, hold: int
) -> Generator[NDArray[np.uint8]]:
    local = _local(kinds.only(remote=False), _Ring(reader, depth + hold), depth)
    remote = fetch(kinds.only(remote=True), reader.read_into, hold)
    with closing(local), closing(remote):
        for is_remote in kinds.order():
            yield next(remote if is_remote else local)


class _Kinds:
    """Requests parted into local and remote ones; taking those of a kind queues the others."""

    def __init__(self, requests: Iterable[ReadRequest]) -> None:
        self._source = iter(requests)
        self._order: deque[bool] = deque()
        self._queues: dict[bool, deque[ReadRequest]] = {False: deque(), True: deque()}

    def order(self) -> Iterator[bool]:
        """For each request in turn whether it is remote."""
        while self._order or self._pull():
            yield self._order.popleft()

    def only(self, *, remote: bool) -> Iterator[ReadRequest]:
        """The requests of one kind."""
        queue = self._queues[remote]
        while queue or self._pull_until(queue):
            yield queue.popleft()

    def _pull_until(self, queue: deque[ReadRequest]) -> bool:
        while not queue:
            if not self._pull():
                return False
        return True

    def _pull(self) -> bool:
        for request in self._source:
            remote = bool(request.file.scheme)
            self._order.append(remote)
            self._queues[remote].append(request)
            return True
        return False


def _local(
    requests: Iterable[ReadRequest], ring: "_Ring", depth: int
) -> Generator[NDArray[np.uint8]]:
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
