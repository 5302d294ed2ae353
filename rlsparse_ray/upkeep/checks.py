"""Is the store what it says it is? Audits in SQL, and every listed file against its hash."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

from rlsparse_ray.errors import QueryError, StoreError
from rlsparse_ray.population.named_masks import named_mask_row, named_masks
from rlsparse_ray.population.spectra_files import kept_rows, pairs_with_spectra, spectra_path
from rlsparse_ray.progress import Progress, silent
from rlsparse_ray.sql import connect, run_audits
from rlsparse_ray.storage.files import store_errors
from rlsparse_ray.store import Store, table_path, xxh3_of


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `check` is the name of an audit, or `files`.

    `pair_id` is `mask NAME` where it is not a pair but a named mask.
    """

    check: str
    pair_id: str
    problem: str


def verify(store_root: str | Path, progress: Progress = silent) -> list[Finding]:
    """Everything that is wrong with a store; an empty list if all is well.

    Files come first: a damaged one makes the audits that read it fail, which is reported too. An
    extraction may commit meanwhile, and gc remove: neither is taken for damage.
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
    subjects = [*_pairs(store), *_named(store)]
    rows = [_row_or_error(subject) for subject in subjects]
    # after the rows: of what is committed from now on nothing is known yet
    sizes = store.files.list("")
    for subject, row in zip(subjects, rows, strict=True):
        if isinstance(row, StoreError):
            yield Finding("files", subject.title, str(row))
        elif row is not None:
            for problem in _problems(store, subject, row["parts"], sizes, progress):
                yield Finding("files", subject.title, f"{problem}; {subject.fix}")
    for pair_id in pairs_with_spectra(store):
        try:
            kept_rows(store, pair_id)
        except StoreError as error:
            yield Finding("files", pair_id, str(error))
        progress(sizes.get(spectra_path(pair_id), 0))


@dataclass(frozen=True, slots=True)
class _Subject:
    """What has a row that lists files: a pair or a named mask."""

    title: str
    fix: str
    read: Callable[[], dict[str, Any] | None]
    """Its row as it is now; None if it has none any more."""


def _pairs(store: Store) -> Iterator[_Subject]:
    for pair_id in sorted(store.committed()):
        fix = f"remove {store.root}/pairs/pair_id={pair_id} and extract again"
        read = partial(store.only_row, table_path("pairs", pair_id), "extract again")
        yield _Subject(pair_id, fix, read)


def _named(store: Store) -> Iterator[_Subject]:
    for name in named_masks(store):
        fix = f"remove {store.root}/named_masks/mask={name} and keep the mask again"
        yield _Subject(f"mask {name}", fix, partial(named_mask_row, store, name))


def _row_or_error(subject: _Subject) -> dict[str, Any] | StoreError | None:
    try:
        return subject.read()
    except StoreError as error:
        return error


def _problems(
    store: Store,
    subject: _Subject,
    parts: list[dict[str, Any]],
    sizes: Mapping[str, int],
    progress: Progress,
) -> list[str]:
    """What is wrong with listed files, if the row still lists them once that is known."""
    found = list(_damaged(store, parts, sizes, progress))
    while found:
        row = subject.read()
        if row is None:
            # a superseded revision that was removed meanwhile
            return []
        if row["parts"] == parts:
            return found
        parts = row["parts"]
        now = {part["path"]: store.files.size(part["path"]) for part in parts}
        sizes = {path: size for path, size in now.items() if size is not None}
        found = list(_damaged(store, parts, sizes, silent))
    return []


def _damaged(
    store: Store, parts: list[dict[str, Any]], sizes: Mapping[str, int], progress: Progress
) -> Iterator[str]:
    for part in parts:
        size = sizes.get(part["path"])
        if size is None:
            problem = "missing"
        elif size != part["bytes"]:
            problem = f"{size} bytes instead of {part['bytes']}"
        else:
            problem = _changed(store, part)
        progress(part["bytes"])
        if problem:
            yield f"{part['path']}: {problem}"


def _changed(store: Store, part: Mapping[str, Any]) -> str:
    """What is wrong with the contents of a file; empty if nothing."""
    try:
        same = xxh3_of(store.files.pieces(part["path"])) == part["xxh3"]
    except (OSError, StoreError):
        if store.files.size(part["path"]) is not None:
            raise
        return "missing"
    return "" if same else "contents have changed (XXH3 differs)"
