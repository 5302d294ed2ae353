"""An object in a bucket as a file that can be read at random, by several threads at once."""

import io
import threading
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import obstore

from rlsparse_ray.storage.buckets import bucket, split
from rlsparse_ray.storage.object_errors import object_errors

if TYPE_CHECKING:
    from obstore import GetOptions


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as it was when it was looked at."""

    address: str
    size: int
    modified: datetime
    e_tag: str | None


def info_of(address: str) -> ObjectInfo:
    """What the bucket says of an object, in one request.

    Raises:
        StoreError: there is none, or the bucket does not answer.
    """
    place, key = split(address)
    with object_errors(address):
        meta = obstore.head(bucket(place), key)
    return ObjectInfo(address, meta["size"], meta["last_modified"], meta["e_tag"])


class Seekable(io.RawIOBase):
    """The bytes that `info` tells of; each read is one request for just these bytes.

    Every thread has a position of its own. Arrow and DuckDB hand one file to several threads,
    each of which seeks and then reads; with a shared position, one thread's seek would move
    another's read. If the object was replaced since `info`, reads fail instead of mixing the two.
    """

    def __init__(self, info: ObjectInfo) -> None:
        super().__init__()
        self.info = info
        place, self._key = split(info.address)
        self._bucket = bucket(place)
        self._thread = threading.local()

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def size(self) -> int:
        """Bytes of the object."""
        return self.info.size

    def tell(self) -> int:
        """Where this thread reads next."""
        return getattr(self._thread, "position", 0)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move this thread's position."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self.info.size}[whence]
        self._thread.position = start + offset
        return start + offset

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes, all that were asked for unless the object ends before.

        Raises:
            StoreError: the object was replaced or removed, or the bucket does not answer.
        """
        start = self.tell()
        stop = self.info.size if size is None or size < 0 else min(self.info.size, start + size)
        if stop <= start:
            return b""
        options: GetOptions = {"range": (start, stop), "if_match": self.info.e_tag}
        with object_errors(self.info.address):
            data = bytes(obstore.get(self._bucket, self._key, options=options).bytes())
        self._thread.position = stop
        return data

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """`read`, into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
