"""The entries of a patch, read in order and checked, in bounded memory."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from rlsparse_ray.errors import PatchError
from rlsparse_ray.patches.format import AGAIN, INDICES, VALUES, Patch
from rlsparse_ray.patches.windows import Raw, bits, read, width_of
from rlsparse_ray.weights import Reader, ReadRequest

Indices = npt.NDArray[np.int64]
Bits = npt.NDArray[np.unsignedinteger]

_AT_ONCE = 1 << 18
"""Entries read at once: 1 MiB of indices."""


class DamagedEntriesError(PatchError):
    """The entries of `tensor` are not those that the patch was made with."""

    def __init__(self, tensor: str, message: str) -> None:
        super().__init__(message)
        self.tensor = tensor


class Chunk(NamedTuple):
    """Some entries of a tensor."""

    tensor: str
    indices: Indices
    values: Bits
    """Bits of the new values."""

    def below(self, stop: int) -> tuple["Chunk", "Chunk"]:
        """The entries with indices below `stop`, and the others."""
        cut = int(np.searchsorted(self.indices, stop))
        low = Chunk(self.tensor, self.indices[:cut], self.values[:cut])
        return low, Chunk(self.tensor, self.indices[cut:], self.values[cut:])


def chunks(patch: Patch, tensors: Iterable[str], reader: Reader) -> Generator[Chunk]:
    """The entries of some tensors that the patch changes, one tensor after another, ascending.

    Raises:
        DamagedEntriesError: entries that are unsorted, twice or outside their tensor, or of
            another hash; before the last of that tensor are given.
        CheckpointError: the file cannot be read.
    """
    names = list(tensors)
    with closing(read(_requests(patch, names), reader, hold=2)) as arrays:
        for name in names:
            yield from _of_tensor(patch, name, arrays)


def _requests(patch: Patch, names: Iterable[str]) -> Iterator[ReadRequest]:
    for name in names:
        entries = patch.entries[name]
        for start, stop in _parts(entries.indices.numel):
            for spec in entries:
                width = width_of(spec)
                yield ReadRequest(spec.file, spec.offset + start * width, (stop - start) * width)


def _parts(count: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + _AT_ONCE, count)) for start in range(0, count, _AT_ONCE))


def _of_tensor(patch: Patch, name: str, arrays: Iterator[Raw]) -> Iterator[Chunk]:
    entries, record = patch.entries[name], patch.tensors[name]
    wanted = {INDICES: record.indices_xxh3, VALUES: record.values_xxh3}
    hashes = {suffix: xxhash.xxh3_64() for suffix in wanted}
    last = -1
    for _, stop in _parts(entries.indices.numel):
        raw = {INDICES: next(arrays), VALUES: next(arrays)}
        for suffix, array in raw.items():
            hashes[suffix].update(array.data)
        indices = raw[INDICES].view(f"i{width_of(entries.indices)}").astype(np.int64)
        if indices[0] <= last or bool((np.diff(indices) <= 0).any()):
            raise _damaged(patch, name, INDICES, "not in ascending order")
        last = int(indices[-1])
        if last >= record.numel:
            raise _damaged(patch, name, INDICES, f"beyond the {record.numel} elements")
        if stop == entries.indices.numel:
            for suffix, digest in hashes.items():
                if digest.hexdigest() != wanted[suffix]:
                    raise _damaged(patch, name, suffix, f"XXH3 is not {wanted[suffix]}")
        yield Chunk(name, indices, bits(raw[VALUES], width_of(entries.values)))


def _damaged(patch: Patch, name: str, suffix: str, why: str) -> DamagedEntriesError:
    return DamagedEntriesError(name, f"{patch.source}: tensor {name}{suffix}: {why}: {AGAIN}")


class EntryStream:
    """What a patch makes of the windows of a model, which come in order.

    Args:
        patch: the patch.
        tensors: names of tensors, changed or not, in the order in which their windows come.
        reader: an open reader.
    """

    def __init__(self, patch: Patch, tensors: Iterable[str], reader: Reader) -> None:
        changed = (name for name in tensors if name in patch.entries)
        self._chunks = chunks(patch, changed, reader)
        self._next: Chunk | None = None

    def close(self) -> None:
        """Stop reading."""
        self._chunks.close()

    def put(self, tensor: str, window: Raw, start: int, width: int) -> int:
        """Set the entries of a window, in place.

        Args:
            tensor: its name.
            window: bytes of the elements from `start` on.
            start: first element.
            width: bytes an element.

        Returns:
            How many entries had other bits before.

        Raises: as `chunks`.
        """
        elements = bits(window, width)
        changed = 0
        while True:
            if self._next is None or not self._next.indices.size:
                self._next = next(self._chunks, None)
            if self._next is None or self._next.tensor != tensor:
                return changed
            low, self._next = self._next.below(start + elements.size)
            places = low.indices - start
            changed += int(np.count_nonzero(elements[places] != low.values))
            elements[places] = low.values
            if self._next.indices.size:
                return changed
