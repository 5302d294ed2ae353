"""Is the store what it says it is? Audits in SQL, and every listed file against its hash."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from rlsparse_ray.errors import QueryError, StoreError
from rlsparse_ray.population.named_masks import named_mask_row, named_masks
from rlsparse_ray.population.spectra_files import kept_rows, pairs_with_spectra, spectra_path
from rlsparse_ray.sql import connect, run_audits
from rlsparse_ray.storage.files import store_errors
from rlsparse_ray.store import Store, xxh3_of

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `check` is the name of an audit, or `files`.

    `pair_id` is `mask NAME` where it is not a pair but a named mask.
    """

    check: str
    pair_id: str
    problem: str


def verify(store_root: str | Path, progress: Progress = lambda nbytes: None) -> list[Finding]:
    """Everything that is wrong with a store; an empty list if all is well.

    Files come first: a damaged one makes the audits that read it fail, which is reported too.
    `progress` is called with the bytes hashed since the last call.

    Raises:
        StoreError: there is no store, or nothing is committed in it.
    """
    store = Store.open(store_root)
    with store_errors(store_root):
        findings = list(_files(store, progress))
    try:
        with connect(store_root) as con:
            findings += audit(con)
    except StoreError as error:
        if not findings:
            raise
        findings.append(Finding("audits", "", f"cannot begin: {error}"))
    return findings


def audit(con: duckdb.DuckDBPyConnection) -> Iterator[Finding]:
    """What the audits find; that one cannot run is a finding too."""
    try:
        for name, rows in run_audits(con):
            for row in rows.to_pylist():
                text = ", ".join(f"{k} {v}" for k, v in row.items() if k != "pair_id")
                yield Finding(name, str(row.get("pair_id", "")), text)
    except QueryError as error:
        yield Finding("audits", "", f"cannot go on: {error}")


def _files(store: Store, progress: Progress) -> Iterator[Finding]:
    sizes = store.files.list("")
    for pair_id in sorted(store.committed()):
        try:
            parts = store.pair_row(pair_id)["parts"]
        except StoreError as error:
            yield Finding("files", pair_id, str(error))
            continue
        fix = f"remove {store.root}/pairs/pair_id={pair_id} and extract again"
        for problem in _damaged(store, parts, sizes, progress):
            yield Finding("files", pair_id, f"{problem}; {fix}")
    yield from _named(store, sizes, progress)
    for pair_id in pairs_with_spectra(store):
        try:
            kept_rows(store, pair_id)
        except StoreError as error:
            yield Finding("files", pair_id, str(error))
        progress(sizes.get(spectra_path(pair_id), 0))


def _named(store: Store, sizes: Mapping[str, int], progress: Progress) -> Iterator[Finding]:
    for name in named_masks(store):
        try:
            row = named_mask_row(store, name)
        except StoreError as error:
            yield Finding("files", f"mask {name}", str(error))
            continue
        fix = f"remove {store.root}/named_masks/mask={name} and keep the mask again"
        for problem in _damaged(store, row["parts"] if row else [], sizes, progress):
            yield Finding("files", f"mask {name}", f"{problem}; {fix}")


def _damaged(
    store: Store, parts: list[dict[str, Any]], sizes: Mapping[str, int], progress: Progress
) -> Iterator[str]:
    for part in parts:
        size = sizes.get(part["path"])
        if size is None:
            problem = "missing"
        elif size != part["bytes"]:
            problem = f"{size} bytes instead of {part['bytes']}"
        elif xxh3_of(store.files.pieces(part["path"])) != part["xxh3"]:
            problem = "contents have changed (XXH3 differs)"
        else:
            problem = ""
        progress(part["bytes"])
        if problem:
            yield f"{part['path']}: {problem}"
