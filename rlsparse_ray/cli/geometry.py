"""Verbs about the geometry of updates: ranks, spectra, and masks made of base weights."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import pyarrow as pa
import typer
from rich.markup import escape

from rlsparse_ray import console
from rlsparse_ray.cli.app import (
    Address,
    Device,
    GpuFraction,
    Json,
    StorePath,
    app,
    print_problems,
    show_rows,
)
from rlsparse_ray.console import Format

if TYPE_CHECKING:
    from rlsparse_ray.population.spectra_plan import SpectraPlan

Where = Annotated[
    str,
    typer.Option(help="SQL condition over `tensors`, e.g. \"module = 'mlp.down_proj'\"."),
]


@app.command(rich_help_panel="Questions")
def spectra(
    store: StorePath,
    *,
    pairs: Annotated[
        str, typer.Option(help="Name of a pair, or an SQL condition over `pairs`.")
    ] = "true",
    where: Where = "true",
    per_layer: Annotated[
        int | None,
        typer.Option(help="Only so many matrices of each layer, the same in every pair.", min=1),
    ] = None,
    method: Annotated[
        str, typer.Option(help="exact, randomised, or auto: exact where it is affordable.")
    ] = "auto",
    rank_k: Annotated[
        int, typer.Option(help="Dimension of the principal subspace of the base.", min=1)
    ] = 64,
    device: Device = "auto",
    gpu_fraction: GpuFraction = 1.0,
    address: Address = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be measured and what it would cost.")
    ] = False,
    json: Json = False,
) -> None:
    """Ranks, spectra, principal angles and mask overlaps of updates, kept in the table `spectra`.

    Weights are read again from the models, and checked against the hashes that the store keeps.
    Only what is missing is measured; after an interruption the same command goes on. A row of
    another --rank-k is replaced, a randomised one also by --method exact. Exit code 1 if a pair
    could not be read.

    Example: `rlsparse spectra --store ./store --where "module = 'mlp.down_proj'" --dry-run`
    """
    from rlsparse_ray.cluster import Resources
    from rlsparse_ray.cluster.spectra import measure_spectra
    from rlsparse_ray.compare.spectra.options import SpectraOptions
    from rlsparse_ray.population.spectra_plan import plan_spectra
    from rlsparse_ray.storage.lease import hold

    resources = Resources(device, gpu_fraction)
    try:
        options = SpectraOptions(
            method=method,  # type: ignore[arg-type]  # checked by the class itself
            k=rank_k,
            device="cuda" if device == "cuda" else "cpu",
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    # which GPUs there are, only Ray knows: until it is asked, a plan for auto says both
    devices = ("cpu", "cuda") if device == "auto" else (device,)
    if dry_run:
        made = plan_spectra(store, options, pairs=pairs, where=where, per_layer=per_layer)
        _show_plan(made, devices, json)
        print_problems(dict(made.failed))
        raise typer.Exit(1 if made.failed else 0)
    # two passes at once would write one file of a pair over the other's
    with hold(store, "spectra") as lease:
        made = plan_spectra(store, options, pairs=pairs, where=where, per_layer=per_layer)
        if not json:
            _show_plan(made, devices, json)
        outcome = console.with_progress(
            "spectra",
            int(made.flops),
            lambda advance: measure_spectra(
                made, store, resources=resources, address=address, progress=lease.guard(advance)
            ),
            console.flops,
        )
    summary = {
        "matrices": outcome.matrices,
        "told": sum(map(len, made.told.values())),
        "known": made.known,
        "left_out": made.left_out,
        "failed": len(outcome.failed),
    }
    if json:
        console.show(pa.Table.from_pylist([summary]), Format.json)
    else:
        console.out.print(
            f"{outcome.matrices} matrices measured, {summary['told']} tensors without one or "
            f"unchanged, {made.known} tensors known before"
        )
        console.suggest(
            ["rlsparse", "query", "rank_by_pair", "--store", store],
            ["rlsparse", "report", "--store", store],
        )
    print_problems(outcome.failed)
    raise typer.Exit(1 if outcome.failed else 0)


@app.command(rich_help_panel="Questions")
def mask(
    name: Annotated[str, typer.Argument(help="Name of the kept mask.", show_default=False)],
    store: StorePath,
    pair: Annotated[
        str, typer.Option(help="Name or id of the pair whose base is used.", show_default=False)
    ],
    rule: Annotated[
        str,
        typer.Option(
            help="principal:k=64,alpha=0.5, low_magnitude:alpha=0.5, joined by +, or not(...).",
            show_default=False,
        ),
    ],
    *,
    where: Where = "true",
    device: Device = "auto",
    address: Address = None,
    json: Json = False,
) -> None:
    """Make a mask of base weights, the principal or the small ones, and keep it to train with.

    It covers the matrices that the pair compared. Masks of what several updates have in common are
    kept by `rlsparse consensus --keep`; all of them are in the views named_masks and
    named_mask_bits, and `load_subnetwork(STORE, "mask:NAME")` trains them.

    Example: `rlsparse mask small --store ./store --pair grpo --rule low_magnitude:alpha=0.5`
    """
    from rlsparse_ray.cluster import Resources
    from rlsparse_ray.cluster.spectra import keep_mask
    from rlsparse_ray.population.spectral_masks import plan_mask

    used = Resources(device)
    made = plan_mask(store, name, pair, rule, where)
    kept = console.with_progress(
        "mask",
        made.nbytes,
        lambda advance: keep_mask(made, store, resources=used, address=address, progress=advance),
    )
    if json:
        row = {"name": name, "rule": made.mask.rule, "base": made.mask.base_source, "kept": kept}
        row |= {"tensors": made.tensors, "numel": made.numel, "left_out": made.left_out}
        console.show(pa.Table.from_pylist([row]), Format.json)
        return
    left = (
        f"; {made.left_out} tensors are no matrices of floats: not in it" if made.left_out else ""
    )
    console.out.print(
        escape(
            f"{'kept' if kept else 'kept before'}: {made.mask.rule}, as {name}: {made.tensors} "
            f"tensors, {made.numel:,} parameters of {made.mask.base_source}{left}"
        )
    )


def _show_plan(made: "SpectraPlan", devices: Sequence[str], json: bool) -> None:
    types = {"shape": pa.string(), "method": pa.string(), "matrices": pa.int64()}
    costs = ("flops", "hours_cpu", "hours_cuda")
    schema = pa.schema([*types.items(), *((name, pa.float64()) for name in costs)])
    rows = made.shapes(devices)
    show_rows(rows, schema, json)
    if json:
        return
    of = {"cpu": "a CPU core", "cuda": "a GPU (assumed: 1 Tflop/s)"}
    hours = [f"{sum(row[f'hours_{d}'] for row in rows):.2g} hours of {of[d]}" for d in devices]
    left = f"; {made.left_out} left out by --per-layer" if made.left_out else ""
    console.out.print(
        f"{made.matrices} matrices of {len(made.names)} pairs to measure, "
        f"{console.size(made.nbytes)} to read, {console.flops(made.flops)}: about "
        f"{', or '.join(hours)}; {made.known} tensors are known{left}"
    )
