"""Verbs that look after a store."""

from typing import TYPE_CHECKING, Annotated

import pyarrow as pa
import typer

from rlsparse_ray import console
from rlsparse_ray.cli.app import Json, StorePath, app, show_rows
from rlsparse_ray.console import Format

if TYPE_CHECKING:
    from rlsparse_ray.store import Store
    from rlsparse_ray.upkeep.deep import DeepReport


@app.command(rich_help_panel="Upkeep")
def status(
    store: StorePath,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow the extraction that runs, until it is over.")
    ] = False,
    json: Json = False,
) -> None:
    """Committed pairs, their sizes and bits a parameter, and what is unfinished.

    With --watch first the progress of the extraction that runs, on any machine, as a bar on a
    terminal and as lines elsewhere.

    Example: `rlsparse status --store ./store --watch`
    """
    from rlsparse_ray import sql
    from rlsparse_ray.store import Store

    if watch:
        _watch(Store.open(store))
    unfinished = Store.open(store).files.list("staging")
    with sql.connect(store) as con:
        answer = sql.run_query(con, "storage")
    console.show(answer, Format.json if json else Format.table)
    if not json:
        total = console.size(sum(answer["bytes"].to_pylist()))
        console.out.print(f"\n{console.count(answer.num_rows, 'pair')}, {total}")
        if unfinished:
            files = console.count(len(unfinished), "staged file")
            console.out.print(f"{files}: an extraction runs or was stopped")


def _watch(store: "Store") -> None:
    from rlsparse_ray.upkeep.watch import follow, standing

    found = standing(store)
    if found is None:
        console.notes.print("no extraction runs on this store")
        return
    console.with_progress("extract", found.nbytes, lambda advance: follow(store, advance))


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
