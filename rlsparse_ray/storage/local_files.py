"""A store in a folder."""

import errno
import fcntl
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

PIECE = 1 << 20
"""Bytes read at a time where a whole file is gone through."""

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
PARTIAL = ".partial"
"""How the names of files end that are being written, or were when their process died."""

_GONE = (errno.ENOENT, errno.ENOTDIR)
_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)


class Entry(NamedTuple):
    """A file in a listing."""

    nbytes: int
    modified: float
    """When it was written last, in seconds since 1970 by the clock of the place."""


class LocalFiles:
    """A folder."""

    read_size = 256 << 10

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._root = root

    def scratch(self, relative: str) -> Path:
        """A path beside the place of the file, and so on the same file system."""
        path = self._root / relative
        _make(path.parent)
        # no number of a process: each container has a process 1
        return path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")

    def publish(self, scratch: Path, relative: str) -> None:
        """Rename it, once the disk has it: what lost its power has no file that is named but empty.

        That costs 2 to 7 ms a file.
        """
        _sync(scratch)
        target = self._root / relative
        _make(target.parent)
        scratch.replace(target)

    def create(self, relative: str, data: bytes) -> bool:
        """Link it, which never replaces; where there are no links the last writer wins."""
        with self._written(relative, data) as scratch:
            _sync(scratch)
            try:
                (self._root / relative).hardlink_to(scratch)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self.publish(scratch, relative)
        return True

    def replace(self, relative: str, data: bytes, old: bytes) -> bool:
        """Under a lock on the file, which whoever else replaces it waits for."""
        path = self._root / relative
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return False
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # another one may have put a new file in its place meanwhile
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return False
            if file.read() != old:
                return False
            self.write(relative, data)
        return True

    def write(self, relative: str, data: bytes) -> None:
        """Through a scratch file."""
        with self._written(relative, data) as scratch:
            self.publish(scratch, relative)

    @contextmanager
    def _written(self, relative: str, data: bytes) -> Iterator[Path]:
        """A scratch file with these bytes; it is gone after the block."""
        scratch = self.scratch(relative)
        try:
            scratch.write_bytes(data)
            yield scratch
        finally:
            scratch.unlink(missing_ok=True)

    def read(self, relative: str) -> bytes | None:
        """In one go."""
        try:
            return (self._root / relative).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def pieces(self, relative: str) -> Iterator[bytes]:
        """One MiB at a time."""
        return pieces_of(self._root / relative)

    def open(self, relative: str) -> pa.NativeFile:
        """Arrow's own file: its reads do not pass through Python."""
        return pa.OSFile(str(self._root / relative), "r")

    def size(self, relative: str) -> int | None:
        """By its entry in the folder."""
        try:
            facts = (self._root / relative).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return facts.st_size if stat.S_ISREG(facts.st_mode) else None

    def list(self, relative: str) -> dict[str, int]:
        """By walking the folders."""
        return {path: entry.nbytes for path, entry in self.entries(relative).items()}

    def entries(self, relative: str) -> dict[str, Entry]:
        """By walking the folders."""
        found = {}
        for folder, _, names in os.walk(self._root / relative, onerror=_raise_unless_gone):
            for name in names:
                path = Path(folder, name)
                try:
                    facts = path.stat()
                except FileNotFoundError:
                    # a scratch file that has just become the file itself
                    continue
                if stat.S_ISREG(facts.st_mode):
                    entry = Entry(facts.st_size, facts.st_mtime)
                    found[path.relative_to(self._root).as_posix()] = entry
        return {name: found[name] for name in sorted(found, key=lambda name: name.split("/"))}

    def is_empty(self) -> bool:
        """Scratch files do not count: a run that was killed, or one that begins now."""
        if not self._root.is_dir():
            return True
        return all(path.name.endswith(PARTIAL) for path in self._root.iterdir())

    def remove(self, relative: str) -> None:
        """Entry by entry. What others write into a folder meanwhile stays, and so does it."""
        path = self._root / relative
        if path.is_dir() and not path.is_symlink():
            _remove_folder(path)
        else:
            path.unlink(missing_ok=True)
        for parent in path.parents:
            if parent == self._root or not _remove_empty(parent):
                break


def write_file(path: Path, data: bytes) -> None:
    """Write a file for its reader, whole or not at all; its folder is made.

    A link stays, and what it leads to is written; a pipe or a device takes the bytes as they come.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    place = path.resolve()
    LocalFiles(place.parent).write(place.name, data)


def pieces_of(path: Path) -> Iterator[bytes]:
    """The bytes of a file on this machine, PIECE at a time."""
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _make(folder: Path) -> None:
    """Make a folder while other processes remove its parents if they are empty."""
    for tries_left in reversed(range(100)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileNotFoundError, FileExistsError):
            if not tries_left:
                raise
        else:
            return


def _raise_unless_gone(error: OSError) -> None:
    """A folder that vanishes while it is walked is as if it had gone before."""
    if error.errno not in _GONE:
        raise error


def _remove_folder(folder: Path) -> None:
    for place, folders, names in os.walk(folder, topdown=False, onerror=_raise_unless_gone):
        links = [name for name in folders if Path(place, name).is_symlink()]
        for name in (*names, *links):
            Path(place, name).unlink(missing_ok=True)
        try:
            Path(place).rmdir()
        except OSError as error:
            if error.errno not in (*_GONE, *_NOT_EMPTY):
                raise


def _remove_empty(folder: Path) -> bool:
    """Whether it is gone now; asking first whether it is empty would race with other processes."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
