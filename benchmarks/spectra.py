"""Seconds a matrix for the geometry of an update, beside what people do now, in one run.

    python benchmarks/spectra.py [--limit 120] [--threads 2] [--largest 4096x14336]

Method. bf16 matrices whose singular values fall as those of trained weights do, and updates of a
few ULPs in a few per cent of them, from 1,024 x 1,024 to 4,096 x 14,336; on the CPU and, where
there is one, on the GPU. Ways, the best of 2 runs each after a warm-up on a small matrix:

  plain       torch.linalg.matrix_rank of the update and torch.linalg.svdvals of both matrices, in
              float32: a rank and NSS, no vectors, no masks
  exact       every measure of `rlsparse spectra`, method exact, for one update
  exact, next the same for one more model tuned from that base, which is decomposed already
  randomised  every measure that the randomised method gives, for one update

Flops are the estimate that the plan of a pass prints (`compare.spectra.flops`); for plain those of
three SVDs without vectors. The limit is the rate of a 4,096 x 4,096 matrix product in float64 (for
plain float32), measured here; a way's share of it is what its estimate needs at that rate over what
it took. A way whose time, extrapolated from the size before, is above --limit is left out with a
line that says so. NSS is printed for plain and exact: float32 does not know a shift that small.
Last, 32 experts of 768 x 2,048 together and one by one.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rlsparse_ray.compare.spectra import BaseMatrices, SpectraOptions, flops, spectra_batch

SHAPES = ((1024, 1024), (1024, 4096), (2048, 2048), (4096, 4096), (4096, 14336))
EXPERTS = (32, 768, 2048)
SIDE = 4096
ROW = "{:>14} {:<12} {:>9} {:>8} {:>8} {:>9} {:>9}"


@dataclass(frozen=True)
class Way:
    """One way to measure an update."""

    name: str
    flops: Callable[[int, int], float]
    run: Callable[[Tensor, Tensor], Callable[[], float | None]]
    """What to do before the clock starts; returns what is timed, which returns NSS."""
    double: bool = True


def weights(shape: tuple[int, ...], device: str) -> tuple[Tensor, Tensor]:
    """A bf16 matrix, or many, and what it was tuned to."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -1.3, shape[-1])
    base = 0.03 * torch.randn(shape, generator=generator) * scale
    tuned = base.bfloat16().float() + 1e-6 * torch.randn(shape, generator=generator)
    return base.bfloat16().to(device), tuned.bfloat16().to(device)


def plain(base: Tensor, tuned: Tensor) -> Callable[[], float]:
    """What people do now."""

    def work() -> float:
        torch.linalg.matrix_rank(tuned.float() - base.float())
        before, after = torch.linalg.svdvals(base.float()), torch.linalg.svdvals(tuned.float())
        return float((after - before).norm() / before.norm())

    return work


def ways(device: str) -> Iterator[Way]:
    """The ways of the table."""

    def values_only(rows: int, columns: int) -> float:
        short, long = sorted((rows, columns))
        return 3 * min(
            4.0 * long * short**2 - 4 / 3 * short**3, 2.0 * long * short**2 + 2 * short**3
        )

    yield Way("plain", values_only, plain, double=False)
    for method in ("exact", "randomised"):
        options = SpectraOptions(method, device=device)

        def whole(base: Tensor, tuned: Tensor, o: SpectraOptions = options) -> Callable[[], float]:
            return lambda: BaseMatrices(base[None], o).measure(tuned[None])[0].nss

        def again(base: Tensor, tuned: Tensor, o: SpectraOptions = options) -> Callable[[], float]:
            bases = BaseMatrices(base[None], o)
            bases.measure(tuned[None])
            return lambda: bases.measure(tuned[None])[0].nss

        yield Way(method, lambda m, n, o=options: flops(m, n, o), whole)
        if method == "exact":
            once = options
            yield Way("exact, next", lambda m, n, o=once: flops(m, n, o, 2) - flops(m, n, o), again)


def seconds_of(work: Callable[[], object], device: str) -> tuple[float, object]:
    """How long it takes, the device's work included, and what it gives; the best of 2."""
    best, found = float("inf"), None
    for _ in range(2):
        settle(device)
        start = time.perf_counter()
        found = work()
        settle(device)
        best = min(best, time.perf_counter() - start)
    return best, found


def settle(device: str) -> None:
    """Wait for what the device was told to do."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def product_rate(device: str, dtype: torch.dtype) -> float:
    """Flops a second of a large matrix product: the physical limit."""
    matrix = torch.randn(SIDE, SIDE, dtype=dtype, device=device)
    seconds_of(lambda: matrix @ matrix, device)
    return 2 * SIDE**3 / seconds_of(lambda: matrix @ matrix, device)[0]


def bench(device: str, shapes: list[tuple[int, int]], limit: float) -> None:
    """One table."""
    rates = {True: product_rate(device, torch.float64), False: product_rate(device, torch.float32)}
    name = "CPU" if device == "cpu" else torch.cuda.get_device_name(device)
    print(
        f"{name}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}: products at "
        f"{rates[True] / 1e9:,.0f} Gflop/s in float64, {rates[False] / 1e9:,.0f} in float32"
    )
    # row by row: a run that is cut short has said what it measured
    print(ROW.format("matrix", "way", "seconds", "x plain", "Gflop", "of limit", "NSS"))
    pace: dict[str, float] = {}
    for shape in shapes:
        base, tuned = weights(shape, device)
        size = f"{shape[0]:,} x {shape[1]:,}"
        reference = None
        for way in ways(device):
            work = way.flops(*shape)
            expected = pace.get(way.name, 0.0) * work
            # before the clock of `exact, next` starts, the whole is done once
            if expected * (3 if way.name == "exact, next" else 2) > limit:
                print(f"{size}, {way.name}: left out, about {expected:,.0f} s a run")
                continue
            seconds, nss = seconds_of(way.run(base, tuned), device)
            pace[way.name] = seconds / work
            reference = seconds if way.name == "plain" else reference
            row = (
                size,
                way.name,
                f"{seconds:.2f}",
                f"{seconds / reference:.2f}" if reference else "",
                f"{work / 1e9:,.0f}",
                f"{work / rates[way.double] / seconds:.0%}",
                f"{nss:.2e}" if isinstance(nss, float) else "",
            )
            print(ROW.format(*row), flush=True)


def bench_experts(device: str) -> None:
    """Many small matrices, together and one by one."""
    base, tuned = weights(EXPERTS, device)
    options = SpectraOptions(device=device)
    together, _ = seconds_of(lambda: spectra_batch(base, tuned, options), device)
    alone, _ = seconds_of(
        lambda: [
            spectra_batch(one[None], other[None], options)
            for one, other in zip(base, tuned, strict=True)
        ],
        device,
    )
    count, rows, columns = EXPERTS
    print(
        f"{count} experts of {rows} x {columns:,} on {device}: {together:.2f} s together, "
        f"{alone:.2f} s one by one"
    )


def main() -> None:
    """Parse the options and run everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--limit", type=float, default=120, help="seconds that a way may take")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    parser.add_argument("--largest", default="4096x14336", help="leave larger matrices out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows, columns = (int(side) for side in args.largest.split("x"))
    shapes = [shape for shape in SHAPES if shape[0] * shape[1] <= rows * columns]
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        small = weights((256, 256), device)
        for way in ways(device):
            way.run(*small)()
        bench(device, shapes, args.limit)
        bench_experts(device)


if __name__ == "__main__":
    main()
