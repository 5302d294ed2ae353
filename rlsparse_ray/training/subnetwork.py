"""A subnetwork: which weights of which tensors. Bits and arithmetic on them; no files, no models.

Bits are packed as the store keeps them: bit i of byte j is parameter 8j+i of the tensor flattened
in C order, and bits past the last parameter are 0.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import numpy.typing as npt
import torch
import xxhash

from rlsparse_ray.errors import TrainingError
from rlsparse_ray.naming import canonical_names

Bits = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]

_DRAWS = 1 << 20
"""Positions drawn at a time: 8 MiB of them."""


@dataclass(frozen=True, eq=False)
class TensorMask:
    """The mask of one tensor: its shape, and one bit a parameter."""

    shape: tuple[int, ...]
    bits: Bits
    """[ceil(numel / 8)], read-only."""

    def __post_init__(self) -> None:
        if self.bits.shape != (-(-self.numel // 8),) or self.bits.dtype != np.uint8:
            raise ValueError(f"{self.bits.size} bytes of bits for a tensor of shape {self.shape}")
        self.bits.flags.writeable = False

    @classmethod
    def from_flags(cls, flags: Flags) -> "TensorMask":
        """The mask of booleans of any shape."""
        return cls(flags.shape, np.packbits(flags.reshape(-1), bitorder="little"))

    @property
    def numel(self) -> int:
        """Parameters of the tensor."""
        return prod(self.shape)

    @cached_property
    def size(self) -> int:
        """Parameters that are set."""
        return int(np.bitwise_count(self.bits).sum(dtype=np.int64))

    def flags(self) -> Flags:
        """The bits as booleans of the tensor's shape: a byte a parameter."""
        flat = np.unpackbits(self.bits, count=self.numel, bitorder="little")
        return flat.view(np.bool_).reshape(self.shape)

    def complement(self) -> "TensorMask":
        """Set where this one is not."""
        bits = ~self.bits
        if self.numel % 8:
            bits[-1] &= (1 << self.numel % 8) - 1
        return TensorMask(self.shape, bits)

    def random(self, rng: np.random.Generator) -> "TensorMask":
        """As many parameters, every set of that size being equally likely."""
        dense = 2 * self.size > self.numel
        flags = _draw(self.numel, self.numel - self.size if dense else self.size, rng)
        return TensorMask.from_flags((flags ^ dense).reshape(self.shape))


class Subnetwork:
    """Some weights of a model: the ones that are trained when nothing else may change.

    Tensors go by their canonical names (`rlsparse_ray.naming`), in the order of these names. A
    tensor without a set bit belongs to the subnetwork as well: as one that is frozen.

    `numel` counts the parameters of its tensors, `size` those in the subnetwork, and `density` is
    size / numel, as everywhere in the project.
    """

    def __init__(self, masks: Mapping[str, TensorMask], source: str = "masks") -> None:
        """Make a subnetwork of masks by canonical name; `source` says what they are."""
        self._masks = {name: masks[name] for name in sorted(masks)}
        self.source = source

    @classmethod
    def from_masks(
        cls, masks: Mapping[str, torch.Tensor | Flags], source: str = "masks"
    ) -> "Subnetwork":
        """A subnetwork of boolean tensors, by canonical name or by the model's own.

        Raises:
            TrainingError: a mask is not boolean.
        """
        names = canonical_names(masks)
        found = {}
        for name, mask in masks.items():
            flags = mask.numpy(force=True) if isinstance(mask, torch.Tensor) else mask
            if flags.dtype != np.bool_:
                raise TrainingError(f"mask of {name}: {flags.dtype}, not bool: write mask != 0")
            found[names[name]] = TensorMask.from_flags(flags)
        return cls(found, source)

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names of the tensors, sorted."""
        return tuple(self._masks)

    @cached_property
    def numel(self) -> int:
        """Parameters of the tensors."""
        return sum(mask.numel for mask in self._masks.values())

    @cached_property
    def size(self) -> int:
        """Parameters in the subnetwork."""
        return sum(mask.size for mask in self._masks.values())

    @property
    def density(self) -> float:
        """Size / numel; 0 for a subnetwork without parameters."""
        return self.size / self.numel if self.numel else 0.0

    @cached_property
    def fingerprint(self) -> str:
        """XXH3-64 of names, shapes and bits, hex: equal for the same weights."""
        digest = xxhash.xxh3_64()
        for name, mask in self._masks.items():
            digest.update(f"{name} {mask.shape}\n".encode())
            digest.update(mask.bits.data)
        return digest.hexdigest()

    def __contains__(self, name: object) -> bool:
        return name in self._masks

    def __getitem__(self, name: str) -> TensorMask:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return (
            f"<Subnetwork {self.source}: {self.size:,} of {self.numel:,} parameters "
            f"(density {self.density:.4g}) in {len(self)} tensors>"
        )

    def random(self, seed: int) -> "Subnetwork":
        """The control: as many parameters of every tensor, chosen uniformly without replacement.

        The same seed gives the same choice of a tensor, whatever other tensors there are. Takes
        a byte a parameter of the largest tensor for the time being.
        """
        return Subnetwork(
            {name: mask.random(_rng(seed, name)) for name, mask in self._masks.items()},
            f"random, seed {seed}, as many a tensor as {self.source}",
        )

    def complement(self) -> "Subnetwork":
        """All other parameters of the same tensors."""
        return Subnetwork(
            {name: mask.complement() for name, mask in self._masks.items()},
            f"complement of {self.source}",
        )


def _rng(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, xxhash.xxh3_64_intdigest(name.encode())])


def _draw(numel: int, size: int, rng: np.random.Generator) -> Flags:
    """A uniform choice of `size` of `numel` positions, at most half of them.

    Positions are drawn with replacement, as many as are still missing, until none is. Nothing
    tells one position from another, so every set of `size` positions is equally likely. A
    permutation would take 8 bytes a parameter, and three times as long.
    """
    flags = np.zeros(numel, np.bool_)
    missing = size
    while missing:
        for start in range(0, missing, _DRAWS):
            flags[rng.integers(0, numel, min(_DRAWS, missing - start))] = True
        missing = size - int(np.count_nonzero(flags))
    return flags
