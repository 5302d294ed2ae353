"""The fetcher against files in memory, and streams that mix remote and local files."""

import gc
import threading
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights import FileRef, Reader, ReadRequest, prefetch
from rlsparse_ray.weights.fetch import Limits, fetch

SIZE = 4000
FILES = [FileRef(f"s3://memory/{name}", SIZE, "etag") for name in "abc"]
CONTENT = {file: np.random.default_rng(k).bytes(SIZE) for k, file in enumerate(FILES)}


class Memory:
    """Gives ranges of files in memory and remembers which were asked for."""

    def __init__(self, pause=None):
        self.asked = []
        self.running = 0
        self.most_running = 0
        self._pause = pause or (lambda number: 0)
        self._lock = threading.Lock()

    def read_into(self, file, offset, buffer):
        with self._lock:
            number = len(self.asked)
            self.asked.append((file, offset, len(buffer)))
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        time.sleep(self._pause(number))
        buffer[:] = CONTENT[file][offset : offset + len(buffer)]
        with self._lock:
            self.running -= 1

    def times_read(self):
        """How often each byte of each file was asked for."""
        return count_bytes(self.asked)


def count_bytes(ranges):
    times = {file.path: np.zeros(SIZE, int) for file in FILES}
    for file, offset, nbytes in ranges:
        times[file.path][offset : offset + nbytes] += 1
    return np.stack(list(times.values()))


def content(request):
    return CONTENT[request.file][request.offset : request.offset + request.nbytes]


def fetching_threads():
    return [t for t in threading.enumerate() if t.name.startswith("rlsparse-fetch")]


def windows(files, nbytes, start=0, stop=SIZE):
    """Windows of some files, interleaved as a comparison asks for them."""
    return [
        ReadRequest(file, at, min(nbytes, stop - at))
        for at in range(start, stop, nbytes)
        for file in files
    ]


limits_ = st.builds(
    Limits, chunk=st.integers(30, 900), threads=st.integers(1, 4), ahead=st.integers(1, 2000)
)
requests_ = st.lists(
    st.builds(
        lambda file, at, n: ReadRequest(file, at, min(n, SIZE - at)),
        st.sampled_from(FILES),
        st.integers(0, SIZE),
        st.integers(0, 900),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=150)
@given(requests_, limits_, st.integers(1, 4))
def test_any_requests_give_their_bytes_in_order(requests, limits, hold):
    memory, taken = Memory(), []
    for array in fetch(iter(requests), memory.read_into, hold, limits):
        taken.append(array)
        first = max(0, len(taken) - hold)
        held = zip(taken[first:], requests[first:], strict=False)
        assert all(kept.tobytes() == content(request) for kept, request in held)
    assert len(taken) == len(requests)
    wanted = count_bytes((r.file, r.offset, r.nbytes) for r in requests)
    assert np.array_equal(memory.times_read(), wanted)
    assert memory.most_running <= limits.threads
    assert all(n <= limits.chunk for _, _, n in memory.asked)
    assert not fetching_threads()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3), st.integers(40, 500), limits_, st.integers(0, 700))
