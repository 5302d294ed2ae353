"""Extraction from object storage against the rate at which its bytes can be read, in one run.

    python benchmarks/remote.py [--params 1.2e8] [--density 0.15] [--dir DIR]

Method. A synthetic bf16 pair (as in benchmarks/extract.py) is uploaded once to an S3 server
(SeaweedFS) on this machine. Then, all without a proxy and on the same bytes, in rounds of

  obstore  ranges of 8 MiB of both files, 8 threads, into memory and thrown away
  urllib3  the same on presigned URLs
  rlsparse `rlsparse_ray.cluster.extract` with every statistic and two masks, into a fresh store on
           the disk, on a Ray that runs already and has warm workers; for comparison also with the
           models on the disk, in the page cache: what the arithmetic and the store take

the best of 3 rounds counts for each way. Bytes a second count the bytes of both files; the ratio is
that of rlsparse to the faster of the two others. Server and clients share the cores, so that the
arithmetic of the comparison takes its time from the server's; where the storage is another machine
the ratio is higher. The bytes that the server sent are not counted here: tests do that.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import obstore
import urllib3
from extract import best_of, console, make_models, one_pair
from rich.table import Table

from rlsparse_ray.cluster import extract, ray_session
from rlsparse_ray.plan import Plan, make_plan
from tests.servers.s3 import S3Server, s3_server

BUCKET = "models"
PIECE = 8 << 20
THREADS = 8
ROUNDS = 3

Span = tuple[str, int, int]
"""Key, first byte, end."""


def spans_of(folder: Path) -> list[Span]:
    """Both files of the pair in pieces, in turns."""
    files = [folder / name / "model.safetensors" for name in ("base", "tuned-0")]
    size = files[0].stat().st_size
    return [
        (f"{path.parent.name}/{path.name}", start, min(start + PIECE, size))
        for start in range(0, size, PIECE)
        for path in files
    ]


def read_all(read: Callable[[Span], int], spans: list[Span]) -> None:
    """Read every span, in parallel."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = sum(pool.map(read, spans))
    if found != sum(end - start for _, start, end in spans):
        raise SystemExit(f"short reads: {found} bytes")


def with_obstore(server: S3Server) -> Callable[[Span], int]:
    """A reader of spans."""
    store = server.store(BUCKET)

    def read(span: Span) -> int:
        key, start, end = span
        return len(obstore.get_range(store, key, start=start, end=end))

    return read


def with_urllib3(server: S3Server, keys: set[str]) -> Callable[[Span], int]:
    """A reader of spans; the addresses are signed beforehand."""
    store = server.store(BUCKET)
    urls = {key: obstore.sign(store, "GET", key, timedelta(hours=1)) for key in keys}
    pool = urllib3.PoolManager(maxsize=THREADS)

    def read(span: Span) -> int:
        key, start, end = span
        headers = {"Range": f"bytes={start}-{end - 1}"}
        return len(pool.request("GET", urls[key], headers=headers).data)

    return read


def extract_into(plan: Plan, store: Path) -> None:
    """One extraction; the store is thrown away."""
    outcome = extract(plan, str(store))
    if outcome.failed:
        raise SystemExit(f"extraction failed: {outcome.failed}")
    shutil.rmtree(store)


def measure(server: S3Server, corpus: Path, folder: Path) -> None:
    """Measure every way and print the table."""
    spans = spans_of(corpus.parent)
    nbytes = sum(end - start for _, start, end in spans)
    remote = corpus.with_name("remote.yaml")
    text = corpus.read_text()
    for name in ("base", "tuned-0", "tuned-1"):
        text = text.replace(f"./{name}", f"s3://{BUCKET}/{name}")
    remote.write_text(text)
    there, here = (make_plan(one_pair(path, "tuned-0")) for path in (remote, corpus))
    one, two = with_obstore(server), with_urllib3(server, {key for key, _, _ in spans})
    ways: dict[str, Callable[[], None]] = {
        "obstore": lambda: read_all(one, spans),
        "urllib3": lambda: read_all(two, spans),
        "rlsparse, from the disk": lambda: extract_into(here, folder / "store"),
        "rlsparse": lambda: extract_into(there, folder / "store"),
    }
    seconds = dict.fromkeys(ways, float("inf"))
    with ray_session(None):
        ways["rlsparse"]()
        for _ in range(ROUNDS):
            for way, work in ways.items():
                seconds[way] = min(seconds[way], best_of(1, work))
    roof = min(seconds["obstore"], seconds["urllib3"])
    table = Table(title=f"{nbytes / 1e6:,.0f} MB from S3, best of {ROUNDS}")
    for heading in ("way", "seconds", "MB/s", "of the fastest"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for way, taken in seconds.items():
        table.add_row(way, f"{taken:.2f}", f"{nbytes / taken / 1e6:.0f}", f"{roof / taken:.2f}")
    console.print(table)


def main() -> None:
    """Parse the options and run everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--params", type=float, default=1.2e8, help="parameters a side")
    parser.add_argument("--density", type=float, default=0.15, help="share of changed weights")
    parser.add_argument("--dir", type=Path, help="where to work (needs 12 bytes a parameter)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as place:
        corpus = make_models(Path(place) / "models", args.params, args.density)
        with s3_server(Path(place) / "server") as server:
            os.environ.update(server.environment | {"AWS_ENDPOINT_URL": server.direct})
            server.create_bucket(BUCKET)
            start = time.perf_counter()
            for name in ("base", "tuned-0"):
                server.upload(corpus.parent / name, BUCKET, name)
            console.print(f"uploaded in {time.perf_counter() - start:.1f} s")
            measure(server, corpus, Path(place))


if __name__ == "__main__":
    main()
