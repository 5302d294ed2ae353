"""Subnetworks out of a store: the mask of a pair, or one that was kept under a name."""

import difflib
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlsparse_ray.blocks import BLOCK_BYTES, blocks_of
from rlsparse_ray.compare.criteria import parse_criterion
from rlsparse_ray.compare.popcount import gather
from rlsparse_ray.errors import QueryError, StoreError
from rlsparse_ray.population.mask_parts import BATCH, MaskStream, Run, runs_of
from rlsparse_ray.population.named_masks import named_mask_row, named_masks
from rlsparse_ray.sql import connect
from rlsparse_ray.storage.files import store_errors
from rlsparse_ray.store import Store, table_path
from rlsparse_ray.training.subnetwork import Bits, Subnetwork, TensorMask

_MASK = "mask:"

Shape = tuple[int, ...]


def load_subnetwork(store: str | Path, name: str, criterion: str = "exact") -> Subnetwork:
    """The weights that a pair changed, or those of a mask that was kept.

    Every tensor that was compared is in it; one that did not change is frozen as a whole. Of an
    embedding or a head of which only the first rows were compared, the other rows of the base model
    are frozen. Needs a bit a parameter.

    Args:
        store: the store, a folder or an address.
        name: name or pair_id of a pair, or `mask:NAME` for a mask of the table named_masks.
        criterion: the rule that says "changed", of a pair; a kept mask has its own.

    Raises:
        QueryError: no pair or mask of that name, several pairs of it, no such criterion.
        StoreError: there is no store, no masks of the criterion are kept, or they are damaged.
    """
    place = Store.open(store)
    with store_errors(store):
        if name.startswith(_MASK):
            return _named(place, name.removeprefix(_MASK))
        return _of_pair(place, _pair_id(store, name), criterion)


def _pair_id(store: str | Path, name: str) -> str:
    """The current pair of a name, or any pair by its id."""
    with connect(store) as con:
        ids = {row[0] for row in con.execute("SELECT pair_id FROM all_pairs").fetchall()}
        named = con.execute("SELECT name, pair_id FROM pairs ORDER BY pair_id").fetchall()
    found = [pair_id for each, pair_id in named if each == name]
    if name in ids:
        return name
    if len(found) == 1:
        return str(found[0])
    if found:
        raise QueryError(f"pair name {name} is ambiguous in {store}: say one of {', '.join(found)}")
    near = difflib.get_close_matches(name, [each for each, _ in named], n=3, cutoff=0.4)
    hint = f"; did you mean {', '.join(near)}?" if near else "; rlsparse status lists them"
    raise QueryError(f"no pair named {name!r} in {store}{hint}")


def _of_pair(store: Store, pair_id: str, criterion: str) -> Subnetwork:
    try:
        criterion = str(parse_criterion(criterion))
    except ValueError as error:
        raise QueryError(str(error)) from error
    row = store.pair_row(pair_id)
    if criterion not in row["criteria"]:
        raise StoreError(
            f"pair {row['name']} keeps no masks of criterion {criterion}, only of "
            f"{', '.join(row['criteria'])}: name one of these, or extract with "
            f'settings: {{criteria: ["{criterion}"]}}'
        )
    compared = _base_shapes(store, pair_id)
    folder = f"masks/pair_id={pair_id}/criterion={criterion}/"
    masks = _read(store, row["parts"], folder, compared)
    missing = compared.keys() - masks.keys()
    if missing:
        raise StoreError(f"{store.root}: no mask of {min(missing)} is stored: run rlsparse verify")
    return Subnetwork(masks, f"pair {row['name']}, {criterion}")


def _named(store: Store, name: str) -> Subnetwork:
    row = named_mask_row(store, name)
    if row is None:
        known = ", ".join(named_masks(store)) or "none: rlsparse consensus --keep makes one"
        raise QueryError(f"no mask named {name!r} in {store.root}; there are: {known}")
    shapes = _base_shapes(store, row["members"][0])
    masks = _read(store, row["parts"], f"named_mask_bits/mask={name}/", shapes)
    return Subnetwork(masks, f"mask {name}, {row['rule']}")


def _base_shapes(store: Store, pair_id: str) -> dict[str, Shape]:
    """Shape in the base model of every tensor that a pair compared, by canonical name."""
    path = table_path("tensors", pair_id)
    raw = store.files.read(path)
    if raw is None:
        raise StoreError(f"{store.root}/{path}: missing: extract the pair again")
    columns = ["tensor", "shape", "base_shape", "numel"]
    try:
        table = pq.ParquetFile(pa.BufferReader(raw)).read(columns, use_threads=False)
    except pa.ArrowException as error:
        raise StoreError(f"{store.root}/{path}: {error}: run rlsparse verify") from error
    rows = table.to_pylist()
    return {r["tensor"]: tuple(r["base_shape"]) for r in rows if r["shape"] and r["numel"]}


def _read(
    store: Store, parts: Iterable[Mapping[str, Any]], folder: str, shapes: Mapping[str, Shape]
) -> dict[str, TensorMask]:
    """The masks in the parts of a folder, in the base model's shapes."""
    runs: dict[str, list[Run]] = {}
    for part in parts:
        if part["path"].startswith(folder):
            for run in runs_of(store.files, part["path"])[0]:
                runs.setdefault(run.tensor_key, []).append(run)
    stream = MaskStream(store.files)
    found = {}
    for key, of_tensor in runs.items():
        name, _, text = key.rpartition(" ")
        compared = tuple(int(size) for size in text.strip("[]").split(",") if size)
        shape = shapes.get(name, compared)
        found[name] = TensorMask(shape, _bits(stream, of_tensor, prod(compared), prod(shape)))
    return found


def _bits(stream: MaskStream, runs: list[Run], compared: int, numel: int) -> Bits:
    """The bits of a tensor of `numel` parameters, of which the first `compared` have blocks."""
    blocks = blocks_of(compared)
    bits = np.zeros(max(blocks * BLOCK_BYTES, -(-numel // 8)), np.uint8)
    for first in range(0, blocks, BATCH):
        chosen = np.arange(first, min(blocks, first + BATCH))
        found = stream.find(runs, chosen)  # held: the addresses are in its memory
        blobs = gather(found.addresses[None], BLOCK_BYTES // 8)
        bits[first * BLOCK_BYTES :][: blobs.nbytes] = blobs.reshape(-1).view(np.uint8)
    return bits[: -(-numel // 8)]
