"""Verbs on the way from a corpus to a store."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer
from rich.markup import escape

from rlsparse_ray import console
from rlsparse_ray.cli.app import (
    Address,
    Cache,
    CorpusFile,
    Device,
    GpuFraction,
    Json,
    StorePath,
    app,
    print_problems,
)
from rlsparse_ray.console import Format


@app.command(rich_help_panel="From models to a store")
def plan(corpus: CorpusFile, json: Json = False) -> None:
    """Resolve a corpus and say what an extraction would read; reads no weights.

    Example: `rlsparse plan corpus.yaml`
    """
    from rlsparse_ray.corpus import load_corpus
    from rlsparse_ray.plan import make_plan

    made = make_plan(load_corpus(corpus))
    slices = Counter(i for piece in made.slices for i in piece.pair_ids)
    rows = [
        {
            "name": pair.entry.name,
            "algorithm": pair.entry.algorithm,
            "tensors": sum(row.compared for row in pair.rows),
            "tensors_not_compared": sum(not row.compared for row in pair.rows),
            "numel": pair.numel,
            "slices": slices[pair.pair_id],
            "pair_id": pair.pair_id,
        }
        for pair in made.pairs
    ]
    console.show(pa.Table.from_pylist(rows), Format.json if json else Format.table)
    if not json:
        console.out.print(
            f"\n{console.count(len(made.pairs), 'pair')}, "
            f"{console.count(len(made.slices), 'slice')}, "
            f"{console.size(made.nbytes)} to read (a base once for all its tuned models)"
        )
        if made.slices:
            console.suggest(["rlsparse", "extract", str(corpus), "--store", "./store"])
    print_problems(made.failed)
    raise typer.Exit(1 if made.failed else 0)


@app.command(rich_help_panel="From models to a store")
def extract(
    corpus: CorpusFile,
    store: StorePath,
    device: Device = "auto",
    address: Address = None,
    gpu_fraction: GpuFraction = 1.0,
    cache: Cache = False,
    json: Json = False,
) -> None:
    """Compare every pair of a corpus and keep masks and statistics in a store.

    What the store already holds is not read again; after an interruption the same command goes
    on where it stopped. Exit code 1 if any pair failed.

    Example: `rlsparse extract corpus.yaml --store ./store`
    """
    from rlsparse_ray.cluster import Resources
    from rlsparse_ray.cluster import extract as run
    from rlsparse_ray.corpus import load_corpus
    from rlsparse_ray.plan import make_plan

    made = make_plan(load_corpus(corpus))
    resources = Resources(device, gpu_fraction)
    outcome = console.with_progress(
        "extract",
        made.nbytes,
        lambda advance: run(
            made, store, resources=resources, address=address, cache=cache, progress=advance
        ),
    )
    done = {
        "extracted": outcome.committed,
        "already there": outcome.unchanged,
        "relabelled": outcome.relabelled,
        "failed": list(outcome.failed),
    }
    if json:
        console.show(pa.Table.from_pylist([asdict(outcome) | {"store": store}]), Format.json)
    else:
        parts = [f"{len(names)} {what}" for what, names in done.items() if names]
        read = f"{console.size(outcome.nbytes)} read"
        console.out.print(f"{', '.join(parts)}; {read}; store: {escape(store)}")
        if outcome.ok:
            console.suggest(
                ["rlsparse", "query", "sparsity_by_pair", "--store", store],
                ["rlsparse", "overlap", "--store", store],
                ["rlsparse", "report", "--store", store],
            )
    print_problems(outcome.failed, outcome.doubts)
    raise typer.Exit(0 if outcome.ok else 1)


@app.command(rich_help_panel="From models to a store")
def demo(
    fast: Annotated[
        bool, typer.Option("--fast", help="Tiny models only: without SmolLM2-135M.")
    ] = False,
    folder: Annotated[Path, typer.Option(help="Where models and store go.")] = Path(
        "rlsparse-demo"
    ),
    json: Json = False,
) -> None:
    """The whole way on real weights: trains models with RL, extracts their masks, asks questions.

    It ends with a report, FOLDER/report.html. Trained models are kept, so a second run takes
    seconds.

    Example: `rlsparse demo --fast`
    """
    from rlsparse_ray.experiments.extras import require_trainers

    require_trainers()
    from rlsparse_ray.demo.run import make_demo, print_demo

    made = make_demo(folder, smollm=not fast)
    if json:
        places = {"corpus": made.corpus, "store": made.store, "report": made.report}
        row = {name: str(path) for name, path in places.items()} | {"seconds": made.seconds}
        console.show(pa.Table.from_pylist([row]), Format.json)
    else:
        print_demo(made)


@app.command(rich_help_panel="From models to a store")
def discover(corpus: CorpusFile, json: Json = False) -> None:
    """Ask the hub what the rules of a corpus find, as YAML to paste under `pairs:`.

    Labels are guesses from names and model cards, and say so. How many models were left out, and
    for what reasons, is on standard error; with --json, which ones. Exit code 1 if a rule failed.

    Example: `rlsparse discover corpus.yaml`
    """
    from rlsparse_ray.corpus import load_corpus
    from rlsparse_ray.discovery.rules import discover as ask
    from rlsparse_ray.discovery.text import as_json, as_yaml

    rules = load_corpus(corpus)
    found = ask(rules)
    print(as_json(found) if json else as_yaml(found), end="\n" if json else "")
    console.err.print(
        f"{console.count(len(rules.discover), 'rule')}: "
        f"{console.count(len(found.found), 'pair')} to add, "
        f"{console.count(len(found.left_out), 'model')} left out"
    )
    for reason, models in found.reasons.items():
        console.err.print(f"{models:>6,} {escape(reason)}")
    print_problems(found.failed)
    raise typer.Exit(1 if found.failed else 0)
