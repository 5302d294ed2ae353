"""Verbs that show a store: a page to open, figures for papers."""

from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer
from rich.markup import escape

from rlsparse_ray import console
from rlsparse_ray.cli.app import Json, StorePath, app, require
from rlsparse_ray.cli.questions import assignment
from rlsparse_ray.console import Format


@app.command(rich_help_panel="Questions")
def report(
    store: StorePath,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")] = Path(
        "report.html"
    ),
    json: Json = False,
) -> None:
    """Write the results of a store as one HTML page that opens offline, figures and data inside.

    Example: `rlsparse report --store ./store -o report.html`
    """
    from rlsparse_ray.report import write_report

    size = write_report(store, out)
    if json:
        console.show(pa.Table.from_pylist([{"path": str(out), "bytes": size}]), Format.json)
        return
    console.out.print(f"{escape(str(out))}: {console.size(size)}", soft_wrap=True)
    console.suggest(["python", "-m", "webbrowser", out.resolve().as_uri()], ["rlsparse", "plot"])


def _names() -> list[str]:
    from rlsparse_ray.report import FIGURES

    return [figure.name for figure in FIGURES]


@app.command(rich_help_panel="Questions")
def plot(
    store: StorePath = "",
    name: Annotated[
        str | None,
        typer.Argument(help="Name of the figure; none: list them.", autocompletion=_names),
    ] = None,
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file: .pdf, .svg or .png; none: NAME.pdf."),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", help="choice=option, may be repeated; see the list."),
    ] = None,
    json: Json = False,
) -> None:
    """Draw one figure of the report for a paper; without a name, list the figures.

    Without -o the file is NAME.pdf in the current folder.

    Example: `rlsparse plot overlap-matrix --store ./store -p show=o1 -o overlap.pdf`
    """
    from rlsparse_ray.report import write_plot

    if name is None:
        console.show(_listing(), Format.json if json else Format.table)
        return
    path = out or Path(f"{name}.pdf")
    write_plot(require(store), name, path, dict(assignment(text) for text in param or []))
    if json:
        console.show(pa.Table.from_pylist([{"path": str(path)}]), Format.json)
    else:
        console.out.print(escape(str(path)), soft_wrap=True)


def _listing() -> pa.Table:
    from rlsparse_ray.report import FIGURES

    rows = []
    for figure in FIGURES:
        choices = [f"{s.name}={'|'.join(s.options)}" for s in figure.switches]
        choices += [f"{f.column}=..." for f in figure.filters]
        rows.append({"figure": figure.name, "shows": figure.title, "choices": ", ".join(choices)})
    return pa.Table.from_pylist(rows)
