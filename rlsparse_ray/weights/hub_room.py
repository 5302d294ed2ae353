"""Room on a disk for what several processes of a node download into one local cache.

Each claims the bytes of its file before it begins, so that together they do not fill the disk
that each found empty enough. A claim is a locked file: it ends with its process, however that ends.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlsparse_ray.weights.spec import FileRef

_KEPT_FREE = 0.05
"""Of the disk, for stores and whoever else writes; Ray stops storing objects beyond 95 %."""


@contextmanager
def room_for(file: FileRef, folder: Path) -> Iterator[bool]:
    """Whether a folder has room for a file; while the block lasts nobody else is given it.

    Several may claim the same file: it is downloaded once.

    Raises:
        OSError: the folder cannot be written.
    """
    # huggingface_hub passes this folder over when it looks for models
    claims = folder / ".locks" / "rlsparse"
    claims.mkdir(parents=True, exist_ok=True)
    mine = claims / f"{file.stamp}.claim"
    with _alone(claims):
        taken = sum(_claimed(path) for path in claims.glob("*.claim") if path != mine)
        disk = shutil.disk_usage(folder)
        # what others have on the disk already counts twice: they may get less, never more
        fits = file.size + taken <= disk.free - _KEPT_FREE * disk.total
        claim = _open(mine) if fits else -1
        if fits:
            fcntl.flock(claim, fcntl.LOCK_SH)
            os.pwrite(claim, b"%d" % file.size, 0)
    try:
        yield fits
    finally:
        if fits:
            os.close(claim)
            with suppress(OSError), _alone(claims):
                _claimed(mine)


@contextmanager
def _alone(claims: Path) -> Iterator[None]:
    lock = _open(claims / "lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _claimed(path: Path) -> int:
    """The bytes of a claim; one that nobody holds any more is removed."""
    claim = _open(path)
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return 0
    except BlockingIOError:
        return int(os.pread(claim, 20, 0) or 0)
    finally:
        os.close(claim)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
