"""The bits that masks share as matrix products, for a GPU: exact, since every sum is below 2^24."""

from typing import Any

import numpy as np
import torch

from rlsparse_ray.compare.popcount import Counts, Words

CHUNK_BYTES = 1 << 30
"""Memory for unpacked bits: two bytes a parameter on a GPU, four on the CPU."""


def shared_bits_torch(masks: Words, wanted: Any, device: str) -> tuple[Counts, Counts]:
    """What `shared_bits` gives, by unpacking the bits of some blocks and multiplying them.

    A product of zeros and ones over the 65,536 parameters of a block is a whole number that
    float32 holds exactly, whatever the order of its sum.
    """
    blocks, count, words = masks.shape
    raw = torch.from_numpy(np.ascontiguousarray(masks).view(np.uint8))
    shared = torch.zeros((count, count), dtype=torch.int64, device=device)
    squares = torch.zeros_like(shared)
    step = max(1, CHUNK_BYTES // (count * words * 64 * (2 if device != "cpu" else 4)))
    for start in range(0, blocks, step):
        each = _products(raw[start : start + step].to(device)).to(torch.int64)
        shared += each.sum(0)
        squares += (each * each).sum(0)
    keep = torch.from_numpy(np.ascontiguousarray(wanted)).to(device)
    return (shared * keep).cpu().numpy(), (squares * keep).cpu().numpy()


def _products(raw: torch.Tensor) -> torch.Tensor:
    """[blocks, masks, masks] float32 from [blocks, masks, bytes] uint8."""
    shifts = torch.arange(8, dtype=torch.uint8, device=raw.device)
    bits = ((raw.unsqueeze(-1) >> shifts) & 1).flatten(2)
    if raw.is_cuda:
        half = bits.to(torch.bfloat16)
        return torch.bmm(half, half.transpose(1, 2), out_dtype=torch.float32)
    single = bits.to(torch.float32)
    return torch.bmm(single, single.transpose(1, 2))
