"""The tables that are written later: by passes over pairs, and by refreshes."""

import pyarrow as pa

from rlsparse_ray.tables.columns import CRITERION, DICT, KEY, PART, TENSOR, table, texts

_PAIR = texts("name", "pair_id")
_MOVED = texts("name", "pair_id", "superseded")
_FAILED = texts("name", "message")
_FINDING = texts("check", "pair_id", "problem")

NAMED_MASKS = table(
    ("kind", pa.string(), "how the mask was made: consensus or spectral"),
    (
        "rule",
        pa.string(),
        "which parameters are set, e.g. at least 3 of 5, principal:k=64,alpha=0.5",
    ),
    (
        "at_least",
        pa.int32(),
        "masks of members in which a set parameter changed, at the least; null if spectral",
    ),
    (
        "criterion",
        DICT,
        "rule that says `changed` in the masks of members; null if spectral",
    ),
    (
        "members",
        pa.list_(pa.string()),
        "pair_id of every pair whose mask went in, sorted; if spectral, of the one whose base did",
    ),
    (
        "where_text",
        pa.string(),
        "condition that chose the members (over pairs), or the tensors (over tensors) if spectral",
    ),
    ("base_source", pa.string(), "where the base weights were read; null if consensus"),
    ("base_revision", pa.string(), "commit sha, or fingerprint of a folder; null if consensus"),
    ("tensors", pa.int32(), "tensors that all members compared in the same shape"),
    ("numel", pa.int64(), "parameters of these tensors"),
    ("changed", pa.int64(), "bits set"),
    ("block", pa.int32(), "parameters in a mask block"),
    ("schema_version", pa.int32(), "version of these schemas"),
    ("software_version", pa.string(), "rlsparse_ray version that made the mask"),
    ("created_at", pa.timestamp("us", tz="UTC"), "when the mask was made"),
    ("parts", pa.list_(PART), "every file of the mask but this one"),
)

OVERLAPS = table(
    ("pair_a", DICT, "the other pair; its text is smaller than that of pair_b"),
    CRITERION,
    KEY,
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

_MASK_OVERLAP = pa.struct(
    [
        ("kind", pa.string()),
        ("alpha", pa.float64()),
        ("size", pa.int64()),
        ("shared", pa.int64()),
        ("expected_uniform", pa.float64()),
        ("expected_magnitude", pa.float64()),
    ]
)

SPECTRA = table(
    TENSOR,
    KEY,
    ("matrix", pa.int32(), "which matrix of a stack of experts; 0 if the tensor is one itself"),
    (
        "status",
        pa.string(),
        "measured, unchanged, nonfinite, empty, not_a_matrix or not_a_float",
    ),
    ("rows", pa.int64(), "rows of the matrix; null if it is none"),
    ("columns", pa.int64(), "columns of the matrix; null if it is none"),
    ("numel", pa.int64(), "parameters of the matrix, or of the tensor if it is none"),
    ("changed", pa.int64(), "parameters changed under criterion exact"),
    ("method", pa.string(), "exact or randomised; null unless measured"),
    ("rank_k", pa.int32(), "dimension of the principal subspace that was asked for"),
    (
        "k",
        pa.int32(),
        "dimension of the principal subspace; null where a side is no longer than rank_k, or the "
        "base has a lower rank",
    ),
    ("update_norm", pa.float64(), "Frobenius norm of the update D = tuned - base"),
    ("base_norm", pa.float64(), "Frobenius norm of the base"),
    ("update_top", pa.float64(), "largest singular value s_1 of D"),
    (
        "matrix_rank",
        pa.int64(),
        "singular values of D above torch.linalg.matrix_rank's tolerance of float32; null if "
        "randomised",
    ),
    ("matrix_rank_at_least", pa.int64(), "those known to be above it; matrix_rank if exact"),
    ("rank_1e6", pa.int64(), "singular values of D above 1e-6 s_1; null if randomised"),
    ("stable_rank", pa.float64(), "||D||_F^2 / s_1^2; null if unchanged"),
    (
        "effective_rank",
        pa.float64(),
        "exp(entropy of singular values of D / their sum); null if unchanged or randomised",
    ),
    (
        "energy_rank_90",
        pa.int64(),
        "fewest singular values of D with 90 % of ||D||_F^2; null if too few are known",
    ),
    ("energy_rank_99", pa.int64(), "the same with 99 %"),
    ("top_energy_share", pa.float64(), "share of ||D||_F^2 in the first rank_k of them"),
    ("nss", pa.float64(), "||s(tuned) - s(base)||_2 / ||s(base)||_2; null if randomised"),
    ("nss_at_least", pa.float64(), "lower bound of nss; nss if exact"),
    ("nss_at_most", pa.float64(), "upper bound of nss: ||D||_F / ||base||_F if randomised"),
    (
        "angles_left",
        pa.list_(pa.float64()),
        "radians between the first k left singular vectors of base and tuned, ascending",
    ),
    ("angles_right", pa.list_(pa.float64()), "the same of the right singular vectors"),
    (
        "gap",
        pa.float64(),
        "(s_k - s_k+1) / s_k of the base: without a gap the largest angles say little",
    ),
    (
        "outside_share",
        pa.float64(),
        "share of ||D||_F^2 outside the first k singular vectors of the base, both sides; by "
        "chance 1 - k^2 / (rows columns)",
    ),
    (
        "inside_left_share",
        pa.float64(),
        "share of ||D||_F^2 in the span of the first k left ones; by chance k / rows",
    ),
    ("inside_right_share", pa.float64(), "the same on the right; by chance k / columns"),
    (
        "mask_overlaps",
        pa.list_(_MASK_OVERLAP),
        "of the principal and low-magnitude masks of the base at each alpha: size, changed "
        "parameters in it, and how many by chance",
    ),
    (
        "precision",
        pa.map_(pa.string(), pa.string()),
        "arithmetic of norms, ranks, nss, angles, shares, principal and low_magnitude: float32 or "
        "float64, and how spectra were computed: gram, svd or krylov",
    ),
    (
        "errors",
        pa.map_(pa.string(), pa.float64()),
        "by column how far it may be off, absolute; none: rounding of float64; of ranks: how many "
        "values lie too close to the tolerance; subspace: sine of the largest angle of the "
        "principal subspace",
    ),
)
"""One row a pair x tensor x matrix in it. Its Hive partition is `pair_id`. A measure of other
options takes the place of the older row, so that no matrix is in a mean twice."""

REFRESHES = table(
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
