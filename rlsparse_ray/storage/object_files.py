"""A store under a prefix of a bucket."""

import tempfile
import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, PreconditionError

from rlsparse_ray.storage.buckets import bucket, split
from rlsparse_ray.storage.local_files import PIECE, Entry
from rlsparse_ray.storage.object_errors import is_missing, object_errors
from rlsparse_ray.storage.seekable import Seekable, info_of

if TYPE_CHECKING:
    from obstore import ObjectMeta, UpdateVersion

_PART = 8 << 20
"""Bytes in a part of an upload: 10,000 of them, S3's limit, make 80 GiB."""

_UPLOADS = 4
"""Parts of one file uploaded at once."""


class ObjectFiles:
    """A prefix of a bucket. An object is visible once its upload is complete, and never before.

    Every method raises StoreError with what the bucket says and the fix.
    """

    read_size = 1 << 20

    def __init__(self, root: str) -> None:
        place, self._prefix = split(root)
        self.root = f"{place}/{self._prefix}".rstrip("/")
        self._place = place

    @cached_property
    def _bucket(self) -> obstore.store.ObjectStore:
        with object_errors(self.root):
            return bucket(self._place)

    @cached_property
    def _scratches(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="rlsparse-")

    def scratch(self, relative: str) -> Path:
        """A path in a temporary folder (TMPDIR), which is removed together with this."""
        path = Path(self._scratches.name) / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(f"{path.name}.{uuid.uuid4().hex}")

    def publish(self, scratch: Path, relative: str) -> None:
        """Upload it, a large one in parts."""
        with object_errors(self._address(relative)):
            obstore.put(
                self._bucket,
                self._key(relative),
                scratch,
                chunk_size=_PART,
                max_concurrency=_UPLOADS,
            )
        scratch.unlink()

    def create(self, relative: str, data: bytes) -> bool:
        """By a conditional request. False too if an answer was lost and the request repeated."""
        with object_errors(self._address(relative)):
            try:
                obstore.put(self._bucket, self._key(relative), data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def replace(self, relative: str, data: bytes, old: bytes) -> bool:
        """By a request on condition of the ETag of `old`, on Google's cloud of its generation."""
        key = self._key(relative)
        with object_errors(self._address(relative)):
            try:
                found = obstore.get(self._bucket, key)
                if bytes(found.bytes()) != old:
                    return False
                obstore.put(self._bucket, key, data, mode=_version(found.meta))
            except PreconditionError:
                # so it says too if an answer was lost and the request repeated
                return self.read(relative) == data
            except FileNotFoundError as error:
                if is_missing(error):
                    return False
                raise
        return True

    def write(self, relative: str, data: bytes) -> None:
        """In one request."""
        with object_errors(self._address(relative)):
            obstore.put(self._bucket, self._key(relative), data)

    def read(self, relative: str) -> bytes | None:
        """In one request."""
        with object_errors(self._address(relative)):
            try:
                return bytes(obstore.get(self._bucket, self._key(relative)).bytes())
            except FileNotFoundError as error:
                if is_missing(error):
                    return None
                raise

    def pieces(self, relative: str) -> Iterator[bytes]:
        """In one request, which goes on where it broke."""
        with object_errors(self._address(relative)):
            found = obstore.get(self._bucket, self._key(relative))
            for piece in found.stream(min_chunk_size=PIECE):
                yield bytes(piece)

    def open(self, relative: str) -> pa.NativeFile:
        """Each of Arrow's reads is a request."""
        return pa.PythonFile(Seekable(info_of(self._address(relative))), "r")

    def size(self, relative: str) -> int | None:
        """In one request."""
        with object_errors(self._address(relative)):
            try:
                return int(obstore.head(self._bucket, self._key(relative))["size"])
            except FileNotFoundError:
                return None

    def list(self, relative: str) -> dict[str, int]:
        """A request for every 1,000 files."""
        return {path: entry.nbytes for path, entry in self.entries(relative).items()}

    def entries(self, relative: str) -> dict[str, Entry]:
        """A request for every 1,000 files."""
        prefix = self._key(relative)
        with object_errors(self._address(relative)):
            found = [m for page in obstore.list(self._bucket, prefix) for m in page]
        skip = len(self._prefix) + 1 if self._prefix else 0
        return {
            m["path"][skip:]: Entry(m["size"], m["last_modified"].timestamp())
            for m in sorted(found, key=lambda m: m["path"])
        }

    def is_empty(self) -> bool:
        """By the first page of a listing."""
        with object_errors(self.root):
            pages = obstore.list(self._bucket, self._prefix, chunk_size=1)
            return not next(iter(pages), None)

    def remove(self, relative: str) -> None:
        """1,000 objects a request where the service can; none that is missing is an error."""
        keys = [self._key(path) for path in self.list(relative)] or [self._key(relative)]
        with object_errors(self._address(relative)):
            try:
                obstore.delete(self._bucket, keys)
            except FileNotFoundError as error:
                if not is_missing(error):
                    raise

    def _key(self, relative: str) -> str:
        return f"{self._prefix}/{relative}".strip("/")

    def _address(self, relative: str) -> str:
        return f"{self._place}/{self._key(relative)}"


def _version(meta: "ObjectMeta") -> "UpdateVersion":
    """The condition that an object is still the one of `meta`."""
    if meta["version"] is None:
        return {"e_tag": meta["e_tag"]}
    return {"e_tag": meta["e_tag"], "version": meta["version"]}
