"""Whole-file access to a store: what is written appears at once and complete, or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlsparse_ray.errors import StoreError

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


class LocalFiles:
    """A folder. Paths are relative to it, with forward slashes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def scratch(self, relative: str) -> Path:
        """A path to write to before `publish`, on the same file system; its folder exists."""
        path = self.root / relative
        _make(path.parent)
        return path.with_name(f"{path.name}.{os.getpid()}.partial")

    def publish(self, scratch: Path, relative: str) -> None:
        """Put a finished scratch file in its place, over what may be there."""
        target = self.root / relative
        _make(target.parent)
        scratch.replace(target)

    def write(self, relative: str, data: bytes) -> None:
        """Write a small file whole."""
        scratch = self.scratch(relative)
        scratch.write_bytes(data)
        self.publish(scratch, relative)

    def read(self, relative: str) -> bytes | None:
        """The bytes of a file; None if there is none."""
        path = self.root / relative
        return path.read_bytes() if path.is_file() else None

    def size(self, relative: str) -> int | None:
        """Bytes of a file; None if there is none."""
        path = self.root / relative
        return path.stat().st_size if path.is_file() else None

    def list(self, relative: str) -> list[str]:
        """Every file under a folder, sorted."""
        found = (self.root / relative).rglob("*")
        return sorted(p.relative_to(self.root).as_posix() for p in found if p.is_file())

    def remove(self, relative: str) -> None:
        """Remove a file or folder with everything in it, and folders left empty above it."""
        path = self.root / relative
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        for parent in path.parents:
            if parent == self.root or not _remove_empty(parent):
                break


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


def _remove_empty(folder: Path) -> bool:
    """Whether it is gone now; asking first whether it is empty would race with other processes."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
