"""One slice, from bytes to tables: reads, casts, compares and writes. Knows nothing of Ray."""

import time
from collections.abc import Collection, Hashable, Iterator, Mapping
from contextlib import ExitStack, suppress
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
from rlsparse_ray.masks import MaskWriter
from rlsparse_ray.plan import Slice, SliceTensor
from rlsparse_ray.rows import Rows
from rlsparse_ray.storage.files import store_errors
from rlsparse_ray.store import SliceResult, Store, mask_path
from rlsparse_ray.values import Values, values_of
from rlsparse_ray.weights import DTYPES, FileRef, Reader, ReadRequest, TensorSpec, prefetch
from rlsparse_ray.weights.hub_cache import cache_files

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

    def __init__(self, pair_ids: Collection[str], message: str) -> None:
        super().__init__(message)
        self.pair_ids = pair_ids


def extract_slice(
    piece: Slice, store_root: str, device: str = "cpu", keep: Collection[FileRef] = ()
) -> SliceReport:
    """Do a slice for every pair that does not have it yet.

    A pair whose weights cannot be read is left out and reported; the slice is then done again
    for the others, so that none of their rows depends on it.

    Args:
        piece: the slice.
        store_root: the store.
        device: cpu, cuda, cuda:1, ...
        keep: files of the hub to download whole into its local cache before they are read.

    Raises:
        StoreError: the store cannot be written.
    """
    store = Store.open(store_root)
    backend = backend_for(device)
    failed: dict[str, str] = {}
    nbytes = 0

    def fail(error: _PairError) -> None:
        failed.update(dict.fromkeys(error.pair_ids, str(error)))

    with store_errors(store_root):
        todo = [i for i in piece.pair_ids if store.staged(i, piece.key(i)) is None]
        if keep:
            for error in _keep(piece.only(todo), keep):
                fail(error)
            todo = [i for i in todo if i not in failed]
        while todo:
            run = _SliceRun(piece.only(todo), store, backend)
            try:
                run.finish()
                todo = []
            except _PairError as error:
                fail(error)
                todo = [i for i in todo if i not in error.pair_ids]
            nbytes += run.nbytes
    return SliceReport(nbytes, failed)


def _keep(piece: Slice, keep: Collection[FileRef]) -> Iterator[_PairError]:
    """Download files whole; a file that cannot be had fails the pairs that need it."""
    for file, pair_ids in piece.files.items():
        if file in keep:
            try:
                cache_files([file])
            except CheckpointError as error:
                yield _PairError(pair_ids, str(error))


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
        except BaseException:
            for writer in self.writers.values():
                # on a full disk it cannot write its footer
                with suppress(OSError):
                    writer.close()
                writer.path.unlink(missing_ok=True)
            raise
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
        hold = max(sum(s.values.arrays for s in _sources(t)) for t in self.piece.tensors)
        with Reader() as reader, ExitStack() as stack:
            buffers = prefetch(self._requests(), reader, READ_AHEAD, hold=hold)
            stack.callback(buffers.close)
            for tensor in self.piece.tensors:
                _TensorRun(self, tensor, buffers).finish()

    def _requests(self) -> Iterator[ReadRequest]:
        for tensor in self.piece.tensors:
            sources = _sources(tensor)
            for start in _windows(sources, self.backend.window):
                for source in sources:
                    yield from source.values.requests(*source.range(start, self.backend.window))


class _Source:
    """Values that are read once, for whoever compares them: a base, or tuned sides that share them.

    `pair_ids` are the pairs that fail if it cannot be read.
    """

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self.values: Values = values_of(spec)
        self.pair_ids: dict[str, None] = {}
        self.hash = xxhash.xxh3_64()
        self.window: Raw = np.empty(0, np.uint8)

    def range(self, start: int, window: int) -> tuple[int, int]:
        """The part of a window that it has: empty beyond the end of a shorter side."""
        return min(start, self.spec.numel), min(start + window, self.spec.numel)


def _sources(tensor: SliceTensor) -> list[_Source]:
    """Everything that is read for a tensor, each content once, operands before their users."""
    found: dict[Hashable, _Source] = {}

    def add(spec: TensorSpec, pair_ids: tuple[str, ...]) -> None:
        if spec.content not in found:
            source = _Source(spec)
            for operand in source.values.operands:
                add(operand, pair_ids)
            found[spec.content] = source
        found[spec.content].pair_ids |= dict.fromkeys(pair_ids)

    add(tensor.base, tuple(i for i, _ in tensor.pairs))
    for pair_id, row in tensor.pairs:
        if row.tuned is not None:
            add(row.tuned, (pair_id,))
    return list(found.values())


