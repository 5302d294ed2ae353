"""The application that verbs are added to, and the options that several of them take."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich.markup import escape

from rlsparse_ray import __version__, console
from rlsparse_ray.console import Format

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Which weights did RL change, in every model pair, and is that more than chance?",
    epilog=(
        "Exit codes: 0 done; 1 done, but a pair or a run failed or a check found something; 2 not "
        "done: wrong input, no such store, no access; 3 nothing is wrong, but not all could be "
        "checked; 4 a fault of rlsparse itself, with its traceback; 130 interrupted. NO_COLOR=1 "
        "takes out colours, RLSPARSE_STORE is the store of every verb; docs/commands.md has a "
        "table of all variables."
    ),
)

CorpusFile = Annotated[
    Path,
    typer.Argument(
        help="Corpus file (YAML), or the name of one that ships, e.g. paper.", show_default=False
    ),
]
StorePath = Annotated[
    str,
    typer.Option(
        help="Folder or address (s3://bucket/prefix) that holds the tables.",
        show_default=False,
        envvar="RLSPARSE_STORE",
    ),
]
OutputFormat = Annotated[Format, typer.Option("--format", help="How to print the answer.")]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to run on; none: this machine.")]
GpuFraction = Annotated[
    float, typer.Option(help="Share of a GPU that a slice takes.", min=0.01, max=1)
]
Cache = Annotated[
    bool, typer.Option("--cache", help="Keep whole files of the hub in its local cache.")
]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"rlsparse_ray {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            envvar="RLSPARSE_QUIET",
            help="No progress and no hints: answers, problems and errors alone.",
        ),
    ] = False,
) -> None:
    console.notes.quiet = quiet


def require(store: str) -> str:
    """The store of a verb that lists without one what can be asked of it."""
    if not store:
        raise typer.BadParameter("say which store: --store PATH, or set RLSPARSE_STORE")
    return store


def show_rows(rows: Sequence[Mapping[str, Any]], schema: pa.Schema, json: bool) -> None:
    """Print rows as a table, if there are any, or as JSON, also if there are none."""
    if rows or json:
        table = pa.Table.from_pylist(list(rows), schema)
        console.show(table, Format.json if json else Format.table)


def print_problems(failed: dict[str, str], doubts: dict[str, str] | None = None) -> None:
    """Say on standard error which pairs failed, and which may be none, and why."""
    for name, doubt in (doubts or {}).items():
        console.err.print(f"[yellow]is this a pair?[/] {escape(name)}: {escape(doubt)}")
    for name, message in failed.items():
        console.err.print(f"[bold red]failed:[/] {escape(f'{name}: {message}')}")
