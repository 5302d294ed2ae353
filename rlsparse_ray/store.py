"""The store: which file holds what, and the commit that makes a pair visible.

STORE is a folder, or a prefix of a bucket: s3://bucket/prefix.

    STORE/store.json
    STORE/pairs/pair_id=ID/pairs.parquet            one row, written last: the commit
    STORE/counts/pair_id=ID/counts.parquet          likewise tensors, strata, margins, steps
    STORE/masks/pair_id=ID/criterion=exact/part-00000.parquet
    STORE/staging/ID/slice-00000-HASH.arrow         finished slices of a pair not yet committed

Every file is written whole under a name that its content determines, so a run that was killed
anywhere is repeated by running it again: finished slices are kept, the rest is overwritten. What is
finished of a pair that fails is kept too, unseen by readers, until it is committed after all or
garbage collection takes it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from rlsparse_ray import tables
from rlsparse_ray.errors import NoStoreError, StoreError
from rlsparse_ray.storage.files import files_at, store_errors
from rlsparse_ray.storage.local_files import pieces_of

FORMAT = "rlsparse_ray"
MARKER = "store.json"
SMALL_TABLES = ("tensors", "counts", "strata", "margins", "steps")
"""Tables with one file a pair."""


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a pair, as its row in `pairs` lists it."""

    path: str
    rows: int
    bytes: int
    xxh3: str


@dataclass(frozen=True, slots=True)
class SliceResult:
    """What a slice found out about one pair: rows of the small tables, and its mask parts."""

    tables: Mapping[str, pa.Table]
    masks: tuple[Part, ...]
    bytes_read: int
    seconds: float


def write_parquet(table: pa.Table, sink: Any) -> None:
    """One way to write Parquet: the same table gives the same bytes."""
    with parquet_writer(sink, table.schema) as writer:
        writer.write_table(table)


def parquet_writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """For a table that comes in pieces: each that is written begins a row group."""
    texts = [f.name for f in schema if pa.types.is_dictionary(f.type)]
    return pq.ParquetWriter(
        sink, schema, compression="zstd", compression_level=1, use_dictionary=texts
    )


