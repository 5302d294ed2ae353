"""All overlaps of a population of masks, against two physical limits, in one run.

    python benchmarks/population.py [--masks 64] [--params 256e6] [--density 0.15] [--dir DIR]

Method. A store with N synthetic masks over one bf16 base is written to DIR: tensors of 4,096 x
4,096 parameters, each bit set at random with the density, the other tables filled as extraction
fills them (its strata and margins are placeholders of the right size: they cost what real ones do).
Then five rounds of these one after the other, everything warm in the page cache, the best of each:

  read     every mask part is read and decompressed once by pyarrow, and thrown away, in as many
           processes as there are cores
  popcount all N (N - 1) / 2 overlaps by numba over masks that lie in RAM, block by block: one
           core, divided by the cores (what perfect scaling would give)
  overlap  `rlsparse_ray.cluster.overlaps` from the plan to the files in the store, on a Ray that
           runs already and whose workers have done one pass (its start is timed apart)

The pass is held against the slower of the two limits, though it does the work of both on the same
cores. Then the same pass for 8, 16, 32, ... N masks, counting every block and a sample of 5 % of
them, each the best of 2. A pair-parameter is one parameter looked at in two masks. Memory is the
largest VmHWM of a Ray worker over all passes, which counts shared libraries too. Some overlaps are
compared with numpy's.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from memory import worker_peak
from rich.console import Console
from rich.table import Table

from rlsparse_ray import tables
from rlsparse_ray.blocks import BLOCK
from rlsparse_ray.cluster import overlaps, ray_session
from rlsparse_ray.compare.popcount import addresses_of, shared_bits
from rlsparse_ray.masks import MaskWriter
from rlsparse_ray.population.overlap_plan import OverlapPlan, plan_overlaps
from rlsparse_ray.sql import connect, run_sql
from rlsparse_ray.store import SMALL_TABLES, Part, Store, mask_path

SIDE = 4096
NUMEL = SIDE * SIDE
BLOCKS = NUMEL // BLOCK
CORES = os.cpu_count() or 1
LIMIT = 2.0
"""The pass may take so many times the slower limit."""

console = Console(width=100)


def bits_of(mask: int, tensor: int, density: float) -> Any:
    """Random bits of one tensor, [bytes]: the same whenever they are asked for.

    Each is set with the density rounded to 1/256: from its lowest binary digit up, a digit 1 is an
    `or` with random bits and a digit 0 an `and`.
    """
    rng = np.random.default_rng((mask, tensor))
    bits = np.zeros(NUMEL // 64, np.uint64)
    for digit in range(8):
        drawn = rng.integers(0, 2**64, NUMEL // 64, np.uint64)
        bits = bits | drawn if round(density * 256) >> digit & 1 else bits & drawn
    return bits.view(np.uint8)


def write_mask(root: str, mask: int, tensors: int, density: float) -> None:
    """One committed pair of the store: its mask, and small tables of the usual size."""
    store = Store.open(root)
    pair_id = f"run-{mask:03d}-00000000"
    path = mask_path(pair_id, "exact", 0)
    scratch = store.files.scratch(f"staging/{pair_id}/part")
    writer = MaskWriter(scratch)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SMALL_TABLES}
    for tensor in range(tensors):
        bits = bits_of(mask, tensor, density)
        changed = np.bitwise_count(bits).reshape(BLOCKS, -1).sum(1).astype(np.int32)
        name = f"layers.{tensor}.mlp.up_proj.weight"
        writer.add(f"{name} [{SIDE},{SIDE}]", 0, NUMEL, changed, bits)
        add_rows(rows, tensor, name, int(changed.sum()))
    writer.close()
    part = store.publish_part(scratch, path, writer.rows)
    small = {name: tables.to_table(name, found) for name, found in rows.items()}
    parts = [store.write_table(name, pair_id, table) for name, table in small.items()]
    store.commit(pair_id, pair_row(mask, tensors, part), parts)


def add_rows(rows: dict[str, list[dict[str, Any]]], tensor: int, name: str, changed: int) -> None:
    """Rows of the small tables for one tensor; evenly spread where only the cost matters."""
    key = {"tensor": name, "tensor_key": f"{name} [{SIDE},{SIDE}]"}
    facts: dict[str, Any] = dict.fromkeys(tables.TENSORS.names)
    facts |= key | {
        "layer": tensor,
        "module": "mlp.up_proj",
        "kind": "mlp",
        "shape": [SIDE, SIDE],
        "compare_dtype": "BF16",
        "status": "compared",
        "numel": NUMEL,
        "base_xxh3": f"{tensor:016x}",
    }
    rows["tensors"].append(facts)
    key |= {"criterion": "exact"}
    rows["counts"].append(key | {"numel": NUMEL, "changed": changed})
    for exponent in range(16):
        stratum = {"exponent": exponent - 20, "numel": NUMEL // 16, "changed": changed // 16}
        rows["strata"].append(key | stratum)
    margin = [changed // SIDE + (n < changed % SIDE) for n in range(SIDE)]
    rows["margins"].append(key | {"changed_per_row": margin, "changed_per_column": margin})


def pair_row(mask: int, tensors: int, part: Part) -> dict[str, Any]:
    """The row that commits a pair."""
    numbers = {f.name: 0 for f in tables.PAIRS if f.name.startswith(("numel", "tensors"))}
    facts = {
        "name": f"run-{mask:03d}",
        "base_source": "base",
        "tuned_source": f"run-{mask:03d}",
        "labels": [],
        "numel": tensors * NUMEL,
        "tensors_compared": tensors,
        "criteria": ["exact"],
        "counted_criteria": ["exact"],
        "block": BLOCK,
        "schema_version": tables.SCHEMA_VERSION,
        "created_at": datetime.now(UTC),
        "parts": [{"path": part.path, "rows": part.rows, "bytes": part.bytes, "xxh3": part.xxh3}],
    }
    return dict.fromkeys(tables.PAIRS.names) | numbers | facts


def read_part(path: str) -> None:
    """Read and decompress a mask part, a row group at a time."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            file.read_row_group(group, ["block", "bits"], use_threads=False)


