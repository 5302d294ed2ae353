"""The small tables of a pair, written as its slices are gone through: none is held whole.

A model of 44,000 matrices has 3 GB of margins under two criteria.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Self

import pyarrow as pa

from rlsparse_ray.store import SMALL_TABLES, Part, Store, parquet_writer, table_path
from rlsparse_ray.tables import SCHEMAS

GROUP_BYTES = 32 << 20
"""Bytes of Arrow in a row group, at most one slice more. Commits peak at four times that."""


def write_small_tables(
    store: Store, pair_id: str, pieces: Iterable[Mapping[str, pa.Table]]
) -> list[Part]:
    """Write the one file that a pair has in each small table.

    The same pieces in the same order give the same bytes.

    Args:
        store: where the files go.
        pair_id: the pair.
        pieces: a part of each small table, in the order of their rows; each is taken once.

    Raises:
        OSError or StoreError: the store cannot be written.
    """
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(_Writer(store, pair_id, name)) for name in SMALL_TABLES
        }
        for piece in pieces:
            for name, writer in writers.items():
                writer.add(piece[name])
        for writer in writers.values():
            writer.finish()
    return [writer.publish() for writer in writers.values()]


class _Writer:
    """One file; its row groups end where they are large enough."""

    def __init__(self, store: Store, pair_id: str, name: str) -> None:
        self._store = store
        self._target = table_path(name, pair_id)
        self._scratch = store.files.scratch(f"staging/{pair_id}/{name}")
        self._waiting = [SCHEMAS[name].empty_table()]
        self._nbytes = 0
        self._rows = 0
        self._file = parquet_writer(self._scratch, SCHEMAS[name])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            self._file.close()
        finally:
            if error is not None:
                self._scratch.unlink(missing_ok=True)

    def add(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._nbytes += table.nbytes
        if self._nbytes >= GROUP_BYTES:
            self._flush()

    def finish(self) -> None:
        # a table without rows has a row group too
        if self._nbytes or not self._rows:
            self._flush()

    def publish(self) -> Part:
        return self._store.publish_part(self._scratch, self._target, self._rows)

    def _flush(self) -> None:
        table = pa.concat_tables(self._waiting).combine_chunks().unify_dictionaries()
        self._file.write_table(table)
        self._rows += table.num_rows
        self._waiting.clear()
        self._nbytes = 0
