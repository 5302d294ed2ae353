"""Writes the file of a patch, whose sizes are known at the end only."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy.typing as npt

_COPY = 8 << 20


class Piece(NamedTuple):
    """A tensor of the patch: the indices or values of a tensor of the model."""

    dtype: str
    entries: int
    nbytes: int


@dataclass(slots=True)
class _Spool:
    file: IO[bytes]
    pieces: dict[str, Piece] = field(default_factory=dict)


class Spools:
    """What was found, in temporary files until all is known that the header says.

    The header comes first in the file and has every size. Reading both models twice, to count
    first, would double the longest part of the work, above all from a bucket or the hub; a patch is
    a small part of its model, so it is written twice instead. Indices and values go to files of
    their own, by width: joined from the widest to the narrowest, every tensor is aligned to its
    elements. They have no names: nothing is left of them if the process is killed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._spools: dict[tuple[int, str], _Spool] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def write(self, name: str, suffix: str, dtype: str, array: npt.NDArray[Any]) -> None:
        """Add to the tensor `name` + `suffix`; tensors come one after another."""
        if not array.size:
            return
        key = (-array.itemsize, suffix)
        if key not in self._spools:
            file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (the stack closes it)
            self._spools[key] = _Spool(self._stack.enter_context(file))
        spool = self._spools[key]
        _, entries, nbytes = spool.pieces.get(name + suffix, Piece(dtype, 0, 0))
        spool.file.write(array.data)
        spool.pieces[name + suffix] = Piece(dtype, entries + array.size, nbytes + array.nbytes)

    def pieces(self) -> dict[str, Piece]:
        """By name, in the order of the file."""
        return {name: piece for spool in self._in_order() for name, piece in spool.pieces.items()}

    def join(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the file: the header, then what was spooled.

        Raises:
            OSError: it cannot be written.
        """
        header: dict[str, Any] = {"__metadata__": metadata}
        end = 0
        for name, (dtype, entries, nbytes) in self.pieces().items():
            offsets = [end, end + nbytes]
            header[name] = {"dtype": dtype, "shape": [entries], "data_offsets": offsets}
            end += nbytes
        raw = json.dumps(header, separators=(",", ":")).encode()
        # as the safetensors library does it: the data begins at a multiple of 8
        raw += b" " * (-len(raw) % 8)
        with path.open("wb") as out:
            out.write(len(raw).to_bytes(8, "little") + raw)
            for spool in self._in_order():
                spool.file.seek(0)
                shutil.copyfileobj(spool.file, out, _COPY)

    def _in_order(self) -> Iterator[_Spool]:
        return (self._spools[key] for key in sorted(self._spools))
