"""How extraction scales: workers on this machine, Ray's overhead, and a simulated large cluster.

    python benchmarks/scale.py [--slices 100000] [--params 2.4e8] [--dir DIR]

Method. Four parts, all in one run.

  workers   a synthetic bf16 pair (as in benchmarks/extract.py, slices of 16 MiB) is extracted by
            Rays of 1, 2 and 4 workers, warm, into fresh stores; the best of 3 counts. More workers
            than cores show what sharing them costs
  overhead  slices as 1,000 pairs of 8 B parameters give them (the header of a Llama 3.1 8B over a
            sparse file, 16 tuned models a base) go through the same submission and collection as
            real ones, but their function returns at once: seconds a slice, and the driver's memory
            before, with the plan of all 1,000 pairs, and after
  tail      32 slices, one of which is eight times as large, on 4 workers that only sleep: file
            order, with the large one at its usual place near the end, against largest first
  cluster   1,000 pairs x 8 B on 64 nodes, event by event: each slice takes the slower of its
            share of the node's network and of its core's time (fetching, comparing and writing at
            the rates below), the driver submits one after the other at the overhead measured

Stated and not measured here: node, price, network and the CPU time of fetching (`Place`).
"""

import argparse
import heapq
import json
import math
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import psutil
import ray
from extract import best_of, console, make_models
from rich.table import Table

from rlsparse_ray.cluster import Resources, extract
from rlsparse_ray.cluster.session import Room
from rlsparse_ray.cluster.tasks import drain, get, task
from rlsparse_ray.corpus import load_corpus
from rlsparse_ray.plan import Plan, Slice, make_plan
from rlsparse_ray.runs import largest_first
from rlsparse_ray.slices import SliceReport

LAYERS, HIDDEN, INNER, KV, VOCABULARY = 32, 4096, 14_336, 1024, 128_256
PAIRS, TUNED = 1000, 16


@dataclass(frozen=True)
class Place:
    """Where the cluster is simulated: AWS, us-east-1, a bucket of the same region."""

    nodes: int = 64
    cores: int = 8
    """Physical ones of a c6in.4xlarge, one slice each."""
    network: float = 3.1e9
    """Bytes a second a node: 25 Gbit/s sustained."""
    fetch: float = 1.3e9
    """Bytes a second a core can take from an object store: 0.8 CPU s/GiB."""
    dollars: float = 0.91
    """An hour of a node on demand; spot is about 60 % less."""
    get: float = 0.4e-6
    """Dollars a request, of 8 MiB each."""
    boot: float = 180.0
    """Seconds until a node that is asked for works."""


