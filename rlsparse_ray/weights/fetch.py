"""Reads remote files fast: merged ranges, several at once, each byte once, in bounded memory.

A request to object storage or the hub takes some 20 ms until its first byte and one connection
gives 50 to 100 MB/s, so that windows of 2 MiB, one after another, would leave the network idle.
Requests are therefore looked at ahead of time; those that adjoin in a file become one chunk.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from rlsparse_ray.weights.places import ReadRequest
from rlsparse_ray.weights.spec import FileRef

Read = Callable[[FileRef, int, memoryview], None]
"""`Ranges.read_into`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is fetched at once."""

    chunk: int = 8 << 20
    """Bytes of one range read; a server gives 150 to 230 MB/s in all at 1 MiB, 700 at 8 MiB."""
    threads: int = 8
    """Range reads at the same time."""
    ahead: int = 64 << 20
    """Bytes looked at and not taken; on top come chunks that are taken in part, one a file, and up
    to four that are kept to be used again."""


LIMITS = Limits()


def fetch(
    requests: Iterable[ReadRequest], read: Read, hold: int, limits: Limits = LIMITS
) -> Generator[NDArray[np.uint8]]:
    """Yield the bytes of each request in order; an array is valid until `hold` more are taken.

    Args:
        requests: lazy and cheap; iterated in the caller's thread, up to `limits.ahead` bytes
            before its arrays are taken.
        read: fills a buffer from a file; called by several threads at once.
        hold: arrays that the caller uses at the same time.
        limits: how much at once.

    Raises:
        CheckpointError: in the place of the first request of the chunk that could not be read.
    """
    with ThreadPoolExecutor(limits.threads, thread_name_prefix="rlsparse-fetch") as pool:
        plan = _Plan(requests, read, pool, limits)
        held: deque[_Chunk] = deque()
        try:
            while plan.look_ahead():
                chunk, array = plan.take()
                held.append(chunk)
                yield array
                if len(held) == hold:
                    plan.give_back(held.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(slots=True)
class _Chunk:
    """Adjacent requests of one file; grows until it is started."""

    file: FileRef
    offset: int
    nbytes: int = 0
    users: int = 0
    """Requests in it whose arrays may still be used."""
    buffer: NDArray[np.uint8] | None = None
    reads: list[Future[None]] = field(default_factory=list)


class _Plan:
    """The requests that were looked at, and the chunks they lie in."""

    def __init__(
        self, requests: Iterable[ReadRequest], read: Read, pool: ThreadPoolExecutor, limits: Limits
    ) -> None:
        self._source = iter(requests)
        self._next = next(self._source, None)
        self._read = read
        self._pool = pool
        self._limits = limits
        self._waiting: deque[tuple[_Chunk, ReadRequest]] = deque()
        self._growing: dict[FileRef, _Chunk] = {}
        self._nbytes = 0
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=4)

    def look_ahead(self) -> bool:
        """Place requests in chunks as long as there is room; whether any waits to be taken."""
        while self._next is not None and self._has_room(self._next):
            self._place(self._next)
            self._next = next(self._source, None)
        # what is taken next does not grow any more: its file has ended, or memory is short
        for chunk, _ in list(islice(self._waiting, 2 * len(self._growing))):
            self._start(chunk)
        return bool(self._waiting)

    def take(self) -> tuple[_Chunk, NDArray[np.uint8]]:
        """The bytes of the next request, once its chunk is there, and that chunk."""
        chunk, request = self._waiting.popleft()
        self._nbytes -= request.nbytes
        buffer = self._start(chunk)
        for read in chunk.reads:
            read.result()
        begin = request.offset - chunk.offset
        return chunk, buffer[begin : begin + request.nbytes]

    def give_back(self, chunk: _Chunk) -> None:
        """One array of a chunk is not used any more; after the last, its buffer is used again."""
        chunk.users -= 1
        # that of a long request goes back to the system
        if not chunk.users and chunk.buffer is not None and chunk.nbytes <= self._limits.chunk:
            self._free.append(chunk.buffer)

    def _has_room(self, request: ReadRequest) -> bool:
        # empty requests take no bytes, but an endless row of them has to end
        few = len(self._waiting) < 10_000
        return not self._waiting or (few and self._nbytes + request.nbytes <= self._limits.ahead)

    def _place(self, request: ReadRequest) -> None:
        chunk = self._growing.get(request.file)
        if chunk is None or not self._fits(chunk, request):
            if chunk is not None:
                self._start(chunk)
            chunk = self._growing[request.file] = _Chunk(request.file, request.offset)
        chunk.nbytes += request.nbytes
        chunk.users += 1
        self._nbytes += request.nbytes
        self._waiting.append((chunk, request))

    def _fits(self, chunk: _Chunk, request: ReadRequest) -> bool:
        # half of the room for what grows, so that the other half is being fetched meanwhile
        most = min(self._limits.chunk, self._limits.ahead // (2 * len(self._growing)))
        end = chunk.offset + chunk.nbytes
        return request.offset == end and chunk.nbytes + request.nbytes <= most

    def _start(self, chunk: _Chunk) -> NDArray[np.uint8]:
        if chunk.buffer is None:
            del self._growing[chunk.file]
            chunk.buffer = self._buffer(chunk.nbytes)
            for begin in range(0, chunk.nbytes, self._limits.chunk):
                end = min(begin + self._limits.chunk, chunk.nbytes)
                piece = chunk.buffer[begin:end].data
                chunk.reads.append(
                    self._pool.submit(self._read, chunk.file, chunk.offset + begin, piece)
                )
        return chunk.buffer

    def _buffer(self, nbytes: int) -> NDArray[np.uint8]:
        # page faults of a fresh one take 0.3 ms a MiB, a third of the time of the network
        for _ in range(len(self._free)):
            buffer = self._free.popleft()
            if nbytes <= buffer.nbytes:
                return buffer
        return np.empty(nbytes, np.uint8)
