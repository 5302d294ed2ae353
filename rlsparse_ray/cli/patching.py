"""Verbs for sparse patches: what tuning changed, as a file."""

from dataclasses import asdict
from typing import Annotated

import pyarrow as pa
import typer
from rich.markup import escape

from rlsparse_ray import console
from rlsparse_ray.cli.app import Json, app, show_rows
from rlsparse_ray.console import Format

verbs = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Sparse patches: the entries that tuning changed, as a file that makes the tuned model."
    "\n\nExample: `rlsparse patch make ./base ./tuned -o patch.safetensors`",
)
app.add_typer(verbs, name="patch", rich_help_panel="Training and its results")

Model = Annotated[
    str,
    typer.Argument(help="Folder, file or address (hf://, s3://) of the model.", show_default=False),
]
PatchFile = Annotated[str, typer.Argument(help="Path or address of the patch.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


@verbs.command()
def make(
    base: Model,
    tuned: Model,
    out: Annotated[
        str,
        typer.Option(
            "-o", "--out", help="The patch, *.safetensors; a bucket's address is one too."
        ),
    ],
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the patch that turns BASE into TUNED, bit for bit, and say what it saves.

    Both models must have the same tensors. Each is read once, in bounded memory.

    Example: `rlsparse patch make ./base ./tuned -o patch.safetensors`
    """
    from rlsparse_ray.patches import make_patch

    report = make_patch(base, tuned, out, force=force, bar=console.with_progress)
    if json:
        row = asdict(report) | {"density": report.density, "patch_share": report.patch_share}
        console.show(pa.Table.from_pylist([row]), Format.json)
        return
    sizes = {
        "places, as an ideal code would keep them": report.indices_entropy_bytes,
        "places, as indices": report.indices_bytes,
        "values": report.values_bytes,
        "patch": report.patch_bytes,
        "tuned model": report.dense_bytes,
    }
    rows = [
        {"what": what, "bytes": nbytes, "share": nbytes / max(1, report.dense_bytes)}
        for what, nbytes in sizes.items()
    ]
    console.show(pa.Table.from_pylist(rows), Format.table)
    console.out.print(
        f"{escape(report.patch)}: {report.changed:,} of {report.numel:,} parameters changed "
        f"(density {report.density:.2%}), in {report.tensors_changed} of {report.tensors} tensors"
    )


@verbs.command()
def apply(
    base: Model,
    patch: PatchFile,
    out: Annotated[str, typer.Option("-o", "--out", help="The new model's folder.")],
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the tuned model: BASE with the patch, in the same shards, with its other files.

    A base that is not the patch's is refused before anything is written, and the hash of every
    tensor that is written is checked. The folder appears whole or not at all; if it is there and
    right already, nothing is written.

    Example: `rlsparse patch apply ./base patch.safetensors -o ./tuned-again`
    """
    from rlsparse_ray.patches import apply_patch

    report = apply_patch(base, patch, out, force=force, bar=console.with_progress)
    if json:
        console.show(pa.Table.from_pylist([asdict(report)]), Format.json)
        return
    done = "written" if report.written else "there already"
    console.out.print(
        f"{escape(report.folder)}: {len(report.files)} files, {console.size(report.nbytes)}, "
        f"{done}; {report.changed:,} entries set, every tensor's hash is right"
    )
    if report.left_out:
        names = escape(", ".join(report.left_out))
        console.err.print(f"left out, for they hold weights that are not patched: {names}")


@verbs.command()
def verify(
    patch: PatchFile,
    base: Annotated[
        str | None, typer.Option(help="Then: is this the base, and does it become the tuned model?")
    ] = None,
    tuned: Annotated[str | None, typer.Option(help="Then: is this the tuned model?")] = None,
    json: Json = False,
) -> None:
    """Check a patch by itself, and against its models if they are given. Exit code 1 if it fails.

    Example: `rlsparse patch verify patch.safetensors --base ./base`
    """
    from rlsparse_ray.patches import verify_patch

    report = verify_patch(patch, base=base, tuned=tuned, bar=console.with_progress)
    rows = [asdict(problem) for problem in report.problems]
    show_rows(rows, pa.schema([(n, pa.string()) for n in ("where", "tensor", "problem")]), json)
    if not json:
        against = f" against {' and '.join(report.against)}" if report.against else ""
        verdict = "all is well" if report.ok else f"{len(report.problems)} problems"
        console.out.print(
            f"{report.changed:,} entries of {report.tensors} tensors{against}: {verdict}"
        )
    raise typer.Exit(0 if report.ok else 1)
