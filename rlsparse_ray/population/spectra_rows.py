"""Rows of the table `spectra`: what was measured, and what tables alone tell."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from math import prod
from typing import Any

from rlsparse_ray.compare.spectra.options import SpectraOptions
from rlsparse_ray.compare.spectra.results import MaskOverlap, Spectra
from rlsparse_ray.tables import SPECTRA
from rlsparse_ray.weights import FLOAT_DTYPES

Row = dict[str, Any]

_NAMES = {
    "update_norm": "update_norm",
    "base_norm": "base_norm",
    "update_top": "update_top",
    "matrix_rank": "rank",
    "matrix_rank_at_least": "rank_at_least",
    "rank_1e6": "rank_1e6",
    "stable_rank": "stable_rank",
    "effective_rank": "effective_rank",
    "top_energy_share": "top_energy",
    "nss": "nss",
    "nss_at_least": "nss_at_least",
    "nss_at_most": "nss_at_most",
    "angles_left": "angles_left",
    "angles_right": "angles_right",
    "gap": "gap",
    "outside_share": "outside",
    "inside_left_share": "inside_left",
    "inside_right_share": "inside_right",
}
"""Columns and the fields of `Spectra` that they hold."""

_COLUMNS = {name: column for column, name in _NAMES.items()}

_OVERLAP = tuple(f.name for f in fields(MaskOverlap) if f.name not in ("numel", "changed"))
_NO_UPDATE: Row = {
    "update_norm": 0.0,
    "update_top": 0.0,
    "matrix_rank": 0,
    "matrix_rank_at_least": 0,
    "rank_1e6": 0,
    "nss": 0.0,
    "nss_at_least": 0.0,
    "nss_at_most": 0.0,
}
_NOTHING: Row = dict.fromkeys(SPECTRA.names)


def measured_row(
    tensor: str, tensor_key: str, matrix: int, found: Spectra, options: SpectraOptions
) -> Row:
    """The row of a matrix that was read."""
    measured = found.state == "measured"
    energies = dict(zip(options.energies, found.energy_ranks, strict=False))
    return _NOTHING | {
        "tensor": tensor,
        "tensor_key": tensor_key,
        "matrix": matrix,
        "status": found.state,
        "rows": found.rows,
        "columns": found.columns,
        "numel": found.numel,
        "changed": found.changed,
        "method": found.method if measured else None,
        "rank_k": options.k,
        "k": found.k,
        **{column: getattr(found, name) for column, name in _NAMES.items()},
        "energy_rank_90": energies.get(0.9),
        "energy_rank_99": energies.get(0.99),
        "mask_overlaps": [
            {name: getattr(overlap, name) for name in _OVERLAP} for overlap in found.overlaps
        ],
        "precision": sorted(found.precision.items()),
        "errors": sorted((_COLUMNS.get(name, name), e) for name, e in found.errors.items()),
    }


def is_stack(selected: Mapping[str, Any]) -> bool:
    """Whether a row of `tensors` is a stack of experts, each of them a matrix."""
    return len(selected["shape"]) == 3 and selected["kind"] == "expert"


def is_matrix(selected: Mapping[str, Any]) -> bool:
    """Whether a row of `tensors` is a matrix of floats, or a stack of them, with entries."""
    return _told_status(selected) not in ("not_a_matrix", "not_a_float", "empty")


def told_row(selected: Mapping[str, Any], options: SpectraOptions) -> Row | None:
    """The row of a tensor that need not be read for it; None if it has to be.

    Args:
        selected: a row of `tensors`, with `changed` under criterion exact and `nonfinite`, how many
            values of either side are NaN or infinite.
        options: what the others are measured with.
    """
    status = _told_status(selected)
    if status is None:
        return None
    row = _NOTHING | {
        "tensor": selected["tensor"],
        "tensor_key": selected["tensor_key"],
        "matrix": 0,
        "status": status,
        "numel": selected["numel"],
        "changed": selected["changed"],
        "rank_k": options.k,
        "mask_overlaps": [],
        "precision": [],
        "errors": [],
    }
    if status in ("nonfinite", "unchanged"):
        row["rows"], row["columns"] = selected["shape"]
    if status == "unchanged":
        row |= _NO_UPDATE | {"base_norm": selected["base_l2"]}
    return row


def _told_status(selected: Mapping[str, Any]) -> str | None:
    shape, stack = selected["shape"], is_stack(selected)
    status = None
    if len(shape) != 2 and not stack:
        status = "not_a_matrix"
    elif selected["compare_dtype"] not in FLOAT_DTYPES:
        status = "not_a_float"
    elif not prod(shape):
        status = "empty"
    elif not stack and selected["nonfinite"]:
        status = "nonfinite"
    elif not stack and not selected["changed"]:
        status = "unchanged"
    return status


def row_sets(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows of each tensor, together as they were measured: one, or one for each expert.

    A tensor has several sets where passes with another k or method staged rows of it. An expert
    that was not measured goes with those that were, in the same pass.
    """
    found: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        found[row["tensor_key"], row["rank_k"]].append(row)
    for alike in found.values():
        methods = dict.fromkeys(row["method"] for row in alike if row["status"] == "measured")
        for method in methods or (None,):
            # two passes may have left the same row of an expert that they did not measure
            chosen = {row["matrix"]: row for row in alike if row["method"] in (method, None)}
            yield list(chosen.values())


def satisfies(rows: Iterable[Row], options: SpectraOptions) -> bool:
    """Whether a set of rows that is there already is what `options` ask for.

    An exact one does for every method. What is not measured depends on no option.
    """
    return all(
        row["rank_k"] == options.k and (row["method"] == "exact" or options.method != "exact")
        for row in rows
        if row["status"] == "measured"
    )