class Store:
    """A store that exists."""

    def __init__(self, root: str | Path) -> None:
        self.files = files_at(root)
        self.root = self.files.root

    @classmethod
    def create(cls, root: str | Path) -> "Store":
        """Open a store, making it if the folder is empty or not there; several may at once.

        Raises:
            StoreError: the folder holds something else, or cannot be written.
        """
        store = cls(root)
        _check_place(store.root)
        with store_errors(root):
            if store.files.read(MARKER) is None:
                # looked at again: another run may have made the store just now
                if not store.files.is_empty() and store.files.read(MARKER) is None:
                    raise StoreError(
                        f"{root}: not a store and not empty: name a new or empty folder"
                    )
                marker = {"format": FORMAT, "schema_version": tables.SCHEMA_VERSION}
                store.files.create(MARKER, json.dumps(marker).encode() + b"\n")
        return cls.open(root)

    @classmethod
    def open(cls, root: str | Path) -> "Store":
        """Open an existing store.

        Raises:
            StoreError: there is none, or a newer rlsparse_ray wrote it, or it lies where DuckDB
                would misread it.
        """
        store = cls(root)
        _check_place(store.root)
        with store_errors(root):
            raw = store.files.read(MARKER)
        if raw is None:
            error = NoStoreError(
                f"{root}: no store there (no {MARKER}): `rlsparse extract CORPUS --store {root}` "
                f"makes one"
            )
            error.place = store.root
            raise error
        try:
            marker = json.loads(raw)
        except ValueError as error:
            raise StoreError(f"{root}/{MARKER}: damaged ({error}): restore it") from error
        if not isinstance(marker, dict) or marker.get("format") != FORMAT:
            raise StoreError(
                f"{root}/{MARKER}: not written by rlsparse_ray: name another folder with --store"
            )
        tables.check_version(marker.get("schema_version"), f"{root}/{MARKER}")
        return store

    def committed(self) -> set[str]:
        """Ids of the pairs that readers see."""
        found = self.files.list("pairs")
        return {_pair_of(path) for path in found if path.endswith("/pairs.parquet")}

    def pair_row(self, pair_id: str, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """The committed row of a pair; of all its columns, or of these: six take half the time.

        Raises:
            StoreError: it is not there or damaged, or a newer rlsparse_ray wrote it.
        """
        row = self.only_row(table_path("pairs", pair_id), "extract again", columns)
        if row is None:
            raise StoreError(f"store {self.root}: pair {pair_id} is not committed")
        return row

    def only_row(
        self, path: str, again: str, columns: Sequence[str] | None = None
    ) -> dict[str, Any] | None:
        """The row of a table of one row; None if the file is not there.

        Raises:
            StoreError: it is damaged (`again` ends the advice), or a newer rlsparse_ray wrote it.
        """
        raw = self.files.read(path)
        if raw is None:
            return None
        try:
            # threads that read a Python file object can abort the interpreter when it exits
            file = pq.ParquetFile(pa.BufferReader(raw))
            table = file.read(None if columns is None else list(columns), use_threads=False)
        except pa.ArrowException as error:
            raise StoreError(
                f"{self.root}/{path}: damaged ({error}): remove its folder and {again}"
            ) from error
        tables.check_file(file.schema_arrow, path)
        row: dict[str, Any] = table.to_pylist()[0]
        return row

    def publish_part(self, scratch: Path, relative: str, rows: int) -> Part:
        """Put a finished Parquet file in its place."""
        part = Part(relative, rows, scratch.stat().st_size, xxh3_of(pieces_of(scratch)))
        self.files.publish(scratch, relative)
        return part

    def write_table(self, name: str, pair_id: str, table: pa.Table) -> Part:
        """Write the one file that a pair has in a small table."""
        relative = table_path(name, pair_id)
        scratch = self.files.scratch(f"staging/{pair_id}/{name}")
        write_parquet(table, scratch)
        return self.publish_part(scratch, relative, table.num_rows)

    def stage(self, pair_id: str, key: str, result: SliceResult) -> None:
        """Keep the result of a finished slice: from now on it is not done again."""
        facts = {
            "masks": [[p.path, p.rows, p.bytes, p.xxh3] for p in result.masks],
            "bytes_read": result.bytes_read,
            "seconds": result.seconds,
        }
        schema = pa.schema(
            [("name", pa.string()), ("table", pa.binary())], {b"slice": json.dumps(facts).encode()}
        )
        columns = {
            "name": list(result.tables),
            "table": [_to_ipc(table) for table in result.tables.values()],
        }
        self.files.write(_staged(pair_id, key), _to_ipc(pa.table(columns, schema=schema)))

    def staged(self, pair_id: str, key: str) -> SliceResult | None:
        """The kept result of a slice; None if it has to be done (again)."""
        raw = self.files.read(_staged(pair_id, key))
        result = None if raw is None else _result_of(raw)
        if result is None or any(self.files.size(p.path) != p.bytes for p in result.masks):
            return None
        return result

    def commit(self, pair_id: str, row: Mapping[str, Any], small: Sequence[Part]) -> None:
        """Write the row that makes a pair visible; drop its staging.

        `row` has every column of `pairs`; its `parts` are the mask parts, to which the files of
        the small tables are added.

        Raises:
            StoreError: a file of the pair went meanwhile; it is not visible then.
        """
        masks = sorted(row["parts"], key=lambda part: str(part["path"]))
        listed = [asdict(part) for part in small]
        known = {part["path"] for part in masks}
        unknown = [p for p in self.files.list(f"masks/pair_id={pair_id}") if p not in known]
        if unknown:
            # of a run that cut its slices in another way; if that one has committed, its row
            # must not outlive them
            self.files.remove(table_path("pairs", pair_id))
        for path in unknown:
            self.files.remove(path)
        self.write_pair(pair_id, {**row, "parts": masks + listed})
        self.confirm(pair_id)
        self.drop_staging(pair_id)

    def is_whole(self, pair_id: str) -> bool:
        """Whether a pair is committed and every file of it is there with its size.

        Raises:
            StoreError: its row is damaged, or a newer rlsparse_ray wrote it.
        """
        row = self.only_row(table_path("pairs", pair_id), "extract again", ["parts"])
        if row is None:
            return False
        sizes = self.files.list(f"masks/pair_id={pair_id}")
        sizes |= {path: self.files.size(path) or 0 for path in _small_paths(pair_id)}
        return all(sizes.get(part["path"]) == part["bytes"] for part in row["parts"])

    def confirm(self, pair_id: str) -> None:
        """Take back the row of a pair that was just written if a file that it names is gone.

        Extractions take no lease, so until its row is there anything may clear up after a pair.

        Raises:
            StoreError: one is gone, and the pair is not committed any more.
        """
        if not self.is_whole(pair_id):
            self.files.remove(table_path("pairs", pair_id))
            raise StoreError(
                f"store {self.root}: files of {pair_id} went while it was committed: is something "
                f"else cleaning the store? Run again"
            )

    def write_pair(self, pair_id: str, row: Mapping[str, Any]) -> None:
        """Write the row of a pair in `pairs`, over an older one."""
        self.write_table("pairs", pair_id, tables.to_table("pairs", [row]))

    def staging(self) -> set[str]:
        """What has finished work waiting: ids of pairs, `overlaps`, named masks."""
        return {path.split("/")[1] for path in self.files.list("staging")}

    def drop_staging(self, pair_id: str) -> None:
        """Remove the finished slices of a pair."""
        self.files.remove(f"staging/{pair_id}")


def table_path(name: str, pair_id: str) -> str:
    """Where a small table of a pair lies, relative to the store."""
    return f"{name}/pair_id={pair_id}/{name}.parquet"


def _small_paths(pair_id: str) -> list[str]:
    return [table_path(name, pair_id) for name in SMALL_TABLES]


def mask_path(pair_id: str, criterion: str, number: int) -> str:
    """Where the mask part of a slice lies, relative to the store."""
    return f"masks/pair_id={pair_id}/criterion={criterion}/part-{number:05d}.parquet"


def xxh3_of(pieces: Iterable[bytes]) -> str:
    """XXH3-64 of a file, hex."""
    digest = xxhash.xxh3_64()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _check_place(root: str) -> None:
    """A folder `seed=0` above the tables would become their column `seed`, in every DuckDB."""
    for folder in root.split("/"):
        name, found, _ = folder.partition("=")
        if found and name.lower() in _COLUMNS:
            raise StoreError(
                f"store {root}: DuckDB takes the folder {folder} for the column {name}: "
                f"choose a place without NAME=VALUE in it"
            )


_COLUMNS = {"pair_id", "pair_b", "criterion", "mask"} | {
    column.name
    for schema in (*tables.SCHEMAS.values(), tables.OVERLAPS, tables.SPECTRA)
    for column in schema
}


def _pair_of(path: str) -> str:
    return path.split("pair_id=", 1)[1].split("/", 1)[0]


def _staged(pair_id: str, key: str) -> str:
    return f"staging/{pair_id}/{key}.arrow"


def _result_of(raw: bytes) -> SliceResult | None:
    """What `Store.stage` wrote; None if it was cut short, as a power failure leaves files."""
    try:
        table = pa.ipc.open_stream(raw).read_all()
        facts = json.loads(table.schema.metadata[b"slice"])
        found = {
            row["name"]: pa.ipc.open_stream(row["table"]).read_all() for row in table.to_pylist()
        }
        masks = tuple(Part(*part) for part in facts["masks"])
        # a stream that ends after its schema is one without rows
        whole = found.keys() == set(SMALL_TABLES)
        return SliceResult(found, masks, facts["bytes_read"], facts["seconds"]) if whole else None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        # Arrow raises OSError for bytes that end early
        return None


def _to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data
