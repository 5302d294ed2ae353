"""Masks that were made from those of pairs and are kept in the store under a name.

STORE/named_mask_bits/mask=NAME/part-00000.parquet   the columns of `masks`, one file or more
STORE/named_masks/mask=NAME/named_masks.parquet      one row, written last: the commit
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from rlsparse_ray import __version__, tables
from rlsparse_ray.blocks import BLOCK
from rlsparse_ray.errors import StoreError
from rlsparse_ray.masks import MaskWriter
from rlsparse_ray.storage.files import store_errors
from rlsparse_ray.storage.lease import LEASE, Lease, LeaseError, hold
from rlsparse_ray.store import Part, Store, write_parquet

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class NamedMask:
    """What a mask is made of; `kind`, `rule` and what it is made from are its identity."""

    name: str
    kind: str
    """consensus or spectral."""
    rule: str
    """Which parameters are set: `at least 3 of 5`, `principal:k=64,alpha=0.5`."""
    members: tuple[str, ...]
    """pair_id of the pairs whose masks, or whose base, went in."""
    where: str
    """SQL condition: over pairs for a consensus, over tensors for a spectral mask."""
    at_least: int | None = None
    criterion: str | None = None
    base_source: str | None = None
    base_revision: str | None = None

    def same_as(self, row: dict[str, Any]) -> bool:
        """Whether a row of `named_masks` is of this mask."""
        mine = (self.kind, self.rule, list(self.members), self.criterion)
        if mine != tuple(row[name] for name in ("kind", "rule", "members", "criterion")):
            return False
        # a consensus is its members, however they were chosen; a spectral mask its tensors
        return self.kind == "consensus" or self.where == row["where_text"]


def consensus_mask(
    name: str, at_least: int, criterion: str, members: tuple[str, ...], where: str
) -> NamedMask:
    """What changed in at least so many of the members."""
    rule = f"at least {at_least} of {len(members)}"
    return NamedMask(name, "consensus", rule, members, where, at_least, criterion)


def named_mask_path(name: str) -> str:
    """Where the row of a named mask lies, relative to the store."""
    return f"named_masks/mask={name}/named_masks.parquet"


def named_mask_row(store: Store, name: str) -> dict[str, Any] | None:
    """The committed row of a named mask; None if there is none.

    Raises:
        StoreError: it is damaged, or a newer rlsparse_ray wrote it.
    """
    return store.only_row(named_mask_path(name), "keep the mask again")


def named_masks(store: Store) -> list[str]:
    """Names of the masks that were kept."""
    found = store.files.list("named_masks")
    names = [path.split("mask=", 1)[1].split("/", 1)[0] for path in found if "mask=" in path]
    return [name for name in names if named_mask_path(name) in found]


@contextmanager
def making(store: Store, mask: NamedMask) -> Iterator[Lease | None]:
    """Have the name of a mask to oneself within the block, where it is made and committed.

    What is staged of it goes if the block fails; parts that were published are nobody's without a
    row.

    Yields:
        The lease on the name, to be checked before the commit; None if the store holds this very
        mask already.

    Raises:
        LeaseError: another one makes a mask of that name.
        StoreError: the name is no name, or stands for another mask.
    """
    if not _to_be_made(store, mask):
        yield None
        return
    with hold(store.root, f"mask {mask.name}", path=f"{staging_of(mask)}/{LEASE}") as lease:
        try:
            # again: another one may have made it until the lease was ours
            yield lease if _to_be_made(store, mask) else None
        finally:
            # what another one stages since this lease was lost is not ours
            with suppress(LeaseError):
                lease.check()
                store.files.remove(staging_of(mask))


def _to_be_made(store: Store, mask: NamedMask) -> bool:
    if not _NAME.fullmatch(mask.name):
        raise StoreError(f"mask name {mask.name!r}: use letters, digits, dot, dash, underscore")
    with store_errors(store.root):
        row = named_mask_row(store, mask.name)
    if row is None:
        return True
    if mask.same_as(row):
        return False
    under = f" under {row['criterion']}" if row["criterion"] else ""
    raise StoreError(
        f"mask {mask.name} is {row['rule']}{under} of {', '.join(row['members'])} "
        f"({row['where_text']}): choose another name, or remove "
        f"{store.root}/named_masks/mask={mask.name}"
    )


def staging_of(mask: NamedMask) -> str:
    """Where a mask is before its commit, relative to the store."""
    return f"staging/mask={mask.name}"


@dataclass(frozen=True, slots=True)
class MaskPart:
    """A published file of bits, which nobody sees before the mask is committed."""

    part: Part
    changed: int
    """Bits set in it."""


class MaskPartWriter:
    """Writes one file of the bits of a named mask."""

    def __init__(self, store: Store, mask: NamedMask, number: int = 0) -> None:
        self._store = store
        self._path = f"named_mask_bits/mask={mask.name}/part-{number:05d}.parquet"
        self._changed = 0
        self._scratch = store.files.scratch(f"{staging_of(mask)}/bits-{number:05d}")
        self._bits = MaskWriter(self._scratch)

    def add(
        self, tensor_key: str, first_block: int, numel: int, words: npt.NDArray[np.uint64]
    ) -> None:
        """Add the words [ceil(numel / 64)] of a run of blocks."""
        if not numel:
            return
        starts = np.arange(0, words.size, BLOCK // 64)
        changed = np.add.reduceat(np.bitwise_count(words), starts, dtype=np.int32)
        self._changed += int(changed.sum())
        bits = words.view(np.uint8)[: -(-numel // 8)]
        self._bits.add(tensor_key, first_block, numel, changed, bits)

    def publish(self) -> MaskPart:
        """Put the finished file in its place."""
        self._bits.close()
        part = self._store.publish_part(self._scratch, self._path, self._bits.rows)
        return MaskPart(part, self._changed)

    def close(self) -> None:
        """Give up."""
        self._bits.close()


def commit_mask(
    store: Store, mask: NamedMask, parts: Sequence[MaskPart], tensors: int, numel: int
) -> None:
    """Write the row that makes the mask visible; its parts have been published."""
    row = {
        "kind": mask.kind,
        "rule": mask.rule,
        "at_least": mask.at_least,
        "criterion": mask.criterion,
        "members": list(mask.members),
        "where_text": mask.where,
        "base_source": mask.base_source,
        "base_revision": mask.base_revision,
        "tensors": tensors,
        "numel": numel,
        "changed": sum(each.changed for each in parts),
        "block": BLOCK,
        "schema_version": tables.SCHEMA_VERSION,
        "software_version": __version__,
        "created_at": datetime.now(UTC),
        "parts": [asdict(each.part) for each in parts],
    }
    scratch = store.files.scratch(f"{staging_of(mask)}/row")
    write_parquet(tables.to_table("named_masks", [row]), scratch)
    store.files.publish(scratch, named_mask_path(mask.name))
