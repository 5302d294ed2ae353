"""A matrix that is read in float64 a few columns at a time, so that no copy of it is ever whole."""

from collections.abc import Iterator

import torch
from torch import Tensor

PIECE = 1 << 22
"""Entries of a piece: 32 MiB in float64, and matrix products as fast as with the whole matrix."""

BANDS = 8
"""A Gram matrix is computed in so many bands of its upper triangle: 9/16 of the flops."""


class Wide:
    """Matrices A [count, short, long] with short <= long: stored ones, or what is between two.

    Args:
        stored: [count, rows, columns], any float dtype; taken transposed where rows > columns.
        minus: of the same shape; A is then stored - minus, exact in float64 for narrower dtypes.
    """

    def __init__(self, stored: Tensor, minus: Tensor | None = None) -> None:
        self.transposed = stored.shape[-2] > stored.shape[-1]
        self._given = (stored, minus)
        self._stored = stored.mT if self.transposed else stored
        self._minus = minus.mT if self.transposed and minus is not None else minus
        self.count, self.short, self.long = self._stored.shape
        self.device = stored.device

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Columns and the piece [count, short, columns] of A in float64, from the left."""
        width = max(1, PIECE // max(1, self.count * self.short))
        for start in range(0, self.long, width):
            columns = slice(start, min(self.long, start + width))
            piece = self._stored[..., columns].double()
            if self._minus is not None:
                piece = piece - self._minus[..., columns].double()
            yield columns, piece

    def only(self, index: int) -> "Wide":
        """One of the matrices, as a batch of one."""
        stored, minus = self._given
        one = slice(index, index + 1)
        return Wide(stored[one], None if minus is None else minus[one])

    def whole(self) -> Tensor:
        """A [count, short, long] in float64."""
        return torch.cat([piece for _, piece in self.pieces()], -1)

    def gram(self) -> Tensor:
        """A A^T [count, short, short] in float64; right in its upper triangle only."""
        found = self._zeros(self.short, self.short)
        band = -(-self.short // BANDS)
        for _, piece in self.pieces():
            for top in range(0, self.short, band):
                rows = piece[:, top : top + band]
                found[:, top : top + band, top:] += rows @ piece[:, top:].mT
        return found

    def squares(self) -> Tensor:
        """||A||_F^2 [count] in float64."""
        total = torch.zeros(self.count, dtype=torch.float64, device=self.device)
        for _, piece in self.pieces():
            total += piece.square().sum((-2, -1))
        return total

    def times(self, right: Tensor) -> Tensor:
        """A X [count, short, n] for X [count, long, n]."""
        total = self._zeros(self.short, right.shape[-1])
        for columns, piece in self.pieces():
            total += piece @ right[:, columns]
        return total

    def transposed_times(self, left: Tensor) -> Tensor:
        """A^T X [count, long, n] for X [count, short, n]."""
        found = self._zeros(self.long, left.shape[-1])
        for columns, piece in self.pieces():
            found[:, columns] = piece.mT @ left
        return found

    def round_trip(self, left: Tensor) -> tuple[Tensor, Tensor]:
        """A^T X [count, long, n] and A A^T X [count, short, n] for X [count, short, n]."""
        there = self._zeros(self.long, left.shape[-1])
        back = torch.zeros_like(left)
        for columns, piece in self.pieces():
            there[:, columns] = piece.mT @ left
            back += piece @ there[:, columns]
        return there, back

    def _zeros(self, rows: int, columns: int) -> Tensor:
        shape = (self.count, rows, columns)
        return torch.zeros(shape, dtype=torch.float64, device=self.device)