def seconds_of(work: Callable[[], Any]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run_pass(root: str, fraction: float) -> OverlapPlan:
    """Plan, count and write."""
    plan = plan_overlaps(root, "exact", fraction)
    overlaps(plan, root)
    return plan


def measure_pass(store: Path, count: int, fraction: float) -> float:
    """Seconds of a pass over the first `count` masks; nothing is kept of an earlier one."""
    hide(store, count)
    Store.open(store).files.remove("overlaps")
    return seconds_of(lambda: run_pass(str(store), fraction))


def hide(store: Path, count: int) -> None:
    """Leave the rows of the first `count` pairs where readers see them."""
    aside = store.with_name("aside")
    aside.mkdir(exist_ok=True)
    for row in aside.iterdir():
        row.rename(store / "pairs" / row.name)
    for row in sorted((store / "pairs").iterdir())[count:]:
        row.rename(aside / row.name)


def check(store: Path, tensors: int, density: float) -> None:
    """Two overlaps against numpy."""
    for a, b in ((0, 1), (2, 7)):
        want = sum(
            int(np.bitwise_count(bits_of(a, t, density) & bits_of(b, t, density)).sum())
            for t in range(tensors)
        )
        with connect(store) as con:
            text = (
                "SELECT sum(shared) AS shared FROM pair_overlaps WHERE pair_a LIKE "
                f"'run-{a:03d}-%' AND pair_b LIKE 'run-{b:03d}-%'"
            )
            found = run_sql(con, text)["shared"][0].as_py()
        if found != want:
            raise SystemExit(f"overlap of masks {a} and {b}: {found} instead of {want}")


def load(store: Path, count: int, blocks: int) -> Any:
    """The first blocks of the first masks, [blocks, masks, words]."""
    found = np.empty((blocks, count, BLOCK // 64), np.uint64)
    for mask in range(count):
        path = store / mask_path(f"run-{mask:03d}-00000000", "exact", 0)
        bits = next(pq.ParquetFile(path).iter_batches(blocks, columns=["bits"])).column(0)
        for n, blob in enumerate(bits.to_pylist()):
            found[n, mask] = np.frombuffer(blob, np.uint64)
    return found


def bench(folder: Path, count: int, tensors: int, density: float) -> None:
    """Write the population, measure, print."""
    store = folder / "store"
    Store.create(store)
    write = partial(write_mask, str(store), tensors=tensors, density=density)
    start = time.perf_counter()
    with ProcessPoolExecutor(CORES) as pool:
        list(pool.map(write, range(count)))
    parts = [str(p) for p in sorted(store.glob("masks/*/*/*.parquet"))]
    raw = count * tensors * NUMEL // 8
    console.print(
        f"{count} masks of {tensors * NUMEL:,} parameters, density {density}: "
        f"{raw / 2**30:.2f} GiB of bits, {sum(map(os.path.getsize, parts)) / 2**30:.2f} GiB in "
        f"Parquet, written in {time.perf_counter() - start:.0f} s; {CORES} cores, load "
        f"{os.getloadavg()[0]:.1f}"
    )
    held = min(512, tensors * BLOCKS)
    masks = load(store, count, held)
    blocks, words = addresses_of(masks), BLOCK // 64
    shared_bits(blocks[:1], words)
    rounds = []
    start = time.perf_counter()
    with ProcessPoolExecutor(CORES) as pool, ray_session(None):
        started = time.perf_counter() - start
        list(pool.map(read_part, parts[:CORES]))
        measure_pass(store, min(8, count), 1.0)
        for _ in range(5):
            read_all = seconds_of(lambda: list(pool.map(read_part, parts)))
            counted = seconds_of(lambda: shared_bits(blocks, words)) * tensors * BLOCKS / held
            rounds.append((read_all, counted / CORES, measure_pass(store, count, 1.0)))
        check(store, tensors, density)
        files = [p.stat().st_size for p in store.glob("overlaps/*/*.parquet")]
        growth = [
            (n, *(min(measure_pass(store, n, f) for _ in range(2)) for f in (1.0, 0.05)))
            for n in (8, 16, 32, 64, 128, 256)
            if n <= count
        ]
        peak = worker_peak()
    read_all, counted, whole = (min(column) for column in zip(*rounds, strict=True))
    pairs = len(list(combinations(range(count), 2))) * tensors * NUMEL
    roof = max(read_all, counted)
    table = Table(title=f"{count * (count - 1) // 2:,} overlaps")
    for heading in ("way", "seconds", "G pair-params/s", "times the slower limit"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for way, seconds in (
        (f"limit: read and decompress, {CORES} cores", read_all),
        (f"limit: popcount in RAM, {CORES} cores", counted),
        (f"rlsparse overlap, {CORES} cores", whole),
    ):
        rate = "" if "read" in way else f"{pairs / seconds / 1e9:,.0f}"
        table.add_row(way, f"{seconds:.2f}", rate, f"{seconds / roof:.2f}")
    console.print(table)
    verdict = "within" if whole <= LIMIT * roof else "NOT within"
    ratios = ", ".join(f"{own / max(limits):.2f}" for *limits, own in rounds)
    console.print(
        f"the pass is {verdict} {LIMIT:g} times the slower limit (round by round: "
        f"{ratios}); load {os.getloadavg()[0]:.1f}; peak memory of a worker "
        f"{peak / 2**30:.2f} GiB; Ray start {started:.1f} s; overlaps: {sum(files) / 2**20:.1f} MiB"
    )
    table = Table(title="growth with the number of masks")
    for heading in ("masks", "overlaps", "all blocks, s", "G pair-params/s", "5 % of blocks, s"):
        table.add_column(heading, justify="right")
    for n, full, sampled in growth:
        every = n * (n - 1) // 2
        rate = every * tensors * NUMEL / full / 1e9
        table.add_row(str(n), f"{every:,}", f"{full:.2f}", f"{rate:,.0f}", f"{sampled:.2f}")
    console.print(table)


def main() -> None:
    """Parse the options and run everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--masks", type=int, default=64, help="how many masks")
    parser.add_argument("--params", type=float, default=256e6, help="parameters of a mask")
    parser.add_argument("--density", type=float, default=0.15, help="share of bits set")
    parser.add_argument("--dir", type=Path, help="where to work (0.1 bytes a bit)")
    args = parser.parse_args()
    if args.masks < 8:
        parser.error("--masks: at least 8")
    with tempfile.TemporaryDirectory(dir=args.dir) as place:
        bench(Path(place), args.masks, max(1, round(args.params / NUMEL)), args.density)


if __name__ == "__main__":
    main()
