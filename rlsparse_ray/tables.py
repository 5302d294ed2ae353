"""The tables of a store: one explicit Arrow schema each, with a sentence on every column.

These names are a contract: SQL that users keep depends on them. `pair_id` (and `criterion` of
`masks`) are Hive partitions, so they stand in the path and not in the files.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from rlsparse_ray.errors import StoreError

SCHEMA_VERSION = 1
"""Raised whenever a column changes its meaning, its type or its name."""

_VERSION_KEY = b"rlsparse_schema_version"


def _table(*columns: tuple[str, pa.DataType, str]) -> pa.Schema:
    fields = [pa.field(n, t, metadata={"doc": doc}) for n, t, doc in columns]
    return pa.schema(fields, metadata={_VERSION_KEY: str(SCHEMA_VERSION)})


_DICT = pa.dictionary(pa.int32(), pa.string())
_TENSOR = ("tensor", _DICT, "canonical name: prefixes such as `model.` removed")
_KEY = ("tensor_key", _DICT, "canonical name and compared shape; the only key to join pairs on")
_CRITERION = ("criterion", _DICT, "rule that says `changed`: exact, abs:1e-5, rel:1e-3, ...")

PART = pa.struct(
    [
        ("path", pa.string()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("xxh3", pa.string()),
    ]
)

PAIRS = _table(
    ("name", pa.string(), "name of the pair in its corpus"),
    ("base_source", pa.string(), "where the base model was read"),
    ("base_revision", pa.string(), "commit sha, or fingerprint of a folder"),
    ("base_dtype", pa.string(), "dtype in which most base parameters are stored"),
    ("tuned_source", pa.string(), "where the tuned model was read"),
    ("tuned_revision", pa.string(), "commit sha, or fingerprint of a folder"),
    ("tuned_dtype", pa.string(), "dtype in which most tuned parameters are stored"),
    (
        "compare_dtype",
        pa.string(),
        "declared comparison dtype; null: narrower of the two, a tensor",
    ),
    ("family", pa.string(), "model family"),
    ("algorithm", pa.string(), "training algorithm: SFT, DPO, GRPO, PPO, ..."),
    ("stage", pa.string(), "training stage: SFT, RL, ..."),
    ("dataset", pa.string(), "what it was trained on"),
    ("seed", pa.int64(), "seed of the run"),
    ("on_policy", pa.bool_(), "samples came from the policy itself"),
    ("kl", pa.float64(), "coefficient of the KL penalty"),
    ("learning_rate", pa.float64(), "peak learning rate"),
    ("steps", pa.int64(), "optimizer steps"),
    ("source", pa.string(), "where the facts about the run come from"),
    ("reported_sparsity", pa.float64(), "sparsity that a paper reports, 0 to 1"),
    ("trajectory", pa.string(), "name of the trajectory that the pair is of; null: a plain pair"),
    ("step_from", pa.int64(), "optimizer step of the base in its trajectory"),
    ("step_to", pa.int64(), "optimizer step of the tuned model in its trajectory"),
    ("labels", pa.map_(pa.string(), pa.string()), "free labels of the corpus file"),
    ("numel", pa.int64(), "parameters compared"),
    ("numel_base_only", pa.int64(), "parameters of tensors or rows that only the base has"),
    ("numel_tuned_only", pa.int64(), "parameters of tensors or rows that only the tuned has"),
    ("numel_mismatched", pa.int64(), "base parameters not compared because the shapes differ"),
    ("tensors_compared", pa.int32(), "tensors compared in full, `identical` ones among them"),
    ("tensors_identical", pa.int32(), "tensors with the same bytes on both sides"),
    ("tensors_partial", pa.int32(), "tensors compared on their common rows"),
    ("tensors_base_only", pa.int32(), "tensors that only the base has"),
    ("tensors_tuned_only", pa.int32(), "tensors that only the tuned model has"),
    ("tensors_mismatched", pa.int32(), "tensors whose shapes cannot be compared"),
    ("tensors_tied", pa.int32(), "tensors not counted because they are tied to another"),
    ("criteria", pa.list_(pa.string()), "criteria for which masks are kept"),
    ("counted_criteria", pa.list_(pa.string()), "criteria in `counts`"),
    ("block", pa.int32(), "parameters in a mask block"),
    ("schema_version", pa.int32(), "version of these schemas"),
    ("software_version", pa.string(), "rlsparse_ray version that wrote the pair"),
    ("bytes_read", pa.int64(), "bytes of weights of both sides that the pair's numbers rest on"),
    ("seconds", pa.float64(), "seconds of work in its slices; shared slices count in full"),
    ("created_at", pa.timestamp("us", tz="UTC"), "when the pair was committed"),
    ("parts", pa.list_(PART), "every file of the pair but this one"),
)

TENSORS = _table(
    _TENSOR,
    _KEY,
    ("base_name", pa.string(), "name in the base model; null if it has none"),
    ("tuned_name", pa.string(), "name in the tuned model; null if it has none"),
    ("layer", pa.int32(), "layer number in the name; null outside the layers"),
    ("module", pa.string(), "name inside the layer, without .weight or .bias"),
    ("kind", pa.string(), "embedding, attention, mlp, norm, head, router, expert or other"),
    ("shape", pa.list_(pa.int64()), "compared shape; null if not compared"),
    ("base_shape", pa.list_(pa.int64()), "shape in the base model"),
    ("tuned_shape", pa.list_(pa.int64()), "shape in the tuned model"),
    ("base_dtype", pa.string(), "stored dtype in the base model"),
    ("tuned_dtype", pa.string(), "stored dtype in the tuned model"),
    ("compare_dtype", pa.string(), "dtype in which both were compared"),
    (
        "status",
        pa.string(),
        "compared, identical, base_only, tuned_only, shape_mismatch, partial_rows or tied",
    ),
    ("numel", pa.int64(), "parameters compared; 0 if not compared"),
    ("base_l2", pa.float64(), "L2 norm of the finite base values that were compared"),
    ("update_l2", pa.float64(), "L2 norm of the finite differences"),
    ("update_max", pa.float64(), "largest finite |difference|"),
    ("base_nan", pa.int64(), "NaN values in the compared base"),
    ("base_inf", pa.int64(), "infinite values in the compared base"),
    ("tuned_nan", pa.int64(), "NaN values in the compared tuned tensor"),
    ("tuned_inf", pa.int64(), "infinite values in the compared tuned tensor"),
    ("base_xxh3", pa.string(), "XXH3-64 of all stored bytes of the base tensor, hex"),
    ("tuned_xxh3", pa.string(), "XXH3-64 of all stored bytes of the tuned tensor, hex"),
)

COUNTS = _table(
    _TENSOR,
    _KEY,
    _CRITERION,
    ("numel", pa.int64(), "parameters compared"),
    ("changed", pa.int64(), "parameters changed"),
)

MASKS = _table(
    _KEY,
    ("block", pa.int32(), "number of the block in the flattened tensor (C order)"),
    ("numel", pa.int32(), "parameters in the block"),
    ("changed", pa.int32(), "bits set"),
    ("bits", pa.binary(), "bit i of byte j is parameter 8j+i; padding bits are 0"),
)

STRATA = _table(
    _TENSOR,
    _KEY,
    _CRITERION,
    ("exponent", pa.int16(), "binary exponent of the base weight; lowest: subnormals and zero"),
    ("numel", pa.int64(), "parameters in the stratum"),
    ("changed", pa.int64(), "parameters changed"),
)

MARGINS = _table(
    _TENSOR,
    _KEY,
    _CRITERION,
    ("changed_per_row", pa.list_(pa.int32()), "changed in each row (all axes but the last)"),
    ("changed_per_column", pa.list_(pa.int32()), "changed in each column (the last axis)"),
)

STEPS = _table(
    _TENSOR,
    _KEY,
    ("ulp_low", pa.int64(), "smallest signed step of the bucket; null: from or to NaN or Inf"),
    ("ulp_high", pa.int64(), "largest signed step of the bucket, in ULPs of the compare dtype"),
    ("numel", pa.int64(), "parameters that moved so far"),
)

NAMED_MASKS = _table(
    ("kind", pa.string(), "how the mask was made: consensus"),
    ("rule", pa.string(), "which parameters are set, e.g. at least 3 of 5"),
    ("at_least", pa.int32(), "masks of members in which a set parameter changed, at the least"),
    _CRITERION,
    ("members", pa.list_(pa.string()), "pair_id of every pair whose mask went in, sorted"),
    ("where_text", pa.string(), "the condition over pairs that chose the members"),
    ("tensors", pa.int32(), "tensors that all members compared in the same shape"),
    ("numel", pa.int64(), "parameters of these tensors"),
    ("changed", pa.int64(), "bits set"),
    ("block", pa.int32(), "parameters in a mask block"),
    ("schema_version", pa.int32(), "version of these schemas"),
    ("software_version", pa.string(), "rlsparse_ray version that made the mask"),
    ("created_at", pa.timestamp("us", tz="UTC"), "when the mask was made"),
    ("parts", pa.list_(PART), "every file of the mask but this one"),
)

OVERLAPS = _table(
    ("pair_a", _DICT, "the other pair; its text is smaller than that of pair_b"),
    _CRITERION,
    _KEY,
    ("numel", pa.int64(), "parameters in the counted blocks"),
    ("blocks", pa.int32(), "blocks counted"),
    ("blocks_total", pa.int32(), "blocks of the tensor; times this / blocks scales the row up"),
    ("changed_a", pa.int64(), "changed in pair_a, in the counted blocks"),
    ("changed_b", pa.int64(), "changed in pair_b, in the counted blocks"),
    ("shared", pa.int64(), "changed in both, in the counted blocks"),
    (
        "shared_standard_error",
        pa.float64(),
        "standard error of shared scaled up; 0 if all were counted",
    ),
    (
        "expected_tensor",
        pa.float64(),
        "shared by chance given both densities of the whole tensor, times blocks / blocks_total",
    ),
    (
        "expected_magnitude",
        pa.float64(),
        "the same given both densities of each exponent; null if the bases differ",
    ),
    (
        "expected_margins",
        pa.float64(),
        "the same given the margins of both; expected_tensor for fewer than two axes",
    ),
    ("sample_fraction", pa.float64(), "share of the blocks that was asked for; 1: all"),
)
"""One row a pair x pair x tensor x criterion. Its Hive partition is `pair_b`, not `pair_id`."""

SCHEMAS: Mapping[str, pa.Schema] = {
    "pairs": PAIRS,
    "tensors": TENSORS,
    "counts": COUNTS,
    "masks": MASKS,
    "strata": STRATA,
    "margins": MARGINS,
    "steps": STEPS,
}
"""The tables that have one file, or one folder, a pair."""

NAMED_SCHEMAS: Mapping[str, pa.Schema] = {"named_masks": NAMED_MASKS, "named_mask_bits": MASKS}
"""Tables of masks that were made from those of pairs; the Hive partition `mask` is their name."""

_ALL: Mapping[str, pa.Schema] = {**SCHEMAS, **NAMED_SCHEMAS, "overlaps": OVERLAPS}


def to_table(name: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows (dicts with every column, no others) as an Arrow table of the schema `name`.

    Raises:
        StoreError: a row lacks a column or has one that the schema does not know.
    """
    schema = _ALL[name]
    columns: dict[str, list[Any]] = {field.name: [] for field in schema}
    for row in rows:
        if row.keys() != columns.keys():
            odd = sorted(set(row) ^ set(columns))
            raise StoreError(f"a row for table {name!r} has missing or unknown columns: {odd}")
        for column, value in row.items():
            columns[column].append(value)
    return pa.table({f.name: pa.array(columns[f.name], type=f.type) for f in schema}, schema=schema)


def check_file(schema: pa.Schema, place: str) -> None:
    """Refuse a file that a newer rlsparse_ray wrote, or that is none of ours.

    Raises:
        StoreError: naming the file and the fix.
    """
    raw = (schema.metadata or {}).get(_VERSION_KEY)
    check_version(int(raw) if raw else None, place)


def check_version(version: object, place: str) -> None:
    """Refuse a schema version that this software does not know.

    Raises:
        StoreError: naming the place and the fix.
    """
    if not isinstance(version, int):
        raise StoreError(f"{place}: not written by rlsparse_ray (it has no schema version)")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{place}: schema version {version}, but this rlsparse_ray reads up to "
            f"{SCHEMA_VERSION}: pip install --upgrade rlsparse-ray"
        )
