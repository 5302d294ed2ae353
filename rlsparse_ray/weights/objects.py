"""Models in object storage: s3://, gs:// and az:// folders, read by ranges."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import obstore
from numpy.typing import NDArray
from obstore.exceptions import BaseError

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.storage.buckets import bucket, flaw, split
from rlsparse_ray.storage.object_errors import fix, is_missing, said
from rlsparse_ray.weights.spec import FileRef

if TYPE_CHECKING:
    from obstore import ObjectMeta

_PIECE = 1 << 20
"""Bytes taken from the connection at a time: what a read holds besides the caller's buffer."""

_PERHAPS_REPLACED = ("code: 416 ", "body error")
"""In messages of obstore: the object is shorter now; it was another one when a body that broke was
asked for again."""


def open_objects(address: str) -> "ObjectFolder":
    """List a model's folder in a bucket: one request a thousand files.

    Args:
        address: s3://bucket/prefix, gs://bucket/prefix or az://container/prefix.

    Raises:
        CheckpointError: there is no such bucket, nothing under the prefix, no access, or no
            answer; the message says what to do.
    """
    if why := flaw(address):
        raise CheckpointError(f"{address}: {why}")
    place, key = split(address)
    source = f"{place}/{key}" if key else place
    with _model_errors(source):
        listed = obstore.list_with_delimiter(bucket(place), key or None)
    files = {_name(meta): _ref(place, meta) for meta in listed["objects"] if _name(meta)}
    if not files:
        below = ", ".join(sorted(p.rpartition("/")[2] for p in listed["common_prefixes"])[:3])
        found = f"only folders ({below})" if below else "nothing there"
        raise CheckpointError(f"{source}: no such folder ({found}): check the bucket and prefix")
    return ObjectFolder(source, dict(sorted(files.items())))


class ObjectFolder:
    """A folder as it was when it was listed."""

    revision = None
    subfolder = ""

    def __init__(self, source: str, files: Mapping[str, FileRef]) -> None:
        self.source = source
        self.files = files
        self._ranges = ObjectRanges()

    def read(self, file: FileRef, offset: int, nbytes: int) -> bytes:
        """A range of a file.

        Raises:
            CheckpointError: it is gone, replaced or shorter, or the service does not give it.
        """
        buffer = bytearray(nbytes)
        self._ranges.read_into(file, offset, memoryview(buffer))
        return bytes(buffer)

    def identity(self, file: FileRef) -> bytes:
        """The ETag: the hash of the content, or of the parts that were uploaded."""
        return file.stamp.encode()


class ObjectRanges:
    """Reads ranges of objects; one request each, repeated as `rlsparse_ray.storage.retry` says."""

    def read_into(self, file: FileRef, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `file` from `offset` on.

        Raises:
            CheckpointError: the object is gone, is another one than at planning, ends early, or
                the service does not give it.
        """
        target = np.frombuffer(buffer, np.uint8)
        if not target.nbytes:
            return
        with _model_errors(file.path):
            done = _read(file, offset, target)
        if done < target.nbytes:
            raise CheckpointError(
                f"{file.path}: ends at byte {offset + done}, but {target.nbytes} bytes from "
                f"{offset} on were promised: it was cut; restore it and run again"
            )

    def close(self) -> None:
        """Nothing to give back: connections belong to the bucket, which the process keeps."""


def _read(file: FileRef, offset: int, target: NDArray[np.uint8]) -> int:
    """Fill `target` as far as the object goes; the bytes that it had."""
    place, key = split(file.path)
    done = 0
    try:
        answer = obstore.get(
            bucket(place), key, options={"range": (offset, offset + target.nbytes)}
        )
        _check_same(file, answer.meta)
        for piece in answer.stream(_PIECE):
            # numpy copies without the GIL, which the other reading threads need
            target[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
    except BaseError as error:
        if any(word in str(error) for word in _PERHAPS_REPLACED):
            _check_same(file, obstore.head(bucket(place), key))
        raise
    return done


def _name(meta: "ObjectMeta") -> str:
    """The plain name; empty for the marker of the folder itself."""
    return meta["path"].rpartition("/")[2]


def _ref(place: str, meta: "ObjectMeta") -> FileRef:
    return FileRef(f"{place}/{meta['path']}", meta["size"], _stamp(meta))


def _stamp(meta: "ObjectMeta") -> str:
    """The ETag, or the time where a service gives none."""
    # some services quote it in one answer and not in the next
    return (meta["e_tag"] or meta["last_modified"].isoformat()).strip('"')


def _check_same(file: FileRef, meta: "ObjectMeta") -> None:
    """Compared here and not by If-Match, which some services of the S3 kind ignore."""
    if (meta["size"], _stamp(meta)) != (file.size, file.stamp):
        raise CheckpointError(
            f"{file.path}: changed between plan and read ({file.size} bytes, ETag {file.stamp} "
            f"then; {meta['size']} bytes, ETag {_stamp(meta)} now): run again when nothing "
            "writes to it"
        )


@contextmanager
def _model_errors(address: str) -> Iterator[None]:
    """Turn what obstore raises within the block into a CheckpointError about `address`."""
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        if isinstance(error, FileNotFoundError) and is_missing(error):
            why = "no such object, though it was listed: restore it and run again"
        else:
            why = f"{said(error)}: {fix(address, error)}"
        raise CheckpointError(f"{address}: {why}") from error
