"""The block: the row of the mask tables and the unit of resampling."""

BLOCK = 65_536
"""Parameters in a block: 8 KiB of bits, the row size at which DuckDB scans masks fastest."""

BLOCK_BYTES = BLOCK // 8
"""Bytes of the bits of a whole block."""


def blocks_of(numel: int) -> int:
    """How many blocks `numel` parameters fill; the last one may be short.

    >>> [blocks_of(n) for n in (0, 1, 65_536, 65_537)]
    [0, 1, 1, 2]
    """
    return -(-numel // BLOCK)
