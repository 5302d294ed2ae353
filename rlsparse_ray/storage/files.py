"""Whole-file access to a store: what is written appears at once and complete, or not at all."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from rlsparse_ray.errors import StoreError
from rlsparse_ray.storage.buckets import SCHEMES, flaw, is_object
from rlsparse_ray.storage.local_files import Entry, LocalFiles
from rlsparse_ray.storage.object_files import ObjectFiles

_HINTS = {
    errno.ENOSPC: "free some space or choose another store; run again to go on where it stopped",
    errno.EDQUOT: "your quota is used up: free some space or choose another store, then run again",
    errno.EFBIG: "a file-size limit stopped it (ulimit -f): raise it and run again",
    errno.EROFS: "the file system is read-only: choose another --store",
    errno.EACCES: "you may not write there: choose another --store or change its permissions",
    errno.EPERM: "you may not write there: choose another --store or change its permissions",
}


@contextmanager
def store_errors(root: object) -> Iterator[None]:
    """Turn what the operating system says about the store into a StoreError with a fix."""
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "check the disk and run again")
        raise StoreError(f"store {root}: {error}: {hint}") from error


class Files(Protocol):
    """The files of a store. Paths are relative to its root, with forward slashes."""

    root: str
    """Where the store is: a path, or an address such as s3://bucket/prefix."""

    read_size: int
    """Bytes that a read of a part of a large file should ask for at least."""

    def scratch(self, relative: str) -> Path:
        """A path on this machine to write to before `publish`, given to nobody else; its folder
        exists."""

    def publish(self, scratch: Path, relative: str) -> None:
        """Put a finished scratch file in its place, over what may be there; it is gone then."""

    def create(self, relative: str, data: bytes) -> bool:
        """Write a small file whole if there is none, or leave the one there: False."""

    def replace(self, relative: str, data: bytes, old: bytes) -> bool:
        """Write a small file in place of one with the bytes `old`, if it still has them.

        Of several that try, one succeeds. False: it is gone, or other bytes are there.
        """

    def write(self, relative: str, data: bytes) -> None:
        """Write a small file whole."""

    def read(self, relative: str) -> bytes | None:
        """The bytes of a file; None if there is none."""

    def pieces(self, relative: str) -> Iterator[bytes]:
        """The bytes of a file from its start to its end, in bounded memory."""

    def open(self, relative: str) -> pa.NativeFile:
        """A file for Arrow to read at random.

        Raises:
            OSError or StoreError: there is none, or it cannot be read.
        """

    def size(self, relative: str) -> int | None:
        """Bytes of a file; None if there is none."""

    def list(self, relative: str) -> dict[str, int]:
        """Every file under a folder in the order of the names, and its bytes; "" is the root."""

    def entries(self, relative: str) -> dict[str, Entry]:
        """`list`, with the time of each file beside its bytes."""

    def is_empty(self) -> bool:
        """Whether there is nothing at all, or not even the root."""

    def remove(self, relative: str) -> None:
        """Remove a file or folder with everything in it, and folders left empty above it."""


def address_of(root: str | Path) -> str:
    """The same place for processes that run in other folders: an address, or an absolute path."""
    files = files_at(root)
    return str(Path(files.root).absolute()) if isinstance(files, LocalFiles) else files.root


def files_at(root: str | Path) -> Files:
    """The files of a store at a path or an address.

    Raises:
        StoreError: an address of an unknown kind, or one that no bucket can have.
    """
    scheme, found, rest = str(root).partition("://")
    if is_object(str(root)):
        if why := flaw(str(root)):
            raise StoreError(f"store {root}: {why}")
        return ObjectFiles(str(root))
    if found and scheme != "file":
        known = ", ".join(f"{each}://" for each in SCHEMES)
        raise StoreError(f"store {root}: {scheme}:// is unknown: use a path or one of {known}")
    return LocalFiles(Path(rest if found else root).expanduser())
