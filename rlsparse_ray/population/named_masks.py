"""Masks that were made from those of pairs and are kept in the store under a name.

STORE/named_mask_bits/mask=NAME/part-00000.parquet   the columns of `masks`
STORE/named_masks/mask=NAME/named_masks.parquet      one row, written last: the commit
"""

import re
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
from rlsparse_ray.store import Store, write_parquet

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class NamedMask:
    """What a consensus mask is made of: its identity under its name."""

    name: str
    at_least: int
    criterion: str
    members: tuple[str, ...]
    where: str

    @property
    def rule(self) -> str:
        """The rule in words: `at least 3 of 5`."""
        return f"at least {self.at_least} of {len(self.members)}"

    def same_as(self, row: dict[str, Any]) -> bool:
        """Whether a row of `named_masks` is of this mask."""
        mine = (self.at_least, self.criterion, list(self.members))
        return mine == (row["at_least"], row["criterion"], row["members"])


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


class NamedMaskWriter:
    """Writes one named mask; nobody sees it before `commit`."""

    def __init__(self, store: Store, mask: NamedMask) -> None:
        self.mask = mask
        self._store = store
        self._changed = 0
        self._scratch = store.files.scratch(f"{self._staging}/bits")
        self._bits = MaskWriter(self._scratch)

    @classmethod
    def begin(cls, store: Store, mask: NamedMask) -> "NamedMaskWriter | None":
        """A writer for the mask; None if the store holds this very mask already.

        Raises:
            StoreError: the name is no name, or stands for another mask.
        """
        if not _NAME.fullmatch(mask.name):
            raise StoreError(f"mask name {mask.name!r}: use letters, digits, dot, dash, underscore")
        with store_errors(store.root):
            row = named_mask_row(store, mask.name)
            if row is None:
                return cls(store, mask)
        if mask.same_as(row):
            return None
        raise StoreError(
            f"mask {mask.name} is {row['rule']} under {row['criterion']} of "
            f"{', '.join(row['members'])}: choose another name, or remove "
            f"{store.root}/named_masks/mask={mask.name}"
        )

    @property
    def _staging(self) -> str:
        return f"staging/mask={self.mask.name}"

    def add(
        self, tensor_key: str, first_block: int, numel: int, words: npt.NDArray[np.uint64]
    ) -> None:
        """Add the words [ceil(numel / 64)] of a run of blocks."""
        starts = np.arange(0, words.size, BLOCK // 64)
        changed = np.add.reduceat(np.bitwise_count(words), starts, dtype=np.int32)
        self._changed += int(changed.sum())
        bits = words.view(np.uint8)[: -(-numel // 8)]
        self._bits.add(tensor_key, first_block, numel, changed, bits)

    def commit(self, tensors: int, numel: int) -> None:
        """Publish the bits, then the row that makes the mask visible."""
        self._bits.close()
        path = f"named_mask_bits/mask={self.mask.name}/part-00000.parquet"
        part = self._store.publish_part(self._scratch, path, self._bits.rows)
        listed = asdict(part)
        row = {
            "kind": "consensus",
            "rule": self.mask.rule,
            "at_least": self.mask.at_least,
            "criterion": self.mask.criterion,
            "members": list(self.mask.members),
            "where_text": self.mask.where,
            "tensors": tensors,
            "numel": numel,
            "changed": self._changed,
            "block": BLOCK,
            "schema_version": tables.SCHEMA_VERSION,
            "software_version": __version__,
            "created_at": datetime.now(UTC),
            "parts": [listed],
        }
        scratch = self._store.files.scratch(f"{self._staging}/row")
        write_parquet(tables.to_table("named_masks", [row]), scratch)
        self._store.files.publish(scratch, named_mask_path(self.mask.name))
        self._store.files.remove(self._staging)

    def abandon(self) -> None:
        """Remove what was written so far."""
        self._bits.close()
        self._store.files.remove(self._staging)
