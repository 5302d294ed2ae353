"""The verb that tests the claims of the papers on runs of its own."""

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from rlsparse_ray import console
from rlsparse_ray.cli.app import Address, Json, app, print_problems

if TYPE_CHECKING:
    from rlsparse_ray.reproduce.study import Study


@app.command(rich_help_panel="Training and its results")
def reproduce(
    *,
    scale: Annotated[
        str, typer.Option(help="tiny (two cores), small (a GPU), or a scale file (YAML).")
    ] = "tiny",
    quick: Annotated[
        bool, typer.Option("--quick", help="Short for --scale quick: too little for verdicts.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where models, corpus and store go.")] = Path(
        "rlsparse-reproduce"
    ),
    page: Annotated[
        Path | None, typer.Option(help="Write the findings as a Markdown page with pictures.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu or cuda; none: what the scale says.")
    ] = None,
    address: Address = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be trained; train nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Train runs of eight algorithms, measure them, and say which claims of the papers hold.

    What is made already is used again, so after an interruption the same command goes on. On a
    cluster (--address) the folder must be one that every node sees. Exit code 1 if a run failed.

    Example: `rlsparse reproduce --scale tiny --out rlsparse-reproduce --page reproduction.md`
    """
    from rlsparse_ray.experiments.extras import require_trainers
    from rlsparse_ray.reproduce.bases import check_base
    from rlsparse_ray.reproduce.scale_file import load_scale
    from rlsparse_ray.reproduce.study import make_study

    if quick and scale != "tiny":
        raise typer.BadParameter("--quick and --scale: give one of them")
    name = "quick" if quick else scale
    study = make_study(load_scale(name))
    for base in study.scale.bases:
        check_base(base)
    if not dry_run:
        require_trainers()
    if not json:
        _show_plan(study, name)
    if not dry_run:
        _run(study, name, out, page, device or study.scale.device, address, json)


def _show_plan(study: "Study", name: str) -> None:
    from rlsparse_ray.reproduce.answer import plan_table
    from rlsparse_ray.reproduce.study import about

    runs = (*study.full, *study.masked)
    time = about(sum(map(study.seconds, runs)))
    console.print_table(plan_table(study), f"scale {name}")
    console.out.print(
        f"{len(runs)} runs, {time} of training on one core or GPU: divide by how many there are"
    )


def _run(
    study: "Study",
    name: str,
    out: Path,
    page: Path | None,
    device: str,
    address: str | None,
    json: bool,
) -> None:
    from rlsparse_ray.cluster import Resources
    from rlsparse_ray.reproduce.answer import as_json, findings_table
    from rlsparse_ray.reproduce.layout import Layout
    from rlsparse_ray.reproduce.page import write_page
    from rlsparse_ray.reproduce.phases import reproduce as go

    outcome = go(
        study,
        Layout(out),
        resources=Resources(device, study.scale.gpu_fraction),
        address=address,
        report=lambda line: console.notes.print(escape(line)),
    )
    if json:
        print(json_text.dumps(as_json(outcome), indent=2))
    else:
        console.print_table(findings_table(outcome.findings), "What the runs say of the claims")
        _show_idle([row["name"] for row in outcome.evidence.idle()])
    if page:
        write_page(outcome, name, page)
        console.notes.print(f"page: {escape(str(page))}", soft_wrap=True)
    print_problems(dict(outcome.failed))
    if not json and not outcome.failed:
        _suggest(name, out, page)
    raise typer.Exit(1 if outcome.failed else 0)


def _suggest(scale: str, out: Path, page: Path | None) -> None:
    report = ["rlsparse", "report", "--store", str(out / "store")]
    again = ["rlsparse", "reproduce", "--scale", scale, "--out", str(out)]
    console.suggest(report, *([] if page else [[*again, "--page", "reproduction.md"]]))


def _show_idle(names: list[str]) -> None:
    if names:
        console.out.print(f"learned nothing and do not count: {escape(', '.join(names))}")
