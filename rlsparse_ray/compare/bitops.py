"""Single machine instructions on unsigned words that numba has no name for."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def trailing_zeros(_context: Any, word: Any) -> Any:
    """Number of zero bits below the lowest set bit; `word` must not be 0."""

    def build(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return word(word), build


@intrinsic
def leading_zeros(_context: Any, word: Any) -> Any:
    """Number of zero bits above the highest set bit; the word's width for 0."""

    def build(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))

    return word(word), build


@intrinsic
def popcount(_context: Any, word: Any) -> Any:
    """Number of set bits; loops over it become AVX-512 VPOPCNTDQ where the CPU has it."""

    def build(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return word(word), build


@intrinsic
def words_at(_context: Any, address: Any) -> Any:
    """A pointer to the uint64 words at an address; whoever calls keeps them alive."""

    def build(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(64).as_pointer())

    return types.CPointer(types.uint64)(address), build
