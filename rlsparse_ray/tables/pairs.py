"""The tables that an extraction writes of every pair."""

import pyarrow as pa

from rlsparse_ray.tables.columns import CRITERION, KEY, PART, TENSOR, table

PAIRS = table(
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

TENSORS = table(
    TENSOR,
    KEY,
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

COUNTS = table(
    TENSOR,
    KEY,
    CRITERION,
    ("numel", pa.int64(), "parameters compared"),
    ("changed", pa.int64(), "parameters changed"),
)

MASKS = table(
    KEY,
    ("block", pa.int32(), "number of the block in the flattened tensor (C order)"),
    ("numel", pa.int32(), "parameters in the block"),
    ("changed", pa.int32(), "bits set"),
    ("bits", pa.binary(), "bit i of byte j is parameter 8j+i; padding bits are 0"),
)

STRATA = table(
    TENSOR,
    KEY,
    CRITERION,
    ("exponent", pa.int16(), "binary exponent of the base weight; lowest: subnormals and zero"),
    ("numel", pa.int64(), "parameters in the stratum"),
    ("changed", pa.int64(), "parameters changed"),
)

MARGINS = table(
    TENSOR,
    KEY,
    CRITERION,
    ("changed_per_row", pa.list_(pa.int32()), "changed in each row (all axes but the last)"),
    ("changed_per_column", pa.list_(pa.int32()), "changed in each column (the last axis)"),
)

STEPS = table(
    TENSOR,
    KEY,
    ("ulp_low", pa.int64(), "smallest signed step of the bucket; null: from or to NaN or Inf"),
    ("ulp_high", pa.int64(), "largest signed step of the bucket, in ULPs of the compare dtype"),
    ("numel", pa.int64(), "parameters that moved so far"),
)
