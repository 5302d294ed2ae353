"""A file that is read by ranges, wherever it is, as Python's file objects are read."""

import io
import os
from typing import TYPE_CHECKING

from rlsparse_ray.weights.places import Folder
from rlsparse_ray.weights.spec import FileRef

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BLOCK = 256 << 10
"""Bytes: the pickle of 300 tensors is 30 KB and their zip directory 25 KB, so that a file takes
two or three requests; a smaller block saves no time where a round trip costs 20 ms."""


class RangeFile(io.RawIOBase):
    """Reads blocks and keeps them: for the headers of a file, not for its weights."""

    def __init__(self, folder: Folder, file: FileRef) -> None:
        self._folder, self._file = folder, file
        self._blocks: dict[int, bytes] = {}
        self._at = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The place of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; nothing is read for it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        if start + offset < 0:
            raise ValueError(f"{self._file.path}: byte {start + offset} is before its begin")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill the buffer as far as the current block goes.

        Raises:
            CheckpointError: the file cannot be read.
        """
        number, within = divmod(self._at, _BLOCK)
        if self._at >= self._file.size:
            return 0
        view = memoryview(buffer).cast("B")
        piece = self._block(number)[within : within + len(view)]
        view[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * _BLOCK
            nbytes = min(_BLOCK, self._file.size - start)
            self._blocks[number] = self._folder.read(self._file, start, nbytes)
        return self._blocks[number]