def test_windows_of_several_files_are_read_once_and_merged(count, nbytes, limits, start):
    memory = Memory()
    requests = windows(FILES[:count], nbytes, start)
    for array, request in zip(fetch(requests, memory.read_into, 1, limits), requests, strict=True):
        assert array.tobytes() == content(request)
    assert memory.times_read().max() <= 1
    # the room that a growing chunk has, in whole windows, decides how many reads there are
    room = min(limits.chunk, limits.ahead // (2 * count)) // nbytes * nbytes
    if room and (limits.ahead - limits.ahead % nbytes) >= 2 * count * room:
        per_file = -(-(SIZE - start) // room)
        assert len(memory.asked) <= count * (per_file + 1)


def test_merged_to_the_size_of_a_chunk():
    memory = Memory()
    list(fetch(windows(FILES, 100), memory.read_into, 1, Limits(chunk=800, threads=4, ahead=7200)))
    assert sorted(n for _, _, n in memory.asked) == [800] * 15


def test_what_does_not_adjoin_is_not_merged():
    file, memory = FILES[0], Memory()
    requests = [ReadRequest(file, 0, 10), ReadRequest(file, 11, 10), ReadRequest(file, 5, 10)]
    list(fetch(requests, memory.read_into, 1))
    assert sorted(memory.asked) == [(file, 0, 10), (file, 5, 10), (file, 11, 10)]


def test_a_long_request_is_read_in_pieces_at_once():
    file, memory = FILES[0], Memory(pause=lambda number: 0.05)
    limits = Limits(chunk=1000, threads=4, ahead=100)
    (array,) = fetch([ReadRequest(file, 0, SIZE)], memory.read_into, 1, limits)
    assert array.tobytes() == CONTENT[file]
    assert memory.most_running == 4


def test_later_chunks_may_come_first():
    memory = Memory(pause=lambda number: 0.1 if number % 4 == 0 else 0)
    requests = windows(FILES, 100)
    limits = Limits(chunk=400, threads=4, ahead=4000)
    found = [array.tobytes() for array in fetch(requests, memory.read_into, 1, limits)]
    assert found == [content(request) for request in requests]
    assert memory.most_running == 4


def test_looks_ahead_no_further_than_allowed():
    looked = 0

    def endless():
        nonlocal looked
        while True:
            at = 100 * (looked % 40)
            looked += 1
            yield ReadRequest(FILES[0], at, 100)

    stream = fetch(endless(), Memory().read_into, 1, Limits(chunk=500, threads=2, ahead=1000))
    for taken in range(1, 101):
        next(stream)
        # ten that fit, the one in the caller's hand, and the one that had to be looked at
        assert looked <= taken + 11
    stream.close()
    empty = fetch((ReadRequest(FILES[0], 0, 0) for _ in iter(int, 1)), Memory().read_into, 1)
    assert next(empty).nbytes == 0
    empty.close()


def test_memory_stays_bounded():
    chunk = 1 << 20
    limits = Limits(chunk=chunk, threads=4, ahead=8 * chunk)
    files = [FileRef(f"s3://memory/{k}", 100 * chunk, "") for k in range(3)]
    requests = (
        ReadRequest(file, at, chunk // 4)
        for at in range(0, 100 * chunk, chunk // 4)
        for file in files
    )
    gc.collect()
    tracemalloc.start()
    for array in fetch(requests, lambda file, offset, buffer: None, 3, limits):
        assert array.nbytes == chunk // 4
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # what waits, a chunk of each file that is taken in part, and those to be used again
    assert 4 * chunk < peak < (8 + 3 + 4 + 1) * chunk


def test_buffers_are_used_again():
    limits = Limits(chunk=100, threads=2, ahead=1000)
    requests = windows(FILES[:1], 100)
    places = {a.ctypes.data for a in fetch(requests, Memory().read_into, 2, limits)}
    assert len(places) <= 13


def test_an_error_comes_in_its_place():
    def read_into(file, offset, buffer):
        if offset <= 1500 < offset + len(buffer):
            raise CheckpointError("no byte 1500")

    limits = Limits(chunk=200, threads=3, ahead=1000)
    stream = fetch(windows(FILES[:1], 100), read_into, 1, limits)
    taken = 0
    with pytest.raises(CheckpointError, match="no byte 1500"):
        for _ in stream:
            taken += 1
    assert taken == 14  # the chunk that holds byte 1500 begins at 1400
    assert not fetching_threads()


def test_closing_early_ends_the_threads_and_what_waits():
    memory = Memory(pause=lambda number: 0.02)
    stream = fetch(windows(FILES, 50), memory.read_into, 1, Limits(50, threads=2, ahead=6000))
    next(stream)
    assert fetching_threads()
    stream.close()
    assert not fetching_threads()
    assert len(memory.asked) < 20


@settings(deadline=None, max_examples=60)
@given(requests_, st.sets(st.sampled_from(FILES)), st.integers(1, 4), st.integers(1, 3))
def test_remote_and_local_files_in_one_stream(tmp_path_factory, requests, on_disk, depth, hold):
    folder = tmp_path_factory.mktemp("mixed")
    local = {file: _save(folder, file) for file in on_disk}
    mixed = [ReadRequest(local.get(r.file, r.file), r.offset, r.nbytes) for r in requests]

    class HalfInMemory(Reader):
        def read_into(self, file, offset, buffer):
            if file.scheme:
                Memory().read_into(file, offset, buffer)
            else:
                super().read_into(file, offset, buffer)

    taken = []
    with HalfInMemory() as reader:
        for array in prefetch(iter(mixed), reader, depth, hold=hold):
            taken.append(array)
            first = max(0, len(taken) - hold)
            held = zip(taken[first:], requests[first:], strict=False)
            assert all(kept.tobytes() == content(request) for kept, request in held)
    assert len(taken) == len(requests)


def _save(folder, file):
    path = folder / file.path[-1]
    path.write_bytes(CONTENT[file])
    found = path.stat()
    return FileRef(str(path), found.st_size, str(found.st_mtime_ns))
