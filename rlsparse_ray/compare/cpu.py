"""The CPU backend: one fused pass over cache-sized blocks, compiled by numba for each format.

A block (128 KiB a side in bf16) is compared and packed in a vectorised loop; everything else runs
over the list of its changed values only, which is short when updates are sparse.
"""

from functools import cache
from typing import Any

import numpy as np

from rlsparse_ray.blocks import BLOCK, blocks_of
from rlsparse_ray.compare.cast import Bits
from rlsparse_ray.compare.formats import MAX_BUCKET
from rlsparse_ray.compare.kernels import STEP_CODES, compare, scan_base
from rlsparse_ray.compare.layouts import TAGS
from rlsparse_ray.compare.window import BaseWindow, Margins, PairWindow, Request

_KINDS = {"exact": 0, "abs": 1, "rel": 2}
_NO_MARGINS = Margins(np.zeros((0, 0), np.int32), np.zeros((0, 0), np.int32))


class CpuBackend:
    """Floats of up to 32 bits on the CPU; the torch backend serves the rare other formats."""

    # windows of 2 MiB a side in bf16: what the reader has just copied is still in the L3 cache
    window = 16 * BLOCK

    def load(self, bits: Bits) -> Bits:
        """The CPU computes on host memory as it is."""
        return bits

    def scan_base(self, base: Bits, request: Request) -> BaseWindow:
        """Exponents, norms, NaN and Inf of base bits [n]."""
        fmt = request.format
        if fmt.name not in TAGS:
            return _wide().scan_base(_wide().load(base), request)
        squares = np.zeros(blocks_of(base.size))
        exponents, nan, inf = scan_base(base, squares, TAGS[fmt.name])
        return BaseWindow(exponents[: fmt.exponents], squares, nan, inf)

    def compare(
        self, base: Bits, tuned: Bits, request: Request, margins: Margins | None, start: int
    ) -> PairWindow:
        """Everything about base bits [n] against tuned bits [n] in one pass."""
        if request.format.name not in TAGS:
            wide = _wide()
            return wide.compare(wide.load(base), wide.load(tuned), request, margins, start)
        masked, blocks = len(request.masked), blocks_of(base.size)
        words = np.zeros((masked, -(-base.size // 64)), np.uint64)
        block_changed = np.zeros((masked, blocks), np.int32)
        squares = np.zeros(blocks)
        kinds, tolerances, places = _criteria(request)
        changed, exponents, table, extra, largest = compare(
            base,
            tuned,
            kinds,
            tolerances,
            places,
            (margins or _NO_MARGINS).rows,
            (margins or _NO_MARGINS).columns,
            start,
            words,
            block_changed,
            squares,
            TAGS[request.format.name],
        )
        return PairWindow(
            changed=changed,
            bits=words.view(np.uint8)[:, : -(-base.size // 8)],
            block_changed=block_changed,
            exponents=exponents[:, : request.format.exponents],
            steps=_step_rows(table),
            nonfinite=int(extra[0]),
            block_squares=squares,
            largest=float(largest),
            nan=int(extra[1]),
            inf=int(extra[2]),
        )


def _wide() -> Any:
    from rlsparse_ray.compare.torch_backend import TorchBackend  # noqa: PLC0415 (2 s to import)

    return TorchBackend("cpu")


@cache
def _criteria(request: Request) -> tuple[Any, Any, Any]:
    """Kinds and tolerances of the counted criteria, and where the masked ones are among them."""
    counted = request.counted
    return (
        np.array([_KINDS[c.kind] for c in counted]),
        np.array([c.tolerance for c in counted], np.float32),
        np.array([counted.index(c) for c in request.masked], np.int64),
    )


def _step_rows(table: Any) -> Any:
    """[STEP_CODES] step codes as [2, MAX_BUCKET + 1] rows down and up."""
    rows = np.zeros((2, MAX_BUCKET + 1), np.int64)
    half = STEP_CODES // 2
    rows[:, :half] = table.reshape(2, half)
    rows[:, half - 1] = 0
    return rows
