"""Verbs that look after a store."""

import time
from typing import TYPE_CHECKING, Annotated

import pyarrow as pa
import typer
from rich.markup import escape

from rlsparse_ray import console
from rlsparse_ray.cli.app import Json, StorePath, app, show_rows
from rlsparse_ray.console import Format

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rlsparse_ray.storage.local_files import Entry
    from rlsparse_ray.store import Store
    from rlsparse_ray.upkeep.deep import DeepReport


@app.command(rich_help_panel="Upkeep")
def status(
    store: StorePath,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow the extractions that run, until they are over.")
    ] = False,
    json: Json = False,
) -> None:
    """Committed pairs, their sizes and bits a parameter, and what is unfinished.

    With --watch first the progress of the extractions that run, on any machine, as a bar on a
    terminal and as lines elsewhere.

    Example: `rlsparse status --store ./store --watch`
    """
    from rlsparse_ray import sql
    from rlsparse_ray.storage.files import store_errors
    from rlsparse_ray.store import Store

    known = Store.open(store)
    if watch:
        _watch(known)
    with store_errors(store):
        # before the rows: a run may commit meanwhile
        staged = known.files.entries("staging")
        empty = not known.committed()
    answer = pa.table({})
    if not empty:
        with sql.connect(store) as con:
            answer = sql.run_query(con, "storage")
    if json or not empty:
        console.show(answer, Format.json if json else Format.table)
    if not json:
        nbytes = sum(answer["bytes"].to_pylist()) if answer.num_rows else 0
        total = f"{console.count(answer.num_rows, 'pair')}, {console.size(nbytes)}"
        console.out.print(total if empty else f"\n{total}")
        for line in _unfinished(staged):
            console.out.print(line)


def _watch(store: "Store") -> None:
    from rlsparse_ray.upkeep.watch import Watch

    watch = Watch(store)
    if not watch.runs:
        console.notes.print("no extraction runs on this store")
        return
    total = sum(share.nbytes for share in watch.work.values())
    console.with_progress("extract", total, watch.follow)


def _unfinished(staged: "Mapping[str, Entry]") -> "Iterator[str]":
    """What staging/ holds, in words."""
    from rlsparse_ray.upkeep.watch import runs_of

    runs = runs_of(staged)
    if files := len(staged) - len(runs):
        yield (
            f"{console.count(files, 'staged file')}: of what runs, was stopped or has failed; run "
            "again to go on with it, or rlsparse gc removes it when it is old"
        )
    for run in sorted(runs, key=lambda run: run.name):
        age = console.duration(time.time() - run.beat)
        state = "runs" if run.lives else f"has stopped: not heard of for {age}"
        yield f"extraction {escape(run.name)} {state}"


@app.command(rich_help_panel="Upkeep")
def verify(
    store: StorePath,
    deep: Annotated[
        bool, typer.Option("--deep", help="Then read a sample of tensors again from the models.")
    ] = False,
    sample: Annotated[
        int, typer.Option(help="Tensors of each pair that --deep reads, at most.", min=1)
    ] = 4,
    seed: Annotated[int, typer.Option(help="Another seed, other tensors.")] = 0,
    json: Json = False,
) -> None:
    """Run every audit and check every file against its size and hash. Exit code 1 if any fails.

    With --deep, once all is well, a sample of every pair is extracted again from the models, and
    hashes and counts are compared. Exit code 3 if nothing is wrong but a model is gone or changed.

    Example: `rlsparse verify --store ./store --deep`
    """
    from rlsparse_ray import sql
    from rlsparse_ray.store import Store
    from rlsparse_ray.upkeep.checks import verify as check
    from rlsparse_ray.upkeep.deep import DeepReport

    known = Store.open(store)
    total = sum(known.files.list("").values())
    found = console.with_progress("verify", total, lambda advance: check(store, advance))
    checked = (
        f"{len(sql.audits())} audits and the files of "
        f"{console.count(len(known.committed()), 'pair')}"
    )
    report = _deep(store, sample, seed) if deep and not found else DeepReport()
    damaged = found + report.damaged
    rows = [
        {"check": f.check, "pair_id": f.pair_id, "problem": f.problem}
        for f in damaged + report.unchecked
    ]
    schema = pa.schema([(n, pa.string()) for n in ("check", "pair_id", "problem")])
    show_rows(rows, schema, json)
    if not json:
        verdict = console.count(len(damaged), "problem") if damaged else "all is well"
        if deep:
            checked += f", {console.count(report.tensors, 'tensor')} in the models"
            verdict += f", {len(report.unchecked)} not checked" if report.unchecked else ""
        console.out.print(f"{checked}: {verdict}")
        if deep and found:
            console.out.print("nothing was read from the models: mend the store first")
    raise typer.Exit(1 if damaged else 3 if report.unchecked else 0)


def _deep(store: str, tensors: int, seed: int) -> "DeepReport":
    from rlsparse_ray.upkeep.deep import choose, deep_verify

    samples = choose(store, tensors, seed)
    total = sum(sample.nbytes for sample in samples)
    report: DeepReport = console.with_progress(
        "verify --deep", total, lambda advance: deep_verify(samples, advance)
    )
    return report
