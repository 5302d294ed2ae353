"""Verbs that ask a store something."""

from typing import Annotated

import pyarrow as pa
import typer
from rich.markup import escape

from rlsparse_ray import console
from rlsparse_ray.cli.app import Address, Json, OutputFormat, StorePath, app
from rlsparse_ray.console import Format


@app.command(rich_help_panel="Questions")
def query(
    store: StorePath = "",
    name: Annotated[str | None, typer.Argument(help="Name of the query; none: list them.")] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", help="name=value, may be repeated.")
    ] = None,
    form: OutputFormat = Format.table,
    json: Json = False,
) -> None:
    """Run a named query over a store; without a name, list the queries and what they answer.

    Example: `rlsparse query overlap --store ./store -p a=grpo-seed0 -p b=grpo-seed1`
    """
    from rlsparse_ray import sql

    if name is None:
        console.show(_listing(), Format.json if json else form)
        return
    if not store:
        raise typer.BadParameter("say which store: --store PATH, or set RLSPARSE_STORE")
    params = dict(assignment(text) for text in param or [])
    with sql.connect(store) as con:
        console.show(sql.run_query(con, name, params), Format.json if json else form)


@app.command(name="sql", rich_help_panel="Questions")
def run_sql(
    text: Annotated[str, typer.Argument(help="SQL over the views and macros.", metavar="SQL")],
    store: StorePath,
    form: OutputFormat = Format.table,
    json: Json = False,
) -> None:
    """Run any SQL over the views (pairs, tensors, counts, masks, ...) and macros of a store.

    Example: `rlsparse sql "FROM counts WHERE tensor LIKE '%norm%'" --store ./store`
    """
    from rlsparse_ray import sql

    with sql.connect(store) as con:
        console.show(sql.run_sql(con, text), Format.json if json else form)


@app.command(rich_help_panel="Questions")
def consensus(
    where: Annotated[
        str, typer.Option(help="SQL condition over `pairs`, run as it stands.", show_default=False)
    ],
    store: StorePath,
    *,
    criterion: Annotated[str, typer.Option(help='The rule that says "changed".')] = "exact",
    keep: Annotated[
        str | None, typer.Option(help="Keep the mask `in at least K`: a number, all or any.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the kept mask.")] = None,
    form: OutputFormat = Format.table,
    json: Json = False,
) -> None:
    """In how many masks of a group of pairs did the parameters change, and what of it is chance?

    The group is `SELECT pair_id FROM pairs WHERE ...` with your condition. With --keep the mask
    stays in the store, in the views named_masks and named_mask_bits.

    Example: `rlsparse consensus --store ./store --where "kl = 0" --keep all --name core`
    """
    from rlsparse_ray.population.consensus import consensus as find

    found = find(store, where, criterion, keep=keep, name=name)
    console.show(found.histogram, Format.json if json else form)
    if form is Format.table and not json:
        for line in found.remarks():
            console.out.print(escape(line))


@app.command(rich_help_panel="Questions")
def overlap(
    store: StorePath,
    criterion: Annotated[str, typer.Option(help='The rule that says "changed".')] = "exact",
    sample: Annotated[
        float, typer.Option(help="Share of the blocks to count, the same for every pair.")
    ] = 1.0,
    device: Annotated[str, typer.Option(help="cpu or cuda; auto: cpu.")] = "auto",
    address: Address = None,
) -> None:
    """Count what every two masks of a store share, against chance, and keep it in the store.

    Only what is missing is counted: new pairs cost their own rows. With --sample, the numbers are
    estimates with a standard error; a later run with a larger share replaces them.

    Example: `rlsparse overlap --store ./store`
    """
    from rlsparse_ray import sql
    from rlsparse_ray.cluster import Resources, overlaps
    from rlsparse_ray.population.overlap_plan import plan_overlaps
    from rlsparse_ray.storage.lease import hold

    used = Resources(device)
    # two passes at once would write one file of overlaps over the other's
    with hold(store, "overlap") as lease:
        try:
            made = plan_overlaps(store, criterion, sample)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        console.with_progress(
            "overlap",
            made.nbytes,
            lambda advance: overlaps(
                made, store, resources=used, address=address, progress=lease.guard(advance)
            ),
        )
    console.out.print(escape(made.summary()))
    with sql.connect(store) as con:
        answer = sql.run_query(con, "population_overlap", {"criterion": made.criterion})
    console.show(answer.slice(0, 10), Format.table)
    if answer.num_rows:
        console.out.print(
            f"\n{min(10, answer.num_rows)} of {answer.num_rows} rows; all of them, and tensor by "
            f"tensor:\n  rlsparse query population_overlap --store {escape(store)}\n"
            f'  rlsparse sql "FROM pair_overlaps" --store {escape(store)}',
        )


def _listing() -> pa.Table:
    from rlsparse_ray import sql

    rows = [
        {
            "query": q.name,
            "answers": q.summary,
            "parameters": ", ".join(
                p.name if p.default is None else f"{p.name}={p.default}" for p in q.parameters
            ),
        }
        for q in sql.queries().values()
    ]
    return pa.Table.from_pylist(rows)


def assignment(text: str) -> tuple[str, str]:
    """The name and the value of `name=value`."""
    name, sign, value = text.partition("=")
    if not sign:
        raise typer.BadParameter(f"--param {text!r}: write name=value")
    return name, value
