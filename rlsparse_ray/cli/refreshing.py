"""Verbs that are run by a timer: bring a store up to date, and clear it up."""

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
    show_rows,
)
from rlsparse_ray.console import Format


@app.command(rich_help_panel="Upkeep")
def refresh(
    corpus: CorpusFile,
    store: StorePath,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would do and read; write nothing.")
    ] = False,
    criterion: Annotated[
        list[str] | None, typer.Option(help="Whose overlaps to keep up to date; may be repeated.")
    ] = None,
    sample: Annotated[
        float, typer.Option(help="Share of the blocks in which overlaps are counted.")
    ] = 1.0,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait while another one uses the store.", min=0)
    ] = 0.0,
    device: Device = "auto",
    address: Address = None,
    gpu_fraction: GpuFraction = 1.0,
    cache: Cache = False,
    json: Json = False,
) -> None:
    """Bring a store up to date: extract pairs that are new or moved, extend overlaps, run audits.

    Made to be run again and again. What has not moved costs a request a model; a pair that fails
    is tried again next time; every refresh leaves a row in the table `refreshes`. Exit code 0 if
    all is well, 1 if a pair failed or an audit found something, 2 if it could not be done, e.g.
    because another refresh is at work on the store.

    Example: `rlsparse refresh corpus.yaml --store s3://masks/store`
    """
    if dry_run:
        _forecast(str(corpus), store, json)
    from rlsparse_ray.cluster import Resources
    from rlsparse_ray.upkeep.refresh import kept_overlaps
    from rlsparse_ray.upkeep.refresh import refresh as run

    criteria = criterion or ["exact"]
    try:
        kept_overlaps(criteria, sample)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    done = run(
        corpus,
        store,
        criteria=criteria,
        sample=sample,
        resources=Resources(device, gpu_fraction),
        address=address,
        cache=cache,
        wait=wait,
    )
    if json:
        console.show(pa.Table.from_pylist([done.row()]), Format.json)
    else:
        outcomes = {
            "added": len(done.added),
            "moved": len(done.moved),
            "relabelled": len(done.relabelled),
            "unchanged": done.unchanged,
            "failed": len(done.failed),
        }
        parts = [f"{n} {what}" for what, n in outcomes.items() if n]
        checks = f"{done.audits} audits: {len(done.findings)} findings"
        if not done.audits:
            checks = "audits found all in order before, and nothing has changed"
        console.out.print(
            f"{', '.join(parts)}; {console.size(done.bytes_read)} read; "
            f"{done.overlaps_counted} overlaps counted; {checks}; {console.duration(done.seconds)}"
        )
    print_problems(done.failed, done.doubts)
    for finding in done.findings:
        text = f"{finding.check}: {finding.pair_id}: {finding.problem}"
        console.err.print(f"[bold red]audit:[/] {escape(text)}")
    raise typer.Exit(0 if done.ok else 1)


def _forecast(corpus: str, store: str, json: bool) -> None:
    from rlsparse_ray.corpus import load_corpus
    from rlsparse_ray.upkeep.survey import survey

    found = survey(load_corpus(corpus), store)
    rows = found.rows()
    names = ("name", "state", "pair_id", "superseded", "problem")
    schema = pa.schema([(name, pa.string()) for name in names])
    shown = rows if json else [row for row in rows if row["state"] != "unchanged"]
    show_rows(shown, schema, json)
    if not json:
        left = len(rows) - len(shown)
        console.out.print(f"\n{left} unchanged; {console.size(found.plan.nbytes)} to read")
    raise typer.Exit(1 if found.plan.failed else 0)


@app.command(rich_help_panel="Upkeep")
def gc(
    store: StorePath,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Also pairs that are not current any more.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")
    ] = False,
    older_than: Annotated[
        float, typer.Option(help="Hours for which unfinished work is left alone.", min=0)
    ] = 24.0,
    json: Json = False,
) -> None:
    """Remove what no committed row of a store names, and superseded revisions on request.

    Files that rlsparse does not know are listed and left. So is whatever belongs to a pair or a
    named mask of which something was written within --older-than hours, or to a pair that a
    living extraction is at work on.

    Example: `rlsparse gc --store ./store --superseded --dry-run`
    """
    from rlsparse_ray.upkeep.gc import collect, find_garbage

    found = (find_garbage if dry_run else collect)(store, superseded=superseded, hours=older_than)
    verb = "would go" if dry_run else "removed"
    rows = [
        {"path": item.path, "bytes": item.nbytes, "what": what, "why": item.why}
        for items, what in (
            (found.removable, verb),
            (found.young, "left: too young"),
            (found.unknown, "left: unknown"),
        )
        for item in items
    ]
    names = [("path", pa.string()), ("bytes", pa.int64()), ("what", pa.string())]
    schema = pa.schema([*names, ("why", pa.string())])
    show_rows(rows, schema, json)
    if not json:
        console.out.print(
            f"{console.count(len(found.removable), 'file')} {verb}, {console.size(found.nbytes)}; "
            f"{len(found.young)} too young, {len(found.unknown)} unknown: left"
        )
