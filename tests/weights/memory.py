"""A place for models in memory, which counts what is read from it."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from rlsparse_ray.weights import FileRef


class MemoryFolder:
    """The files of a folder on the disk, under addresses of their own."""

    subfolder = ""

    def __init__(self, folder: Path, revision: str | None = None) -> None:
        self.source = f"memory://models/{folder.name}"
        self.revision = revision
        self.contents = {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}
        self.reads: list[tuple[str, int]] = []
        self.before_read: Callable[[], object] = lambda: None

    @property
    def files(self):
        return {
            name: FileRef(
                f"{self.source}/{name}", len(data), hashlib.blake2b(data, digest_size=8).hexdigest()
            )
            for name, data in self.contents.items()
        }

    def read(self, file, offset, nbytes):
        self.before_read()
        name = file.path.rpartition("/")[2]
        self.reads.append((name, nbytes))
        data = self.contents[name][offset : offset + nbytes]
        assert len(data) == nbytes > 0, "a read outside the file"
        return data

    def identity(self, file):
        return file.stamp.encode()
