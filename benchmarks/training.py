"""Memory and time of an optimizer step: all weights with torch's AdamW, a subnetwork with ours.

    python benchmarks/training.py [--layers 30] [--device cuda] [--threads 2]

Method. The tensors of SmolLM2-135M (134.5 M parameters, 272 tensors) are made as fp32 weights, with
gradients; there is no forward pass. Each way gets a fresh optimizer, one step that makes its state,
then the best of 3 steps. The subnetworks are uniformly random, which is the worst case for a cache:
masks of real runs are in clusters.

  state    what the optimizer holds between steps: moments, and the indices of a subnetwork
  peak     memory at its highest during the first steps, above weights and gradients: the process's
           VmHWM, or the allocator's peak on a GPU. It has the state and everything transient in it
  limit    bytes that a step cannot but move, at the best bandwidth seen in this run: of a sum of
           two vectors of 256 MiB in place (best of 5), or of a dense step. Of weights and gradients
           every cache line of 64 bytes (32 on a GPU) with an entry in it, of moments and indices
           every byte

The dense ways are torch.optim.AdamW as a loop over tensors (the default on a CPU), foreach (the
default on a GPU) and fused; the subnetwork has the loop's bits by default, and fused by option.
"""

import argparse
import ctypes
import gc
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from rlsparse_ray.training import Subnetwork, SubnetworkAdamW

DENSITIES = (0.05, 0.2, 0.5)
SETTINGS = {"lr": 1e-5, "weight_decay": 0.1}

Weights = dict[str, torch.nn.Parameter]
Make = Callable[[], torch.optim.Optimizer]

console = Console()


def smollm2(layers: int, device: str) -> Weights:
    """The tensors of SmolLM2-135M, with gradients."""
    hidden, middle, keys = 576, 1536, 192
    shapes = {"embed_tokens.weight": (49_152, hidden), "norm.weight": (hidden,)}
    for layer in range(layers):
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (middle, hidden),
            "mlp.up_proj": (middle, hidden),
            "mlp.down_proj": (hidden, middle),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }.items():
            shapes[f"layers.{layer}.{name}.weight"] = shape
    random = torch.Generator(device).manual_seed(0)
    found = {}
    for name, shape in shapes.items():
        weight = torch.nn.Parameter(torch.randn(shape, generator=random, device=device) * 0.02)
        weight.grad = torch.randn(shape, generator=random, device=device) * 1e-3
        found[name] = weight
    return found


def bandwidth(device: str) -> float:
    """Bytes a second of a += b: two vectors read, one written."""
    a, b = torch.ones(2, 64 << 20, device=device)
    return 3 * a.nbytes / best_of(5, lambda: a.add_(b), device)


def best_of(times: int, work: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(times):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def wait(device: str) -> None:
    """Until a GPU has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


class Peak:
    """The highest memory from here on, above what is in use now."""

    def __init__(self, device: str) -> None:
        gc.collect()
        self.device = device
        if device == "cpu":
            # what earlier optimizers freed, glibc keeps for itself
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        else:
            torch.cuda.reset_peak_memory_stats()
        self.before = self._highest()

    def above(self) -> int:
        """Bytes."""
        return self._highest() - self.before

    def _highest(self) -> int:
        if self.device != "cpu":
            return torch.cuda.max_memory_allocated()
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) << 10


def measure(make: Make, device: str) -> tuple[int, int, float]:
    """State and peak in bytes, and seconds of a step."""
    peak = Peak(device)
    optimizer = make()
    optimizer.step()
    seconds = best_of(3, optimizer.step, device)
    if isinstance(optimizer, SubnetworkAdamW):
        return optimizer.state_bytes().total, peak.above(), seconds
    state = sum(v.nbytes for s in optimizer.state.values() for v in s.values())
    return state, peak.above(), seconds


def must_move(weights: Weights, sub: Subnetwork | None, line: int) -> int:
    """Bytes that a step reads and writes at the least; a weight is read and written."""
    if sub is None:
        return sum(p.numel() for p in weights.values()) * 4 * (2 + 1 + 2 + 2)
    # a line holds line / 4 weights: line / 32 bytes of bits
    bits = [sub[name].bits for name in sub]
    whole = [b[: len(b) // (line // 32) * (line // 32)].reshape(-1, line // 32) for b in bits]
    lines = sum(int(w.any(axis=1).sum()) for w in whole)
    return lines * line * (2 + 1) + sub.size * (4 * (2 + 2) + 4)


def random_subnetwork(weights: Weights, density: float) -> Subnetwork:
    """A random share of every tensor."""
    random = torch.Generator().manual_seed(0)
    masks = {n: torch.rand(p.shape, generator=random) < density for n, p in weights.items()}
    return Subnetwork.from_masks(masks, f"density {density:g}")


def main() -> None:
    """Parse the options and run everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--layers", type=int, default=30, help="30: SmolLM2-135M")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    weights = smollm2(args.layers, args.device)
    numel = sum(p.numel() for p in weights.values())
    console.print(
        f"{numel:,} fp32 parameters in {len(weights)} tensors on {args.device}, torch "
        f"{torch.__version__}, {args.threads} threads"
    )
    table = Table()
    for heading in ("weights", "way", "state MB", "peak MB", "step ms", "limit ms"):
        table.add_column(heading, justify="left" if heading in ("weights", "way") else "right")
    line = 64 if args.device == "cpu" else 32
    cases: list[tuple[str, str, Subnetwork | None, Make]] = [
        ("all", f"torch {way}", None, partial(torch.optim.AdamW, weights.values(), **how))
        for way, how in {
            "loop": {"foreach": False, **SETTINGS},
            "foreach": {"foreach": True, **SETTINGS},
            "fused": {"fused": True, **SETTINGS},
        }.items()
    ]
    for density in DENSITIES:
        sub = random_subnetwork(weights, density)
        for fused in (False, True):
            ours = partial(SubnetworkAdamW, weights.items(), sub, fused=fused, **SETTINGS)
            cases.append((f"{density:.0%}", "fused" if fused else "loop", sub, ours))
    found = [(case, measure(case[3], args.device)) for case in cases]
    moved = [must_move(weights, case[2], line) for case in cases]
    dense = [n / took[2] for n, (case, took) in zip(moved, found, strict=True) if case[2] is None]
    rate = max(bandwidth(args.device), *dense)
    console.print(f"memory moves {rate / 1e9:.1f} GB/s")
    for (case, (state, peak, seconds)), nbytes in zip(found, moved, strict=True):
        share, way = case[:2]
        least = nbytes / rate
        mega = (f"{state / 1e6:.0f}", f"{peak / 1e6:.0f}")
        table.add_row(share, way, *mega, f"{seconds * 1e3:.1f}", f"{least * 1e3:.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
