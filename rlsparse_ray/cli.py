"""The command line: parse, call, print. Every verb is a plain Python call too."""

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer
from rich.markup import escape

from rlsparse_ray import __version__, console
from rlsparse_ray.console import Format
from rlsparse_ray.errors import RlsparseError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Which weights did RL change, in every model pair, and is that more than chance?",
)

CorpusFile = Annotated[
    Path,
    typer.Argument(
        help="Corpus file (YAML), or the name of one that ships, e.g. paper.", show_default=False
    ),
]
StorePath = Annotated[
    str,
    typer.Option(help="Folder that holds the tables.", show_default=False, envvar="RLSPARSE_STORE"),
]
OutputFormat = Annotated[Format, typer.Option("--format", help="How to print the answer.")]
Json = Annotated[bool, typer.Option("--json", help="Short for --format json.")]


def main() -> None:
    """Entry point: our own errors are printed without a traceback and end with exit code 2."""
    try:
        app()
    except RlsparseError as error:
        console.err.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(2)
    except KeyboardInterrupt:
        console.err.print("interrupted; what is finished is kept: run again to go on")
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"rlsparse_ray {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
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
            "not_compared": sum(not row.compared for row in pair.rows),
            "numel": pair.numel,
            "slices": slices[pair.pair_id],
            "pair_id": pair.pair_id,
        }
        for pair in made.pairs
    ]
    console.show(pa.Table.from_pylist(rows), Format.json if json else Format.table)
    if not json:
        console.out.print(
            f"\n{len(made.pairs)} pairs, {len(made.slices)} slices, "
            f"{console.size(made.nbytes)} to read (a base once for all its tuned models)"
        )
    _print_failures(made.failed)
    raise typer.Exit(1 if made.failed else 0)


@app.command()
def extract(
    corpus: CorpusFile,
    store: StorePath,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to run on; none: this machine.")
    ] = None,
    gpu_fraction: Annotated[
        float, typer.Option(help="Share of a GPU that a slice takes.", min=0.01, max=1)
    ] = 1.0,
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
        lambda advance: run(made, store, resources=resources, address=address, progress=advance),
    )
    done = {
        "extracted": outcome.committed,
        "already there": outcome.unchanged,
        "relabelled": outcome.relabelled,
        "failed": list(outcome.failed),
    }
    parts = [f"{len(names)} {what}" for what, names in done.items() if names]
    read = f"{console.size(outcome.nbytes)} read"
    console.out.print(f"{', '.join(parts)}; {read}; store: {escape(store)}")
    _print_failures(outcome.failed)
    raise typer.Exit(0 if outcome.ok else 1)


@app.command()
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
    params = dict(_assignment(text) for text in param or [])
    with sql.connect(store) as con:
        console.show(sql.run_query(con, name, params), Format.json if json else form)


@app.command(name="sql")
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


@app.command()
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


@app.command()
def overlap(
    store: StorePath,
    criterion: Annotated[str, typer.Option(help='The rule that says "changed".')] = "exact",
    sample: Annotated[
        float, typer.Option(help="Share of the blocks to count, the same for every pair.")
    ] = 1.0,
    device: Annotated[str, typer.Option(help="cpu or cuda; auto: cpu.")] = "auto",
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to run on; none: this machine.")
    ] = None,
) -> None:
    """Count what every two masks of a store share, against chance, and keep it in the store.

    Only what is missing is counted: new pairs cost their own rows. With --sample, the numbers are
    estimates with a standard error; a later run with a larger share replaces them.

    Example: `rlsparse overlap --store ./store`
    """
    from rlsparse_ray import sql
    from rlsparse_ray.cluster import Resources, overlaps
    from rlsparse_ray.population.overlap_plan import plan_overlaps

    try:
        made = plan_overlaps(store, criterion, sample)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    console.with_progress(
        "overlap",
        made.nbytes,
        lambda advance: overlaps(
            made, store, resources=Resources(device), address=address, progress=advance
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


@app.command()
def status(store: StorePath, json: Json = False) -> None:
    """Committed pairs, their sizes and bits a parameter, and what is unfinished.

    Example: `rlsparse status --store ./store`
    """
    from rlsparse_ray import sql
    from rlsparse_ray.store import Store

    unfinished = Store.open(store).files.list("staging")
    with sql.connect(store) as con:
        answer = sql.run_query(con, "storage")
    console.show(answer, Format.json if json else Format.table)
    if not json:
        total = console.size(sum(answer["bytes"].to_pylist()))
        console.out.print(f"\n{answer.num_rows} pairs, {total}")
        if unfinished:
            console.out.print(f"{len(unfinished)} staged files: an extraction runs or was stopped")


@app.command()
def verify(store: StorePath, json: Json = False) -> None:
    """Run every audit and check every file against its size and hash. Exit code 1 if any fails.

    Example: `rlsparse verify --store ./store`
    """
    from rlsparse_ray import sql
    from rlsparse_ray.checks import verify as check
    from rlsparse_ray.store import Store

    known = Store.open(store)
    total = sum(known.files.size(path) or 0 for path in known.files.list("."))
    found = console.with_progress("verify", total, lambda advance: check(store, advance))
    rows = [{"check": f.check, "pair_id": f.pair_id, "problem": f.problem} for f in found]
    schema = pa.schema([(n, pa.string()) for n in ("check", "pair_id", "problem")])
    if rows or json:
        form = Format.json if json else Format.table
        console.show(pa.Table.from_pylist(rows, schema), form)
    if not json:
        verdict = f"{len(rows)} problems" if rows else "all is well"
        pairs = len(known.committed())
        console.out.print(f"{len(sql.audits())} audits and the files of {pairs} pairs: {verdict}")
    raise typer.Exit(1 if rows else 0)


@app.command()
def demo(
    fast: Annotated[
        bool, typer.Option("--fast", help="Tiny models only: without SmolLM2-135M.")
    ] = False,
    folder: Annotated[Path, typer.Option(help="Where models and store go.")] = Path(
        "rlsparse-demo"
    ),
) -> None:
    """The whole way on real weights: trains models with RL, extracts their masks, asks questions.

    Trained models are kept, so a second run takes seconds. Example: `rlsparse demo --fast`
    """
    from rlsparse_ray.demo.run import run_demo

    run_demo(folder, smollm=not fast)


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


def _assignment(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise typer.BadParameter(f"--param {text!r}: write name=value")
    return name, value


def _print_failures(failed: dict[str, str]) -> None:
    for name, message in failed.items():
        console.err.print(f"[bold red]failed:[/] {escape(f'{name}: {message}')}")
