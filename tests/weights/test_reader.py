import os
import shutil
import threading
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights import FileRef, Reader, ReadRequest, prefetch

SIZE = 5000


def ref(path):
    found = path.stat()
    return FileRef(str(path), found.st_size, str(found.st_mtime_ns))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(np.random.default_rng(1).bytes(SIZE))
    return ref(path)


def content(request):
    with Path(request.file.path).open("rb") as stream:
        stream.seek(request.offset)
        return stream.read(request.nbytes)


def reading_threads():
    return [t for t in threading.enumerate() if t.name.startswith("rlsparse-read")]


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_read_into(file):
    before = open_files()
    with Reader() as reader:
        buffer = bytearray(100)
        reader.read_into(file, 17, memoryview(buffer))
        assert bytes(buffer) == content(ReadRequest(file, 17, 100))
        words = np.zeros(10, np.uint64)
        reader.read_into(file, 8, words.data)
        assert words.tobytes() == content(ReadRequest(file, 8, 80))
        reader.read_into(file, SIZE, memoryview(b""))
        assert open_files() == before + 1
    assert open_files() == before
    with pytest.raises(ValueError, match="after close"):
        reader.read_into(file, 0, memoryview(bytearray(1)))


def test_partial_reads_are_continued(file, monkeypatch):
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: whole(fd, [views[0][:7]], at))
    buffer = bytearray(100)
    with Reader() as reader:
        reader.read_into(file, 3, memoryview(buffer))
    assert bytes(buffer) == content(ReadRequest(file, 3, 100))


def test_many_threads_open_a_file_once(file):
    before, wrong = open_files(), []
    with Reader() as reader:

        def work(seed):
            for offset in np.random.default_rng(seed).integers(0, SIZE - 50, 200):
                buffer = bytearray(50)
                reader.read_into(file, int(offset), memoryview(buffer))
                if bytes(buffer) != content(ReadRequest(file, int(offset), 50)):
                    wrong.append(offset)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert open_files() == before + 1
    assert not wrong


def refused(file, offset, nbytes, words):
    with Reader() as reader, pytest.raises(CheckpointError, match=words) as caught:
        reader.read_into(file, offset, memoryview(bytearray(nbytes)))
    assert file.path in str(caught.value)


def test_changed_file(file, tmp_path):
    stamp = int(file.stamp)
    os.utime(file.path, ns=(stamp, stamp + 1))
    refused(file, 0, 1, "changed between plan and read")
    (tmp_path / "data").write_bytes(bytes(SIZE + 1))
    os.utime(file.path, ns=(stamp, stamp))
    before = open_files()
    time = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\.\d{9}"
    refused(file, 0, 1, rf"plan and read \(5000 bytes of {time} then, 5001 of {time} now, on \S+\)")
    assert open_files() == before


def test_missing_file(file, tmp_path):
    (tmp_path / "data").unlink()
    refused(file, 0, 1, r"cannot be read: No such file or directory on \S+: check the path")


def test_a_copy_with_its_times_is_the_same(file, tmp_path):
    """So that a model may be on every node of its own."""
    there = tmp_path / "there"
    there.mkdir()
    shutil.copy2(file.path, there / "data")
    with Reader() as reader:
        copied = replace(file, path=str(there / "data"))
        reader.read_into(copied, 0, memoryview(bytearray(10)))


def test_a_disk_that_fails_fails_the_model():
    """The first page of this process is not mapped, so that reading it is an I/O error."""
    path = f"/proc/{os.getpid()}/mem"
    found = Path(path).stat()
    file = FileRef(path, found.st_size, str(found.st_mtime_ns))
    with Reader() as reader, pytest.raises(CheckpointError, match=r"mem: .*Input/output error"):
        reader.read_into(file, 0, memoryview(bytearray(8)))


def test_short_read(file):
    refused(file, SIZE - 10, 11, "ends at byte 5000, but 11 bytes from 4990 on were promised")


requests_ = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, 900)), max_size=30)


@settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(requests_, st.integers(1, 5), st.integers(1, 4))
def test_prefetch_keeps_order_content_and_held_buffers(file, ranges, depth, hold):
    requests = [ReadRequest(file, at, min(n, SIZE - at)) for at, n in ranges]
    taken = []
    with Reader() as reader:
        for array in prefetch(iter(requests), reader, depth, hold=hold):
            assert array.dtype == np.uint8
            taken.append(array)
            first = max(0, len(taken) - hold)
            held = zip(taken[first:], requests[first:], strict=False)
            assert all(kept.tobytes() == content(request) for kept, request in held)
    assert len(taken) == len(requests)
    assert not reading_threads()


def test_buffers_are_used_again(file):
    requests = [ReadRequest(file, i, 100) for i in range(40)]
    with Reader() as reader:
        places = {a.ctypes.data for a in prefetch(requests, reader, depth=3, hold=2)}
    assert len(places) == 5


def test_at_most_depth_requests_are_read_ahead(file):
    asked = []

    class Counting(Reader):
        def read_into(self, file, offset, buffer):
            asked.append(offset)
            super().read_into(file, offset, buffer)

    endless = (ReadRequest(file, number, 8) for number in count())
    with Counting() as reader:
        stream = prefetch(endless, reader, depth=3)
        for taken in range(1, 20):
            next(stream)
            assert len(asked) <= taken + 3
        stream.close()
    assert not reading_threads()


def test_an_error_comes_in_its_place(file):
    requests = [ReadRequest(file, 0, 10), ReadRequest(file, SIZE, 10), ReadRequest(file, 5, 10)]
    with Reader() as reader:
        stream = prefetch(requests, reader, depth=2)
        assert next(stream).tobytes() == content(requests[0])
        with pytest.raises(CheckpointError, match="ends at byte 5000"):
            next(stream)
    assert not reading_threads()


def test_closing_early_stops_the_thread(file):
    with Reader() as reader:
        stream = prefetch([ReadRequest(file, 0, 10)] * 50, reader, depth=4)
        next(stream)
        assert reading_threads()
        stream.close()
        assert not reading_threads()


@pytest.mark.parametrize(("depth", "hold"), [(0, 1), (1, 0)])
def test_senseless_sizes(depth, hold):
    with pytest.raises(ValueError, match="at least 1"):
        prefetch([], Reader(), depth, hold)
