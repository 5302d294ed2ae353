"""Verbs that ask a store something."""

import re
from typing import Annotated

import pyarrow as pa
import typer
from rich.markup import escape

from rlsparse_ray import console
from rlsparse_ray.cli.app import Address, Json, OutputFormat, StorePath, app, require
from rlsparse_ray.console import Format


def _names() -> list[str]:
    from rlsparse_ray import sql

    return list(sql.queries())


@app.command(rich_help_panel="Questions")
def query(
    store: StorePath = "",
    name: Annotated[
        str | None,
        typer.Argument(help="Name of the query; none: list them.", autocompletion=_names),
    ] = None,
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
    params = dict(assignment(text) for text in param or [])
    with sql.connect(require(store)) as con:
        answer = sql.run_query(con, name, params)
    console.show(answer, Format.json if json else form)
    if not answer.num_rows and form is Format.table and not json:
        # what the header of the query says of an empty answer
        for words in re.findall("No row.*", "\n".join(sql.queries()[name].notes)):
            console.notes.print(escape(words), soft_wrap=True)


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

    One row for each c from 0 to N masks: `parameters` that changed in exactly c of them, their
    `share` of all, and `at_least`, those that changed in c or more. `expected_...` is how many
    chance makes change in exactly c, if it knows the densities of the masks (uniform), those of
    each tensor (tensor) or of each binary exponent of the base weights in it, which is rounding
    (magnitude); `lift_...` is parameters / expected.

    Example: `rlsparse consensus --store ./store --where "kl = 0" --keep all --name core`
    """
    from rlsparse_ray.population.consensus import consensus as find

    found = find(store, where, criterion, keep=keep, name=name)
    console.show(found.histogram, Format.json if json else form)
    if form is Format.table and not json:
        for line in found.remarks():
            console.out.print(escape(line))


_OVERLAP = (
    *("name_a", "name_b", "tensors", "numel", "o1", "o2"),
    *("lift_uniform", "lift_tensor", "lift_margins", "lift_magnitude"),
)
"""Columns of population_overlap that are shown after a pass."""


@app.command(rich_help_panel="Questions")
def overlap(
    store: StorePath,
    criterion: Annotated[str, typer.Option(help='The rule that says "changed".')] = "exact",
    sample: Annotated[
        float, typer.Option(help="Share of the blocks to count, the same for every pair.")
    ] = 1.0,
    device: Annotated[str, typer.Option(help="cpu or cuda; auto: cpu.")] = "auto",
    address: Address = None,
    json: Json = False,
) -> None:
    """Count what every two masks of a store share, against chance, and keep it in the store.

    Only what is missing is counted: new pairs cost their own rows. With --sample, the numbers are
    estimates with a standard error; a later run with a larger share replaces them.

    Example: `rlsparse overlap --store ./store`
    """
    from rlsparse_ray import sql
    from rlsparse_ray.cluster import Resources, count_overlaps

    try:
        made = count_overlaps(
            store,
            criterion,
            sample,
            bar=console.with_progress,
            resources=Resources(device),
            address=address,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if json:
        row = {"criterion": made.criterion, "masks": len(made.pairs), "counted": len(made.wanted)}
        row |= {"known": made.known, "incomparable": len(made.incomparable)}
        console.show(pa.Table.from_pylist([row]), Format.json)
        return
    console.out.print(escape(made.summary()))
    with sql.connect(store) as con:
        answer = sql.run_query(con, "population_overlap", {"criterion": made.criterion})
    console.print_table(answer.slice(0, 10).select(list(_OVERLAP)))
    if answer.num_rows:
        console.out.print(
            f"\n{min(10, answer.num_rows)} of {console.count(answer.num_rows, 'row')}"
        )
        console.suggest(
            ["rlsparse", "query", "population_overlap", "--store", store],
            ["rlsparse", "sql", "FROM pair_overlaps", "--store", store],
            ["rlsparse", "report", "--store", store],
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
