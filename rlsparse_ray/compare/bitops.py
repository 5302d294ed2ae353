"""Single machine instructions on unsigned words that numba has no name for."""

from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
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


@intrinsic
def _pdep(_context: Any, bits: Any, word: Any) -> Any:
    def build(_ctx: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(64), [ir.IntType(64)] * 2)
        name = "llvm.x86.bmi.pdep.64"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)

    return types.uint64(types.uint64, types.uint64), build


@numba.njit(inline="always")
def _deposit(bits: Any, word: Any) -> Any:
    found = np.uint64(0)
    while word:
        lowest = word & (~word + np.uint64(1))
        found |= lowest & (np.uint64(0) - (bits & np.uint64(1)))
        word ^= lowest
        bits >>= np.uint64(1)
    return found


deposit = _pdep if binding.get_host_cpu_features().get("bmi2") else _deposit
"""Bit i of the first argument at the place of the i-th set bit of the second; 0 elsewhere.

One instruction on x86: keeping the flagged bits of a block takes 3 us with it and 11 in a loop."""
