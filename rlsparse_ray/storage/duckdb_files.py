"""Object storage for DuckDB: its httpfs extension where that can be loaded, else obstore."""

import re
from collections.abc import Iterable
from datetime import datetime
from itertools import takewhile
from typing import Any

import duckdb
import obstore
from fsspec import AbstractFileSystem
from fsspec.utils import glob_translate

from rlsparse_ray.errors import StoreError
from rlsparse_ray.storage.buckets import bucket, split
from rlsparse_ray.storage.httpfs import load_httpfs
from rlsparse_ray.storage.object_errors import object_errors
from rlsparse_ray.storage.seekable import ObjectInfo, Seekable, info_of

_MAGIC = re.compile(r"[*?\[]")
_ESCAPED = re.compile(r"\[([*?\[])\]")
"""A character of patterns that is meant as it is: `[*]`."""


def reach_bucket(con: duckdb.DuckDBPyConnection, address: str) -> None:
    """Let a session read what is in a bucket; queries and paths are the same either way."""
    if not load_httpfs(con, address):
        con.register_filesystem(ObjectFileSystem(address))


class ObjectFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """What DuckDB asks of a file system: to find files, and to read them at random.

    A session looks at each file once, and at those of a table all at once: DuckDB asks for every
    file of every view when it begins, which by one request each took 112 of 198 requests for a
    store of 16 pairs. If a file is replaced after that, the next read of it fails
    and the one after that sees the new file, so no answer mixes the two.
    """

    cachable = False

    def __init__(self, root: str) -> None:
        super().__init__()
        self.protocol = root.partition("://")[0]
        self._root = f"{root}/"
        self._tables: set[str] = set()
        self._known: dict[str, ObjectInfo] = {}

    def open(self, path: str, mode: str = "rb", **_: Any) -> "_SessionFile":
        """A file to read.

        Raises:
            StoreError: it is to be written, or cannot be read.
        """
        if set(mode) & set("wax+"):
            raise StoreError(f"{path}: a session over a store only reads it")
        return _SessionFile(self._info(path), self._known)

    def glob(self, path: str, **_: Any) -> list[str]:
        """The addresses that a pattern stands for, sorted: `*`, `?`, `[ab]`, and `**` for any path.

        A path without a pattern is one request, or none if the file is known; all others are one
        request for each 1,000 files below the folder in which the pattern begins.
        """
        segments = path.split("/")
        plain = list(takewhile(lambda each: not _MAGIC.search(_ESCAPED.sub("", each)), segments))
        literal = _ESCAPED.sub(r"\1", "/".join(plain))
        if plain == segments:
            return [literal] if self.exists(literal) else []
        matches = re.compile(glob_translate(path)).match
        found = {info.address: info for info in _listed(literal) if matches(info.address)}
        self._known |= found
        return sorted(found)

    def exists(self, path: str, **_: Any) -> bool:
        """Whether there is such a file."""
        try:
            self._info(path)
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return False
            raise
        return True

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, size and type of a file, as fsspec names them."""
        info = self._info(path)
        return {"name": info.address, "size": info.size, "type": "file"}

    def size(self, path: str) -> int:
        """Bytes of a file."""
        return self._info(path).size

    def modified(self, path: str) -> datetime:
        """When a file was written."""
        return self._info(path).modified

    def _info(self, path: str) -> ObjectInfo:
        if path not in self._known:
            self._list_table(path)
        if path not in self._known:
            self._known[path] = info_of(path)
        return self._known[path]

    def _list_table(self, path: str) -> None:
        """Look at every file of the table that a path is of, once."""
        table = path.removeprefix(self._root).partition("/")[0]
        if path.startswith(self._root) and table not in self._tables:
            self._tables.add(table)
            self._known |= {info.address: info for info in _listed(self._root + table)}


class _SessionFile(Seekable):
    """A file that is looked at anew after a read of it has failed."""

    def __init__(self, info: ObjectInfo, known: dict[str, ObjectInfo]) -> None:
        super().__init__(info)
        self._known = known

    def read(self, size: int | None = -1) -> bytes:
        try:
            return super().read(size)
        except StoreError:
            self._known.pop(self.info.address, None)
            raise


def _listed(folder: str) -> Iterable[ObjectInfo]:
    place, prefix = split(folder)
    with object_errors(folder):
        for page in obstore.list(bucket(place), prefix):
            for meta in page:
                address = f"{place}/{meta['path']}"
                yield ObjectInfo(address, meta["size"], meta["last_modified"], meta["e_tag"])
