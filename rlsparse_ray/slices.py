"""One slice, from bytes to tables: reads, casts, compares and writes. Knows nothing of Ray."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from rlsparse_ray.align import Aligned
from rlsparse_ray.blocks import BLOCK
from rlsparse_ray.compare import (
    FORMATS,
    Backend,
    BaseScan,
    PairScan,
    Request,
    backend_for,
    cast_bits,
    parse_criterion,
)
from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.files import store_errors
from rlsparse_ray.masks import MaskWriter
from rlsparse_ray.plan import Slice, SliceTensor
from rlsparse_ray.rows import Rows
from rlsparse_ray.store import SliceResult, Store, mask_path
from rlsparse_ray.weights import Reader, ReadRequest, TensorSpec, prefetch

Raw = npt.NDArray[np.uint8]

READ_AHEAD = 4
"""Windows read ahead of the maths."""


@dataclass(frozen=True, slots=True)
class SliceReport:
    """What became of a slice: bytes read in this run, and why pairs failed (by pair_id)."""

    nbytes: int
    failed: dict[str, str]


class _PairError(Exception):
    """A side of some pairs cannot be read; the others of the slice go on without them."""

    def __init__(self, pair_ids: tuple[str, ...], message: str) -> None:
        super().__init__(message)
        self.pair_ids = pair_ids


def extract_slice(piece: Slice, store_root: str, device: str = "cpu") -> SliceReport:
    """Do a slice for every pair that does not have it yet.

    A pair whose weights cannot be read is left out and reported; the slice is then done again
    for the others, so that none of their rows depends on it.

    Raises:
        StoreError: the store cannot be written.
    """
    store = Store.open(store_root)
    backend = backend_for(device)
    failed: dict[str, str] = {}
    nbytes = 0
    with store_errors(store_root):
        todo = [i for i in piece.pair_ids if store.staged(i, piece.key(i)) is None]
        while todo:
            run = _SliceRun(piece.only(todo), store, backend)
            try:
                run.finish()
                todo = []
            except _PairError as error:
                failed.update(dict.fromkeys(error.pair_ids, str(error)))
                todo = [i for i in todo if i not in error.pair_ids]
            nbytes += run.nbytes
    return SliceReport(nbytes, failed)


class _SliceRun:
    """One pass over the bytes of a slice."""

    def __init__(self, piece: Slice, store: Store, backend: Backend) -> None:
        self.piece = piece
        self.store = store
        self.backend = backend
        self.masked = tuple(parse_criterion(text) for text in piece.criteria)
        self.nbytes = 0
        self.pair_bytes = dict.fromkeys(piece.pair_ids, 0)
        self.found = {i: Rows() for i in piece.pair_ids}
        self.writers: dict[tuple[str, str], MaskWriter] = {}
        self.started = time.perf_counter()

    def finish(self) -> None:
        """Compare everything, then publish parts and markers, pair by pair."""
        for pair_id in self.piece.pair_ids:
            for criterion in self.piece.criteria:
                path = mask_path(pair_id, criterion, self.piece.number)
                scratch = self.store.files.scratch(f"staging/{pair_id}/{path.replace('/', '~')}")
                self.writers[pair_id, criterion] = MaskWriter(scratch)
        try:
            self._compare_all()
        finally:
            for writer in self.writers.values():
                writer.close()
        seconds = time.perf_counter() - self.started
        for pair_id in self.piece.pair_ids:
            self._publish(pair_id, seconds)

    def _publish(self, pair_id: str, seconds: float) -> None:
        parts = []
        for criterion in self.piece.criteria:
            writer = self.writers[pair_id, criterion]
            path = mask_path(pair_id, criterion, self.piece.number)
            parts.append(self.store.publish_part(writer.path, path, writer.rows))
        result = SliceResult(
            self.found[pair_id].tables(), tuple(parts), self.pair_bytes[pair_id], seconds
        )
        self.store.stage(pair_id, self.piece.key(pair_id), result)

    def _compare_all(self) -> None:
        sides = 1 + max(len(tensor.pairs) for tensor in self.piece.tensors)
        with Reader() as reader, ExitStack() as stack:
            buffers = prefetch(self._requests(), reader, READ_AHEAD, hold=sides)
            stack.callback(buffers.close)  # type: ignore[attr-defined]
            for tensor in self.piece.tensors:
                _TensorRun(self, tensor, buffers).finish()

    def _requests(self) -> Iterator[ReadRequest]:
        for tensor in self.piece.tensors:
            for start in _windows(tensor, self.backend.window):
                for spec in _sides(tensor):
                    yield _range(spec, start, self.backend.window)


class _TensorRun:
    """One base tensor against its tuned ones, window by window."""

    def __init__(self, run: _SliceRun, tensor: SliceTensor, buffers: Iterator[Raw]) -> None:
        self.run = run
        self.tensor = tensor
        self.buffers = buffers
        self.base_hash = xxhash.xxh3_64()
        self.scans: dict[tuple[str, int], BaseScan] = {}
        self.sides = [_TunedSide(i, row, run.masked) for i, row in tensor.pairs]

    def finish(self) -> None:
        """Compare every window, then add the rows of the tensor."""
        everyone = tuple(side.pair_id for side in self.sides)
        for start in _windows(self.tensor, self.run.backend.window):
            base = self._take(self.tensor.base, everyone)
            self.base_hash.update(base.data)
            loaded: dict[tuple[str, int], Any] = {}
            for side in self.sides:
                tuned = self._take(side.spec, (side.pair_id,))
                side.hash.update(tuned.data)
                self._compare(side, start, base, tuned, loaded)
                self.run.pair_bytes[side.pair_id] += base.nbytes + tuned.nbytes
        for side in self.sides:
            scan = self.scans.get(side.key) or BaseScan(side.scan.request)
            self.run.found[side.pair_id].add_compared(
                side.row, scan, side.scan, self.base_hash.hexdigest(), side.hash.hexdigest()
            )

    def _take(self, spec: TensorSpec, pair_ids: tuple[str, ...]) -> Raw:
        """The next buffer; what cannot be read fails the pairs that need it."""
        try:
            raw = next(self.buffers)
        except CheckpointError as error:
            raise _PairError(pair_ids, f"tensor {spec.name}: {error}") from error
        self.run.nbytes += raw.nbytes
        return raw

    def _compare(
        self, side: "_TunedSide", start: int, base: Raw, tuned: Raw, loaded: dict[Any, Any]
    ) -> None:
        backend, fmt = self.run.backend, side.scan.request.format
        numel = min(backend.window, side.row.numel - start)
        if numel <= 0:
            return
        if side.key not in loaded:
            bits = cast_bits(_first(base, self.tensor.base, numel), self.tensor.base.dtype, fmt)
            loaded[side.key] = backend.load(bits)
            scan = self.scans.setdefault(side.key, BaseScan(side.scan.request))
            scan.add(backend.scan_base(loaded[side.key], side.scan.request))
        bits = cast_bits(_first(tuned, side.spec, numel), side.spec.dtype, fmt)
        window = side.scan.compare(backend, loaded[side.key], backend.load(bits), numel)
        for k, criterion in enumerate(self.run.piece.criteria):
            self.run.writers[side.pair_id, criterion].add(
                side.row.tensor_key, start // BLOCK, numel, window.block_changed[k], window.bits[k]
            )


class _TunedSide:
    """The tuned tensor of one pair while it is compared."""

    def __init__(self, pair_id: str, row: Aligned, masked: tuple[Any, ...]) -> None:
        if row.tuned is None or row.shape is None or row.compare_dtype is None:
            raise ValueError(f"{row.tensor}: a slice holds compared tensors only")
        self.pair_id = pair_id
        self.row = row
        self.spec = row.tuned
        self.hash = xxhash.xxh3_64()
        self.scan = PairScan(Request(FORMATS[row.compare_dtype], masked), row.shape)

    @property
    def key(self) -> tuple[str, int]:
        """Pairs with equal keys share what is known of the base tensor."""
        return self.scan.request.format.name, self.row.numel


def _first(raw: Raw, spec: TensorSpec, numel: int) -> Raw:
    return raw[: numel * (spec.nbytes // spec.numel)]


def _sides(tensor: SliceTensor) -> list[TensorSpec]:
    return [tensor.base, *(row.tuned for _, row in tensor.pairs if row.tuned is not None)]


def _windows(tensor: SliceTensor, window: int) -> range:
    return range(0, max(1, *(spec.numel for spec in _sides(tensor))), window)


def _range(spec: TensorSpec, start: int, window: int) -> ReadRequest:
    """Bytes of the values from `start` on; none beyond the end of a shorter side."""
    width = spec.nbytes // max(1, spec.numel)
    first, last = (min(spec.nbytes, n * width) for n in (start, start + window))
    return ReadRequest(spec.file, spec.offset + first, last - first)
