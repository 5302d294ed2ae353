"""Files of a pass over the geometry of updates: what is staged, and what each pair has.

    STORE/spectra/pair_id=ID/spectra.parquet     one a pair, with a hash of its rows inside
    STORE/staging/spectra/unit-HASH.arrow        rows of a finished unit, of several pairs

A pass that was killed anywhere goes on where it stopped: the same command cuts the same units, and
leaves out those whose rows are staged.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from rlsparse_ray.errors import StoreError
from rlsparse_ray.store import Store, write_parquet
from rlsparse_ray.tables import SPECTRA, check_file, to_table

Row = dict[str, Any]

STAGING = "staging/spectra"
"""Where finished units wait, relative to the store."""

_HASH = b"rlsparse_rows_xxh3"
_STAGED = SPECTRA.insert(0, pa.field("pair_id", pa.string()))


def spectra_path(pair_id: str) -> str:
    """Where the spectra of a pair lie, relative to the store."""
    return f"spectra/pair_id={pair_id}/spectra.parquet"


def stage_rows(store: Store, name: str, rows: Mapping[str, Sequence[Row]]) -> None:
    """Keep the rows of a finished unit, by pair_id."""
    every = [{"pair_id": pair_id, **row} for pair_id, some in rows.items() for row in some]
    columns = {f.name: [row[f.name] for row in every] for f in _STAGED}
    table = pa.table({f.name: pa.array(columns[f.name], f.type) for f in _STAGED})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    store.files.write(f"{STAGING}/{name}.arrow", sink.getvalue().to_pybytes())


def staged_rows(store: Store) -> dict[str, list[Row]]:
    """What finished units of passes that did not end have left, by pair_id."""
    found: dict[str, list[Row]] = defaultdict(list)
    for path in store.files.list(STAGING):
        raw = store.files.read(path) if path.endswith(".arrow") else None
        if raw is not None:
            for row in pa.ipc.open_stream(raw).read_all().to_pylist():
                found[row.pop("pair_id")].append(row)
    return found


def kept_rows(store: Store, pair_id: str) -> list[Row]:
    """The committed rows of a pair; none if it has no file.

    Raises:
        StoreError: the file is damaged, or a newer rlsparse_ray wrote it.
    """
    path = spectra_path(pair_id)
    raw = store.files.read(path)
    if raw is None:
        return []
    again = f"remove {store.root}/spectra/pair_id={pair_id} and run rlsparse spectra again"
    try:
        table = pq.ParquetFile(pa.BufferReader(raw)).read(use_threads=False)
    except pa.ArrowException as error:
        raise StoreError(f"{store.root}/{path}: damaged ({error}): {again}") from error
    check_file(table.schema, path)
    rows: list[Row] = table.to_pylist()
    if (table.schema.metadata or {}).get(_HASH) != _hash_of(rows):
        raise StoreError(f"{store.root}/{path}: contents have changed (XXH3 differs): {again}")
    return rows


def write_rows(store: Store, pair_id: str, rows: Iterable[Row], order: Sequence[str]) -> None:
    """Replace the file of a pair by rows in the order of tensor keys, and of matrices in each."""
    place = {key: number for number, key in enumerate(order)}
    ordered = sorted(rows, key=lambda row: (place[row["tensor_key"]], row["matrix"]))
    table = to_table("spectra", ordered)
    # as they are read back, so that the hash is of what the file holds
    metadata = {**(table.schema.metadata or {}), _HASH: _hash_of(table.to_pylist())}
    scratch = store.files.scratch(f"{STAGING}/{pair_id}")
    write_parquet(table.replace_schema_metadata(metadata), scratch)
    store.files.publish(scratch, spectra_path(pair_id))


def pairs_with_spectra(store: Store) -> list[str]:
    """Ids of the pairs that have a file."""
    found = store.files.list("spectra")
    ids = [path.split("pair_id=", 1)[1].split("/", 1)[0] for path in found if "pair_id=" in path]
    return [pair_id for pair_id in ids if spectra_path(pair_id) in found]


def _hash_of(rows: Sequence[Row]) -> bytes:
    """Of the values, to the last bit: `repr` of a float gives it back."""
    return xxhash.xxh3_64_hexdigest(json.dumps(rows).encode()).encode()
