"""The mask parts of a slice: bits in blocks, streamed to Parquet in bounded memory."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rlsparse_ray import tables
from rlsparse_ray.blocks import BLOCK, BLOCK_BYTES, blocks_of

ROW_GROUP = 1024
"""Blocks in a row group: 8 MiB of bits held in memory for each open mask."""


class MaskWriter:
    """Writes one Parquet file of the table `masks`; the same bits give the same bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._writer = pq.ParquetWriter(
            path,
            tables.MASKS,
            compression="zstd",
            compression_level=1,
            use_dictionary=["tensor_key"],
            write_statistics=["tensor_key", "block", "changed"],
            # pages of 2 MiB: else a page is a row group, and each mask being read holds 12 MiB
            write_batch_size=256,
        )
        self._bits = np.empty(ROW_GROUP * BLOCK_BYTES, np.uint8)
        self._ends: list[int] = [0]
        self._columns: dict[str, list[Any]] = {}
        self._reset()

    def _reset(self) -> None:
        self._ends = [0]
        self._columns = {"tensor_key": [], "block": [], "numel": [], "changed": []}

    def add(
        self,
        tensor_key: str,
        first_block: int,
        numel: int,
        changed: npt.NDArray[np.int32],
        bits: npt.NDArray[np.uint8],
    ) -> None:
        """Add the blocks of one window: changed [blocks], bits [ceil(numel / 8)] uint8."""
        block = 0
        while block < blocks_of(numel):
            # only the last block of a tensor is short, so the others are copied in one go
            taken = min(blocks_of(numel) - block, ROW_GROUP + 1 - len(self._ends))
            part = bits[block * BLOCK_BYTES : (block + taken) * BLOCK_BYTES]
            at = self._ends[-1]
            self._bits[at : at + part.size] = part
            ends = range(at + BLOCK_BYTES, at + taken * BLOCK_BYTES, BLOCK_BYTES)
            self._ends += [*ends, at + part.size]
            sizes = [BLOCK] * (taken - 1)
            self._columns["tensor_key"] += [tensor_key] * taken
            self._columns["block"] += range(first_block + block, first_block + block + taken)
            self._columns["numel"] += [*sizes, min(BLOCK, numel - (block + taken - 1) * BLOCK)]
            self._columns["changed"] += changed[block : block + taken].tolist()
            block += taken
            if len(self._ends) > ROW_GROUP:
                self._flush()

    def _flush(self) -> None:
        rows = len(self._ends) - 1
        if not rows:
            return
        offsets = pa.py_buffer(np.array(self._ends, np.int32))
        data = pa.py_buffer(self._bits[: self._ends[-1]])
        columns = {
            name: pa.array(values, tables.MASKS.field(name).type)
            for name, values in self._columns.items()
        }
        columns["bits"] = pa.Array.from_buffers(pa.binary(), rows, [None, offsets, data])
        self._writer.write_table(pa.table(columns, schema=tables.MASKS), row_group_size=ROW_GROUP)
        self.rows += rows
        self._reset()

    def close(self) -> None:
        """Write what is left and the footer; the file is complete after that."""
        self._flush()
        self._writer.close()
