"""Reading masks back: where the blocks of a tensor lie, and a stream over them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rlsparse_ray.blocks import BLOCK_BYTES
from rlsparse_ray.errors import StoreError
from rlsparse_ray.masks import ROW_GROUP
from rlsparse_ray.storage.files import Files

BATCH = 256
"""Blocks decompressed at a time: a page of `MaskWriter`, 2 MiB of bits a mask. With less, pages of
64 masks in turn fall out of the cache half decoded: 2.4 s instead of 1.8 s for 2 GiB of bits."""

_COLUMNS = ["block", "numel", "changed", "bits"]


@dataclass(frozen=True, slots=True)
class Run:
    """Rows of a part that hold neighbouring blocks of one tensor."""

    part: str
    row: int
    tensor_key: str
    first: int
    blocks: int


def runs_of(files: Files, part: str) -> tuple[list[Run], list[int]]:
    """The runs of a part, in its order, and the row with which each row group begins.

    Raises:
        StoreError: the part is gone, damaged or not in order.
    """
    with _damage(files, part), files.open(part) as source, pq.ParquetFile(source) as file:
        groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        table = file.read(["tensor_key", "block"], use_threads=False)
    starts = np.cumsum([0, *groups])[:-1].tolist()
    if not table.num_rows:
        return [], starts
    keys = table["tensor_key"].combine_chunks()
    names, codes = keys.dictionary.to_pylist(), keys.indices.to_numpy()
    blocks = table["block"].to_numpy()
    cuts = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    found = []
    for start, stop in pairwise(cuts):
        if not (np.diff(blocks[start:stop]) == 1).all():
            raise StoreError(f"{files.root}/{part}: blocks not in order: run rlsparse verify")
        key = names[codes[start]]
        found.append(Run(part, start, key, int(blocks[start]), stop - start))
    return found, starts


@dataclass(frozen=True, slots=True)
class Found:
    """Blocks of one mask where Arrow decoded them; valid as long as this is held."""

    numel: int
    changed: int
    addresses: npt.NDArray[np.uint64]
    """Of the words of each block; a shorter block is padded with zeros."""
    held: tuple[Any, ...]


class MaskStream:
    """The blocks of one mask, tensor after tensor. Reads on as long as rows follow each other."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self._part = ""
        self._at = 0
        self._batch: pa.RecordBatch | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())

    def find(self, runs: Sequence[Run], chosen: npt.NDArray[np.int64]) -> Found:
        """The chosen blocks of a tensor (ascending).

        Raises:
            StoreError: the runs do not hold one of them, or the part is damaged.
        """
        pieces: list[Found] = []
        done = 0
        for run in runs:
            low, high = np.searchsorted(chosen, (run.first, run.first + run.blocks)).tolist()
            while low < high and low == done:
                row = run.row + int(chosen[low]) - run.first
                batch, start = self._batch_with(run.part, row)
                # chosen blocks that this batch holds
                last = run.first + start + batch.num_rows - run.row
                stop = min(high, int(np.searchsorted(chosen, last)))
                rows = chosen[low:stop] - run.first + run.row - start
                pieces.append(
                    _rows_of(batch, rows, chosen[low:stop], f"{self.files.root}/{run.part}")
                )
                low = done = stop
        if done < len(chosen):
            key = runs[0].tensor_key if runs else "a tensor"
            raise StoreError(
                f"{self.files.root}: the mask of {key} lacks block {chosen[done]}: "
                f"run rlsparse verify"
            )
        return pieces[0] if len(pieces) == 1 else _joined(pieces)

    def _batch_with(self, part: str, row: int) -> tuple[pa.RecordBatch, int]:
        """The batch that holds a row, and its first row."""
        with _damage(self.files, part):
            if part != self._part or not 0 <= row - self._at <= ROW_GROUP:
                self._open(part, row)
            while self._batch is None or row >= self._at + self._batch.num_rows:
                self._at += self._batch.num_rows if self._batch is not None else 0
                self._batch = next(self._batches)
        return self._batch, self._at

    def _open(self, part: str, row: int) -> None:
        source = self.files.open(part)
        file = pq.ParquetFile(source, pre_buffer=False, buffer_size=self.files.read_size)
        counts = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        starts = np.cumsum([0, *counts])
        group = int(np.searchsorted(starts, row, side="right")) - 1
        self._part, self._at, self._batch = part, int(starts[group]), None
        self._batches = file.iter_batches(
            BATCH, row_groups=range(group, len(counts)), columns=_COLUMNS, use_threads=False
        )


def batches_of(runs: Sequence[Run], chosen: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Chosen blocks of a mask, cut where its stream takes another batch."""
    starts = np.array([run.first for run in runs])
    rows = (
        chosen
        + np.array([run.row - run.first for run in runs])[
            np.searchsorted(starts, chosen, side="right") - 1
        ]
    )
    return np.split(chosen, np.flatnonzero(np.diff(rows // BATCH)) + 1) if len(chosen) else []


def _rows_of(
    batch: pa.RecordBatch, rows: npt.NDArray[np.int64], blocks: npt.NDArray[np.int64], place: str
) -> Found:
    numbers, numel, changed = (batch.column(k).to_numpy()[rows] for k in range(3))
    bits = batch.column(3)
    _, ends, data = bits.buffers()
    offsets = np.frombuffer(ends, np.int32)[bits.offset : bits.offset + len(bits) + 1]
    starts = offsets[rows].astype(np.uint64)
    sizes = offsets[rows + 1] - offsets[rows]
    if not (np.array_equal(numbers, blocks) and np.array_equal(sizes, -(-numel // 8))):
        raise StoreError(f"{place}: a block is missing or of a wrong length: run rlsparse verify")
    addresses = np.uint64(data.address) + starts
    # words must begin at a multiple of 8, and no block may end before its last word
    odd = np.flatnonzero((sizes != BLOCK_BYTES) | (addresses % 8 != 0))
    padded = np.zeros((len(odd), BLOCK_BYTES), np.uint8)
    for k, at in enumerate(odd.tolist()):
        padded[k, : sizes[at]] = np.frombuffer(data, np.uint8, sizes[at], int(starts[at]))
    addresses[odd] = padded.ctypes.data + np.arange(len(odd), dtype=np.uint64) * BLOCK_BYTES
    return Found(int(numel.sum()), int(changed.sum()), addresses, (batch, padded))


def _joined(pieces: Sequence[Found]) -> Found:
    return Found(
        sum(piece.numel for piece in pieces),
        sum(piece.changed for piece in pieces),
        np.concatenate([piece.addresses for piece in pieces] or [np.empty(0, np.uint64)]),
        tuple(pieces),
    )


class _damage:  # noqa: N801 (reads as a statement)
    """What Arrow and the file system say about a part, as a StoreError."""

    def __init__(self, files: Files, part: str) -> None:
        self.place = f"{files.root}/{part}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, pa.ArrowException | OSError | StopIteration):
            raise StoreError(f"{self.place}: {error}: run rlsparse verify") from error
