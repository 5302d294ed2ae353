"""Extraction against the physical limit and against the published way, in one run.

    python benchmarks/extract.py [--params 1.0e9] [--density 0.15] [--dir DIR] [--smollm DEMO]

Method. A synthetic bf16 pair (weights N(0, 0.02), updates N(0, s) with s set for the wanted
density) is written to DIR, then read once so that the page cache is warm. Then, in this order:

  roof     both files are read with preadv into one buffer a process and thrown away; with one
           process, and with as many as extraction uses
  naive    the published script's way: both models loaded whole (safetensors), then for every
           tensor torch.isclose(tuned - base, 0, atol=1e-5, rtol=0) and a sum, all torch threads
  rlsparse `rlsparse_ray.cluster.extract` with every statistic and two masks, Parquet written, on a
           Ray that runs already (its start is timed apart); once cold (workers start, kernels are
           loaded) and then best of 3 into a fresh store each. Slices are of 128 MiB, so that a
           model this small can be shared out evenly

Bytes a second count the bytes of both sides. Memory is the largest VmHWM of any Ray worker process
that ran slices. Mask bits are compared with n H(density), summed over tensors. Last, the overlap
of two masks of the same size in plain SQL, cold and best of 3.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import psutil
import torch
from memory import worker_peak
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file
from safetensors.torch import load_file

from rlsparse_ray.cluster import extract, ray_session
from rlsparse_ray.corpus import Corpus, load_corpus
from rlsparse_ray.plan import make_plan
from rlsparse_ray.sql import connect, run_query, run_sql

CHUNK = 8 << 20
WIDTH = 4096
ROWS = 14_336
PROCESSES = os.cpu_count() or 1

console = Console()


def make_models(folder: Path, params: float, density: float) -> Path:
    """A base and two tuned models with independent updates, and their corpus file."""
    count = max(1, round(params / (ROWS * WIDTH)))
    scale = _update_scale(density)
    for name in ("base", "tuned-0", "tuned-1"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    base = {
        f"model.layers.{k}.mlp.up_proj.weight": _bf16(_normal(rng) * np.float32(0.02))
        for k in range(count)
    }
    save_file(base, folder / "base" / "model.safetensors")
    for name in ("tuned-0", "tuned-1"):
        tuned = {
            key: _bf16(weight.astype(np.float32) + _normal(rng) * np.float32(scale))
            for key, weight in base.items()
        }
        save_file(tuned, folder / name / "model.safetensors")
    pairs = "".join(
        f"  - {{name: {name}, base: ./base, tuned: ./{name}}}\n" for name in ("tuned-0", "tuned-1")
    )
    corpus = folder / "corpus.yaml"
    settings = "settings: {slice_bytes: 128MiB}"
    corpus.write_text(f"version: 1\n{settings}\npairs:\n{pairs}")
    return corpus


def _normal(rng: np.random.Generator) -> Any:
    return rng.standard_normal((ROWS, WIDTH), dtype=np.float32)


def _bf16(values: Any) -> Any:
    return values.astype(ml_dtypes.bfloat16)


def _update_scale(density: float) -> float:
    """The update scale at which a sample of weights has the wanted density; bisected."""
    rng = np.random.default_rng(1)
    weights = _bf16(rng.standard_normal(1_000_000, dtype=np.float32) * np.float32(0.02))
    noise = rng.standard_normal(1_000_000, dtype=np.float32)
    low, high = 1e-8, 1e-2
    for _ in range(30):
        scale = (low * high) ** 0.5
        changed = (_bf16(weights.astype(np.float32) + noise * np.float32(scale)) != weights).mean()
        low, high = (scale, high) if changed < density else (low, scale)
    return float(scale)


def read_file(path: str) -> None:
    """Read a file into one buffer and throw the bytes away."""
    buffer = memoryview(bytearray(CHUNK))
    descriptor = os.open(path, os.O_RDONLY)
    offset = 0
    while got := os.preadv(descriptor, [buffer], offset):
        offset += got
    os.close(descriptor)


def naive(base: Path, tuned: Path) -> int:
    """Load both whole and compare tensor by tensor, as the published script does."""
    before, after = load_file(base), load_file(tuned)
    unchanged = 0
    for name, old in before.items():
        delta = (after[name] - old).float()
        unchanged += int(torch.isclose(delta, torch.zeros_like(delta), atol=1e-5, rtol=0).sum())
    return unchanged


def best_of(times: int, work: Callable[[], Any]) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def one_pair(corpus: Path, name: str) -> Corpus:
    """The corpus with one of its pairs."""
    whole = load_corpus(corpus)
    pairs = tuple(p for p in whole.pairs if p.name == name)
    return whole.model_copy(update={"pairs": pairs, "trajectories": ()})


def measure_extract(corpus: Path, name: str, folder: Path) -> tuple[float, float]:
    """Seconds of a cold extraction, and of the best of 3, each into a fresh store."""
    plan = make_plan(one_pair(corpus, name))
    seconds = []
    for run in range(4):
        store = folder / f"store-{run}"
        start = time.perf_counter()
        outcome = extract(plan, str(store))
        seconds.append(time.perf_counter() - start)
        if outcome.failed:
            raise SystemExit(f"extraction failed: {outcome.failed}")
        if run:
            shutil.rmtree(store)
    return seconds[0], min(seconds[1:])


def bench_pair(corpus: Path, name: str, folder: Path, title: str) -> None:
    """Measure one pair and print its table."""
    (pair,) = make_plan(one_pair(corpus, name)).pairs
    files = sorted({t.file.path for c in (pair.base, pair.tuned) for t in c.tensors})
    nbytes = sum(Path(path).stat().st_size for path in files)
    for path in files:
        read_file(path)
    roof = best_of(5, lambda: [read_file(path) for path in files])
    with ProcessPoolExecutor(PROCESSES) as pool:
        list(pool.map(read_file, files))
        roof_all = best_of(5, lambda: list(pool.map(read_file, files)))
    slow = best_of(1, lambda: naive(*map(Path, files))) if len(files) == 2 else float("nan")
    start = time.perf_counter()
    with ray_session(None):
        started = time.perf_counter() - start
        cold, warm = measure_extract(corpus, name, folder)
        peak = worker_peak()
    with connect(folder / "store-0") as con:
        facts = run_query(con, "storage").to_pylist()[0]
        density = run_sql(
            con, "SELECT sum(changed) / sum(numel) AS d FROM counts WHERE criterion = 'exact'"
        )["d"][0].as_py()
    shutil.rmtree(folder / "store-0")
    ratio = facts["mask_bits_a_parameter"] / facts["entropy_bits_a_parameter"]
    table = Table(title=f"{title}: {pair.numel:,} parameters a side, density {density:.3f}")
    for heading in ("way", "seconds", "GB/s", "of the roof", "times naive"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for way, seconds in (
        ("roof: preadv, 1 process", roof),
        (f"roof: preadv, {PROCESSES} processes", roof_all),
        ("naive: load whole, torch.isclose", slow),
        ("rlsparse extract, cold workers", cold),
        ("rlsparse extract, warm workers", warm),
    ):
        table.add_row(
            way,
            f"{seconds:.2f}",
            f"{nbytes / seconds / 1e9:.2f}",
            f"{roof / seconds:.2f}",
            f"{slow / seconds:.1f}",
        )
    console.print(table)
    console.print(
        f"Ray start {started:.1f} s; peak memory of a worker {peak / 2**30:.2f} GiB; masks "
        f"{facts['mask_bits_a_parameter']:.3f} bits a parameter, {ratio:.3f} of their entropy\n"
    )


def bench_sql(corpus: Path, folder: Path) -> None:
    """The overlap of the two masks in plain SQL."""
    store = folder / "store-sql"
    with ray_session(None):
        extract(make_plan(load_corpus(corpus)), str(store))
    with connect(store) as con:
        ask = "FROM overlap_total('tuned-0', 'tuned-1', 'exact')"
        cold = best_of(1, lambda: run_sql(con, ask))
        warm = best_of(3, lambda: run_sql(con, ask))
        (row,) = run_sql(con, ask).to_pylist()
    console.print(
        f"SQL, overlap of two masks of {row['numel']:,} parameters: {cold:.2f} s cold, "
        f"{warm:.2f} s warm ({row['shared']:,} shared)"
    )


def main() -> None:
    """Parse the options and run everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--params", type=float, default=1.06e9, help="parameters a side")
    parser.add_argument("--density", type=float, default=0.15, help="share of changed weights")
    parser.add_argument("--dir", type=Path, help="where to work (needs 10 bytes a parameter)")
    parser.add_argument("--smollm", type=Path, help="folder of `rlsparse demo`: its real pair too")
    args = parser.parse_args()
    console.print(f"{PROCESSES} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB memory")
    with tempfile.TemporaryDirectory(dir=args.dir) as place:
        corpus = make_models(Path(place) / "models", args.params, args.density)
        bench_pair(corpus, "tuned-0", Path(place), "synthetic")
        bench_sql(corpus, Path(place))
        if args.smollm:
            real = args.smollm / "corpus.yaml"
            name = next(p.name for p in load_corpus(real).pairs if "smollm" in p.name)
            bench_pair(real, name, Path(place), f"real ({name})")


if __name__ == "__main__":
    main()
