"""The tables of a store: one explicit Arrow schema each, with a sentence on every column.

These names are a contract: SQL that users keep depends on them. `pair_id` (and `criterion` of
`masks`) are Hive partitions, so they stand in the path and not in the files.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from rlsparse_ray.errors import StoreError

SCHEMA_VERSION = 2
"""Raised whenever a column is added or changes its meaning, its type or its name."""

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


def _texts(*names: str) -> pa.DataType:
    return pa.struct([(name, pa.string()) for name in names])


_PAIR = _texts("name", "pair_id")
_MOVED = _texts("name", "pair_id", "superseded")
_FAILED = _texts("name", "message")
_FINDING = _texts("check", "pair_id", "problem")

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
    (
        "lineage_score",
        pa.float64(),
        "mean cosine of both in a few sampled matrices, near 1: a pair; null: no sample",
    ),
    ("bytes_read", pa.int64(), "bytes of weights that the numbers rest on; shared ones count once"),
    ("seconds", pa.float64(), "seconds of work in its slices; shared slices count in full"),
    ("created_at", pa.timestamp("us", tz="UTC"), "when the pair was committed"),
    ("parts", pa.list_(PART), "every file of the pair but this one"),
)

TENSORS = _table(
    _TENSOR,
    _KEY,
    ("base_name", pa.string(), "name in the base model, [rows] if cut out; null if it has none"),
    (
        "tuned_name",
        pa.string(),
        "name in the tuned model, [rows] if cut out; null if it has none",
    ),
    ("layer", pa.int32(), "layer number in the name; null outside the layers"),
    ("module", pa.string(), "name inside the layer, without .weight or .bias"),
    ("kind", pa.string(), "embedding, attention, mlp, norm, head, router, expert or other"),
    ("shape", pa.list_(pa.int64()), "compared shape; null if not compared"),
    ("base_shape", pa.list_(pa.int64()), "shape in the base model"),
    ("tuned_shape", pa.list_(pa.int64()), "shape in the tuned model"),
    ("base_dtype", pa.string(), "dtype in the base model: as stored, or of the decoded values"),
    ("tuned_dtype", pa.string(), "dtype in the tuned model: as stored, or of the decoded values"),
    (
        "base_encoding",
        pa.string(),
        "how base values are made, e.g. mxfp4; null: as stored",
    ),
    ("tuned_encoding", pa.string(), "the same of the tuned model, e.g. lora r=16 scale=2"),
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
    ("base_xxh3", pa.string(), "XXH3-64 of all bytes of the base tensor, decoded if encoded, hex"),
    ("tuned_xxh3", pa.string(), "XXH3-64 of all bytes of the tuned tensor, decoded likewise, hex"),
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

REFRESHES = _table(
    ("corpus", pa.string(), "corpus file, as it was called"),
    ("holder", pa.string(), "machine and process that did it"),
    ("started_at", pa.timestamp("us", tz="UTC"), "when it began"),
    ("seconds", pa.float64(), "from its beginning to its end"),
    ("pairs", pa.int64(), "pairs in the corpus"),
    ("added", pa.list_(_PAIR), "pairs extracted that the store had at no revision"),
    (
        "moved",
        pa.list_(_MOVED),
        "pairs that it had at other revisions, and the pair_id that was current until then",
    ),
    ("relabelled", pa.list_(_PAIR), "pairs of which only labels of the corpus had changed"),
    ("unchanged", pa.int64(), "pairs that were there already"),
    ("failed", pa.list_(_FAILED), "pairs that were not extracted, and why; tried again next time"),
    ("doubts", pa.list_(_FAILED), "extracted pairs whose base may not be their base, and why"),
    ("bytes_read", pa.int64(), "bytes of weights that were read"),
    ("overlap_criteria", pa.list_(pa.string()), "criteria whose overlaps were kept up to date"),
    ("sample_fraction", pa.float64(), "share of the blocks in which overlaps are counted; 1: all"),
    ("overlaps_counted", pa.int64(), "overlaps of two pairs that were counted"),
    (
        "audits",
        pa.int32(),
        "audits that were run; 0: the store was as the refresh before had found it, in order",
    ),
    ("findings", pa.list_(_FINDING), "what they found, the first 1,000"),
    ("ok", pa.bool_(), "no pair failed and no audit found anything"),
    ("state", pa.string(), "hash of the listing of the store, less its refreshes, at the end"),
    ("schema_version", pa.int32(), "version of these schemas"),
    ("software_version", pa.string(), "rlsparse_ray version that did it"),
)
"""One row a refresh. Its Hive partition is `refresh`, not `pair_id`."""

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

_ALL: Mapping[str, pa.Schema] = {
    **SCHEMAS,
    **NAMED_SCHEMAS,
    "overlaps": OVERLAPS,
    "refreshes": REFRESHES,
}


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