def _windows(sources: list[_Source], window: int) -> range:
    return range(0, max(1, *(source.spec.numel for source in sources)), window)


class _TensorRun:
    """One base tensor against its tuned ones, window by window."""

    def __init__(self, run: _SliceRun, tensor: SliceTensor, buffers: Iterator[Raw]) -> None:
        self.run = run
        self.tensor = tensor
        self.buffers = buffers
        self.sources = {source.spec.content: source for source in _sources(tensor)}
        self.base = self.sources[tensor.base.content]
        self.scans: dict[tuple[str, int], BaseScan] = {}
        self.sides: dict[Hashable, _TunedSide] = {}
        for pair_id, row in tensor.pairs:
            side = _TunedSide(row, self.sources, run.masked)
            self.sides.setdefault(side.content, side).rows.append((pair_id, row))

    def finish(self) -> None:
        """Compare every window, then add the rows of the tensor."""
        window = self.run.backend.window
        for start in _windows(list(self.sources.values()), window):
            for source in self.sources.values():
                self._read(source, *source.range(start, window))
            loaded: dict[tuple[str, int], Any] = {}
            for side in self.sides.values():
                self._compare(side, start, loaded)
        for pair_id, nbytes in self.tensor.pair_nbytes.items():
            self.run.pair_bytes[pair_id] += nbytes
        for side in self.sides.values():
            scan = self.scans.get(side.key) or BaseScan(side.scan.request)
            hashes = self.base.hash.hexdigest(), side.source.hash.hexdigest()
            for pair_id, row in side.rows:
                self.run.found[pair_id].add_compared(row, scan, side.scan, *hashes)

    def _read(self, source: _Source, start: int, stop: int) -> None:
        """The next window of a source; what cannot be read fails the pairs that need it."""

        def take() -> Raw:
            raw = next(self.buffers)
            self.run.nbytes += raw.nbytes
            return raw

        operands = [self.sources[spec.content].window for spec in source.values.operands]
        try:
            source.window = source.values.take(start, stop, take, operands)
        except CheckpointError as error:
            message = f"tensor {source.spec.name}: {error}"
            raise _PairError(tuple(source.pair_ids), message) from error
        source.hash.update(source.window.data)

    def _compare(self, side: "_TunedSide", start: int, loaded: dict[Any, Any]) -> None:
        backend = self.run.backend
        numel = min(backend.window, side.numel - start)
        if numel <= 0:
            return
        if side.key not in loaded:
            loaded[side.key] = self._load(self.base, side, numel)
            scan = self.scans.setdefault(side.key, BaseScan(side.scan.request))
            scan.add(backend.scan_base(loaded[side.key], side.scan.request))
        base = loaded[side.key]
        tuned = base if side.source is self.base else self._load(side.source, side, numel)
        window = side.scan.compare(backend, base, tuned, numel)
        for pair_id, row in side.rows:
            for k, criterion in enumerate(self.run.piece.criteria):
                self.run.writers[pair_id, criterion].add(
                    row.tensor_key, start // BLOCK, numel, window.block_changed[k], window.bits[k]
                )

    def _load(self, source: _Source, side: "_TunedSide", numel: int) -> Any:
        """The first `numel` values of a window, in the format and place of the comparison."""
        raw = source.window[: numel * DTYPES[source.spec.dtype]]
        bits = cast_bits(raw, source.spec.dtype, side.scan.request.format)
        return self.run.backend.load(bits)


class _TunedSide:
    """The tuned tensor of some pairs while it is compared: one, or several that share it."""

    def __init__(
        self, row: Aligned, sources: Mapping[Any, _Source], masked: tuple[Any, ...]
    ) -> None:
        if row.tuned is None or row.shape is None or row.compare_dtype is None:
            raise ValueError(f"{row.tensor}: a slice holds compared tensors only")
        self.numel = row.numel
        self.source = sources[row.tuned.content]
        self.scan = PairScan(Request(FORMATS[row.compare_dtype], masked), row.shape)
        self.content: Hashable = (row.tuned.content, row.shape, row.compare_dtype)
        self.rows: list[tuple[str, Aligned]] = []

    @property
    def key(self) -> tuple[str, int]:
        """Sides with equal keys share what is known of the base tensor."""
        return self.scan.request.format.name, self.numel
