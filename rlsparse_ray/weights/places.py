"""What a place with models can do: tell its files, and read ranges of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from rlsparse_ray.weights.spec import FileRef


class Folder(Protocol):
    """The files of one model, at one revision, wherever they are."""

    @property
    def source(self) -> str:
        """The normalised address, without the revision: what messages call the model."""

    @property
    def revision(self) -> str | None:
        """The commit sha; None where there are none, so that a fingerprint has to be made."""

    @property
    def subfolder(self) -> str:
        """Folder within the repository; empty for its root and where there are no revisions."""

    @property
    def files(self) -> Mapping[str, FileRef]:
        """The files of the folder (not of folders in it) by their plain names, sorted."""

    def read(self, file: FileRef, offset: int, nbytes: int) -> bytes:
        """A range of a file, complete. Thread-safe: headers of many files are read at once.

        Raises:
            CheckpointError: it cannot be read; the message names the file and the fix.
        """

    def identity(self, file: FileRef) -> bytes:
        """What tells a file from others of its name, size and header: part of the fingerprint.

        The ETag in object storage. Not asked for where `revision` is a commit.
        """


class Ranges(Protocol):
    """Reads ranges of the files of one kind of place. Thread-safe."""

    def read_into(self, file: FileRef, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `file` from `offset` on.

        Raises:
            CheckpointError: the file is gone, not the one of the plan, or ends early.
        """

    def close(self) -> None:
        """Give back what is open."""


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """A range of bytes of one file."""

    file: FileRef
    offset: int
    nbytes: int