def model_of(folder: Path) -> None:
    """A Llama of 8 B parameters in bf16: the real header, and a file without a byte on the disk."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for n in range(LAYERS):
        layer = f"model.layers.{n}"
        shapes |= {
            f"{layer}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{layer}.self_attn.k_proj.weight": (KV, HIDDEN),
            f"{layer}.self_attn.v_proj.weight": (KV, HIDDEN),
            f"{layer}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{layer}.mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{layer}.mlp.up_proj.weight": (INNER, HIDDEN),
            f"{layer}.mlp.down_proj.weight": (HIDDEN, INNER),
            f"{layer}.input_layernorm.weight": (HIDDEN,),
            f"{layer}.post_attention_layernorm.weight": (HIDDEN,),
        }
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)


def large_plan(folder: Path, pairs: int) -> Plan:
    """The plan of some pairs of 8 B parameters, 16 tuned models a base."""
    lines = ["version: 1", "pairs:"]
    for number in range(pairs):
        base, tuned = f"base-{number // TUNED}", f"tuned-{number}"
        for name in (base, tuned):
            if not (folder / name).exists():
                model_of(folder / name)
        lines.append(f"  - {{name: {tuned}, base: ./{base}, tuned: ./{tuned}}}")
    corpus = folder / "corpus.yaml"
    corpus.write_text("\n".join(lines))
    return make_plan(load_corpus(corpus))


def start_ray(workers: int) -> None:
    """A Ray of so many workers, without a dashboard."""
    ray.init(
        address="local",
        num_cpus=workers,
        include_dashboard=False,
        object_store_memory=256 << 20,
        log_to_driver=False,
        logging_level="ERROR",
    )


def bench_workers(folder: Path, params: float) -> dict[int, float]:
    """Bytes a second by workers."""
    corpus = make_models(folder / "pair", params, 0.15)
    text = corpus.read_text().replace("128MiB", "16MiB")
    corpus.write_text(text)
    plan = make_plan(load_corpus(corpus))
    rates = {}
    for workers in (1, 2, 4):
        start_ray(workers)
        stores = (str(folder / f"store-{workers}-{n}") for n in range(4))
        extract(plan, next(stores))
        rates[workers] = plan.nbytes / best_of(3, lambda stores=stores: extract(plan, next(stores)))
        ray.shutdown()
    return rates


def run_all(function: Callable[..., object], works: Iterable[object], workers: int) -> float:
    """Seconds until a Ray of its own has run `function` on everything, as extraction runs slices.

    Args:
        function: called with one of `works`, a string and a set.
        works: in their order; a Slice each, or a number of seconds.
        workers: of the Ray.
    """
    waiting, flying = deque(works), {}
    start_ray(workers)
    resources = Resources("cpu")
    room, remote = Room(resources), task(function, resources, "cpu")

    def submit() -> bool:
        lane = room.lane() if waiting else None
        if lane is None:
            return False
        work = waiting.popleft()
        memory = work.memory if isinstance(work, Slice) else 0
        ref = remote.options(memory=min(memory, lane.memory)).remote(work, "store", frozenset())
        flying[ref] = work
        room.flying[lane.device] += 1
        return True

    def collect(ref: object, work: object) -> None:
        get(ref, "slice")
        room.flying["cpu"] -= 1

    begin = time.perf_counter()
    drain(flying, submit, collect)
    seconds = time.perf_counter() - begin
    ray.shutdown()
    return seconds


def empty(piece: Slice, root: str, kept: frozenset[object]) -> SliceReport:
    """A slice that costs nothing."""
    return SliceReport(0, {})


def nap(seconds: float, root: str, kept: frozenset[object]) -> None:
    """A slice that takes so long."""
    time.sleep(seconds)


def bench_overhead(folder: Path, slices: int, pairs: int) -> tuple[float, Sequence[int]]:
    """Seconds a slice, and the bytes of each slice of 1,000 pairs."""
    process = psutil.Process()
    before = process.memory_info().rss
    start = time.perf_counter()
    plan = large_plan(folder / "large", pairs)
    planned = time.perf_counter() - start
    with_plan = process.memory_info().rss
    many = islice(cycle(plan.slices), slices)
    seconds = run_all(empty, many, psutil.cpu_count() or 1) / slices
    after = process.memory_info().rss
    sizes = [piece.nbytes for piece in largest_first(plan.slices)]
    plan_bytes = (with_plan - before) / pairs
    console.print(
        f"driver: {len(plan.slices)} slices of {pairs} pairs x 8 B planned in {planned:.1f} s, "
        f"{plan_bytes / 2**20:.2f} MiB a pair ({plan_bytes * PAIRS / 2**30:.2f} GiB for all); "
        f"{slices:,} empty slices: {1e3 * seconds:.2f} ms each, "
        f"{(after - with_plan) / 2**20:.0f} MiB more memory"
    )
    whole = cycle(sizes)
    return seconds, sorted(islice(whole, len(sizes) * PAIRS // pairs), reverse=True)


def bench_tail() -> None:
    """A skewed plan in two orders, on workers that sleep: the schedule and nothing else."""
    sizes = [0.25] * 32
    sizes[-3] = 2.0
    ideal = sum(sizes) / 4
    for way, order in (("file order", sizes), ("largest first", sorted(sizes, reverse=True))):
        seconds = run_all(nap, [0.01] * 8 + order, 4)
        console.print(f"tail, {way}: {seconds:.1f} s (evenly shared: {ideal:.1f} s)")


@dataclass(frozen=True)
class Simulated:
    """What the cluster took."""

    hours: float
    dollars: float
    busy: Counter[str]
    """Share of the time in which each resource works."""


def simulate(sizes: Sequence[int], place: Place, compare: float, overhead: float) -> Simulated:
    """Every core takes the next slice when it is free; the driver hands them out one by one.

    Args:
        sizes: bytes of the slices, in their order.
        place: the cluster.
        compare: bytes a second that a core compares and writes.
        overhead: seconds that the driver spends on a slice.
    """
    share = place.network / place.cores
    cores = [place.boot] * (place.nodes * place.cores)
    driver = 0.0
    for size in sizes:
        driver = max(driver, 0.0) + overhead
        start = max(heapq.heappop(cores), driver)
        heapq.heappush(cores, start + max(size / share, size / place.fetch + size / compare))
    seconds, total = max(cores), float(sum(sizes))
    lasted = seconds * place.nodes
    busy = Counter(
        network=total / place.network / lasted,
        cores=total * (1 / place.fetch + 1 / compare) / place.cores / lasted,
        driver=len(sizes) * overhead / seconds,
    )
    requests = total / (8 << 20) * place.get
    return Simulated(seconds / 3600, lasted / 3600 * place.dollars + requests, busy)


def bench_cluster(sizes: Sequence[int], compare: float, overhead: float) -> None:
    """The table of the simulated cluster."""
    table = Table(title=f"{PAIRS:,} pairs x 8 B, {sum(sizes) / 1e12:.1f} TB, {len(sizes):,} slices")
    for heading in ("nodes", "hours", "dollars", "network", "cores", "driver", "limit"):
        table.add_column(heading, justify="right")
    for nodes in (1, 8, 64):
        found = simulate(sizes, replace(Place(), nodes=nodes), compare, overhead)
        shares = [f"{found.busy[name]:.0%}" for name in ("network", "cores", "driver")]
        ((limit, share),) = found.busy.most_common(1)
        limit = limit if share > 0.5 else f"start and tail ({limit})"
        table.add_row(f"{nodes}", f"{found.hours:.2f}", f"{found.dollars:.2f}", *shares, limit)
    console.print(table)


def main() -> None:
    """Parse the options and run everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--slices", type=int, default=100_000, help="empty slices")
    parser.add_argument("--pairs", type=int, default=160, help="pairs really planned, of 1,000")
    parser.add_argument("--params", type=float, default=2.4e8, help="parameters of the real pair")
    parser.add_argument("--dir", type=Path, help="where to work (needs 10 bytes a parameter)")
    args = parser.parse_args()
    console.print(f"{psutil.cpu_count()} cores, load {psutil.getloadavg()[0]:.1f} at the start")
    with tempfile.TemporaryDirectory(dir=args.dir) as place:
        rates = bench_workers(Path(place), args.params)
        for workers, rate in rates.items():
            console.print(
                f"{workers} workers: {rate / 1e9:.2f} GB/s, {rate / rates[1]:.2f} times 1"
            )
        overhead, sizes = bench_overhead(Path(place), args.slices, args.pairs)
        bench_tail()
        bench_cluster(sizes, rates[1], overhead)


if __name__ == "__main__":
    main()
