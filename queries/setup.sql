-- Views and macros over a store. Any DuckDB shell reads it, from version 1.4 on:
--
--   SET VARIABLE store = '/path/to/store';
--   .read queries/setup.sql
--   FROM pairs;
--   FROM overlap_total('grpo-seed0', 'grpo-seed1');
--
-- A store in a bucket, in a shell that has the extension (INSTALL httpfs, once):
--
--   LOAD httpfs;
--   CREATE SECRET (TYPE s3, KEY_ID '...', SECRET '...', REGION 'eu-west-1');
--   SET VARIABLE store = 's3://bucket/prefix';
--   .read queries/setup.sql
--
-- Servers other than AWS take ENDPOINT 'host:port', URL_STYLE 'path' and USE_SSL false in the
-- secret as well. Write the characters *, ? and [ in the place of a store as [*], [?] and [[].
--
-- Then every file of queries/ runs as it is, after SET VARIABLE of the parameters in its header.
-- Only the rows of `pairs` are copied, so a session sees the pairs that were committed when it
-- began: read this file again to see later ones. All else stays in the Parquet files, and what is
-- not committed is never seen.

-- A table and not a view, because every other view asks for it, and each time would open one small
-- file a pair.

-- Every committed pair, superseded ones too. One row a pair.
CREATE OR REPLACE TEMP TABLE all_pairs AS
SELECT
    pair_id,            -- readable slug and hash of both revisions and the settings
    name,               -- name of the pair in its corpus
    base_source,        -- where the base model was read
    base_revision,      -- commit sha, or fingerprint of a folder
    base_dtype,         -- dtype in which most base parameters are stored
    tuned_source,       -- where the tuned model was read
    tuned_revision,     -- commit sha, or fingerprint of a folder
    tuned_dtype,        -- dtype in which most tuned parameters are stored
    compare_dtype,      -- declared comparison dtype; null: narrower of the two, a tensor
    family,             -- model family
    algorithm,          -- training algorithm: SFT, DPO, GRPO, PPO, ...
    stage,              -- training stage: SFT, RL, ...
    dataset,            -- what it was trained on
    seed,               -- seed of the run
    on_policy,          -- samples came from the policy itself
    kl,                 -- coefficient of the KL penalty
    learning_rate,      -- peak learning rate
    steps,              -- optimizer steps
    source,             -- where the facts about the run come from
    reported_sparsity,  -- sparsity that a paper reports, 0 to 1
    trajectory,         -- name of the trajectory that the pair is of; null: a plain pair
    step_from,          -- optimizer step of the base in its trajectory
    step_to,            -- optimizer step of the tuned model in its trajectory
    labels,             -- free labels of the corpus file
    numel,              -- parameters compared
    numel_base_only,    -- parameters of tensors or rows that only the base has
    numel_tuned_only,   -- parameters of tensors or rows that only the tuned has
    numel_mismatched,   -- base parameters not compared because the shapes differ
    tensors_compared,   -- tensors compared in full, `identical` ones among them
    tensors_identical,  -- tensors with the same bytes on both sides
    tensors_partial,    -- tensors compared on their common rows
    tensors_base_only,  -- tensors that only the base has
    tensors_tuned_only, -- tensors that only the tuned model has
    tensors_mismatched, -- tensors whose shapes cannot be compared
    tensors_tied,       -- tensors not counted because they are tied to another
    criteria,           -- criteria for which masks are kept
    counted_criteria,   -- criteria in `counts`
    block,              -- parameters in a mask block
    schema_version,     -- version of these schemas
    software_version,   -- rlsparse_ray version that wrote the pair
    lineage_score,      -- mean cosine of both in a few sampled matrices, near 1: a pair; null: no sample
    bytes_read,         -- bytes of weights that the numbers rest on; shared ones count once
    seconds,            -- seconds of work in its slices; shared slices count in full
    created_at,         -- when the pair was committed
    parts               -- every file of the pair but this one
FROM (
    -- an empty row of the columns that stores of version 1 lack
    SELECT null::DOUBLE AS lineage_score WHERE false
    UNION ALL BY NAME
    FROM read_parquet(
        getvariable('store') || '/pairs/*/pairs.parquet',
        hive_partitioning = true, hive_types_autocast = false, union_by_name = true
    )
);

-- Whether some pairs were written before version 2. Only then are the columns of all files matched
-- by name, because that opens every file of the view for every question.
SET VARIABLE mixed_versions = (SELECT coalesce(min(schema_version) < 2, false) FROM all_pairs);

-- The current pairs: of the same name, base and tuned source the one committed last. A model
-- that moved on was extracted again under a new pair_id; the older row stays in all_pairs, and
-- its files stay in the store, but no view below shows them.
CREATE OR REPLACE TEMP VIEW pairs AS
FROM all_pairs
QUALIFY row_number() OVER (
    PARTITION BY name, base_source, tuned_source ORDER BY created_at DESC, pair_id DESC
) = 1;

-- The pairs of trajectories. `place` is the position of a checkpoint in its trajectory, the first
-- one 0, and span = place_to - place_from.
CREATE OR REPLACE TEMP VIEW trajectory_pairs AS
WITH moves AS (
    SELECT trajectory, step_from, step_to, pair_id FROM pairs WHERE trajectory IS NOT NULL
),
places AS (
    SELECT trajectory, step, row_number() OVER (PARTITION BY trajectory ORDER BY step) - 1 AS place
    FROM (SELECT DISTINCT trajectory, unnest([step_from, step_to]) AS step FROM moves)
)
SELECT
    m.trajectory, m.step_from, m.step_to,
    f.place AS place_from,
    t.place AS place_to,
    t.place - f.place AS span,
    f.place = 0 AS from_start,         -- sparsity against the start
    t.place - f.place = 1 AS consecutive,
    m.pair_id
FROM moves AS m
JOIN places AS f ON f.trajectory = m.trajectory AND f.step = m.step_from
JOIN places AS t ON t.trajectory = m.trajectory AND t.step = m.step_to;

-- One pair a training run, which is what statistics over runs count: every plain pair, and of each
-- trajectory only its last checkpoint against its first. That one is left out where a plain pair
-- of the same two models is there already.
CREATE OR REPLACE TEMP VIEW runs AS
FROM pairs AS p
WHERE trajectory IS NULL
    OR pair_id IN (
        SELECT max_by(pair_id, place_to) FROM trajectory_pairs WHERE from_start GROUP BY trajectory
    ) AND NOT EXISTS (
        FROM pairs AS plain
        WHERE plain.trajectory IS NULL
            AND plain.base_source = p.base_source
            AND plain.base_revision = p.base_revision
            AND plain.tuned_source = p.tuned_source
            AND plain.tuned_revision = p.tuned_revision
    );

-- The runs, each tuned model once: the same run may be there under two names, or against two bases,
-- and such pairs overlap all but completely. Of several pairs of a tuned model the one whose base
-- is no tuned model of the store counts, then the one committed first, then the first by name.
CREATE OR REPLACE TEMP VIEW training_runs AS
FROM runs
QUALIFY row_number() OVER (
    PARTITION BY tuned_source, tuned_revision
    ORDER BY
        (base_source, coalesce(base_revision, '')) IN (
            SELECT (tuned_source, coalesce(tuned_revision, '')) FROM pairs
        ),
        created_at, name, pair_id
) = 1;

-- The files of the current pairs, table by table. The views open these and list no folder: a file
-- that a crash left behind is never seen, and one that is gone is an error and not a smaller sum.
SET VARIABLE store_files = (
    SELECT map_from_entries(list((of_table, files)))
    FROM (
        SELECT
            split_part(part.path, '/', 1) AS of_table,
            list(getvariable('store') || '/' || part.path ORDER BY part.path) AS files
        FROM (SELECT unnest(parts) AS part FROM pairs)
        GROUP BY of_table
    )
);

-- One row a pair x tensor of either side, compared or not.
CREATE OR REPLACE TEMP VIEW tensors AS
SELECT
    pair_id,            -- readable slug and hash of both revisions and the settings
    tensor,             -- canonical name: prefixes such as `model.` removed
    tensor_key,         -- canonical name and compared shape; the only key to join pairs on
    base_name,          -- name in the base model, [rows] if cut out; null if it has none
    tuned_name,         -- name in the tuned model, [rows] if cut out; null if it has none
    layer,              -- layer number in the name; null outside the layers
    module,             -- name inside the layer, without .weight or .bias
    kind,               -- embedding, attention, mlp, norm, head, router, expert or other
    shape,              -- compared shape; null if not compared
    base_shape,         -- shape in the base model
    tuned_shape,        -- shape in the tuned model
    base_dtype,         -- dtype in the base model: as stored, or of the decoded values
    tuned_dtype,        -- dtype in the tuned model: as stored, or of the decoded values
    base_encoding,      -- how base values are made, e.g. mxfp4; null: as stored
    tuned_encoding,     -- the same of the tuned model, e.g. lora r=16 scale=2
    compare_dtype,      -- dtype in which both were compared
    status,             -- compared, identical, base_only, tuned_only, shape_mismatch,
                        -- partial_rows or tied
    numel,              -- parameters compared; 0 if not compared
    base_l2,            -- L2 norm of the finite base values that were compared
    update_l2,          -- L2 norm of the finite differences
    update_max,         -- largest finite |difference|
    base_nan,           -- NaN values in the compared base
    base_inf,           -- infinite values in the compared base
    tuned_nan,          -- NaN values in the compared tuned tensor
    tuned_inf,          -- infinite values in the compared tuned tensor
    base_xxh3,          -- XXH3-64 of all bytes of the base tensor, decoded if encoded, hex
    tuned_xxh3          -- XXH3-64 of all bytes of the tuned tensor, decoded likewise, hex
FROM (
    SELECT null::VARCHAR AS base_encoding, null::VARCHAR AS tuned_encoding WHERE false
    UNION ALL BY NAME
    FROM read_parquet(
        getvariable('store_files')['tensors'],
        hive_partitioning = true, hive_types_autocast = false,
        union_by_name = getvariable('mixed_versions')
    )
);

-- One row a pair x tensor x criterion.
CREATE OR REPLACE TEMP VIEW counts AS
SELECT
    pair_id,            -- readable slug and hash of both revisions and the settings
    tensor,             -- canonical name: prefixes such as `model.` removed
    tensor_key,         -- canonical name and compared shape; the only key to join pairs on
    criterion,          -- rule that says `changed`: exact, abs:1e-5, rel:1e-3, ...
    numel,              -- parameters compared
    changed             -- parameters changed
FROM read_parquet(
    getvariable('store_files')['counts'],
    hive_partitioning = true, hive_types_autocast = false
);

-- One row a pair x criterion x tensor x block of 65,536 parameters.
CREATE OR REPLACE TEMP VIEW masks AS
SELECT
    pair_id,            -- readable slug and hash of both revisions and the settings
    criterion,          -- rule that says `changed`: exact, abs:1e-5, rel:1e-3, ...
    tensor_key,         -- canonical name and compared shape; the only key to join pairs on
    block,              -- number of the block in the flattened tensor (C order)
    numel,              -- parameters in the block
    changed,            -- bits set
    bits                -- bit i of byte j is parameter 8j+i; padding bits are 0
FROM read_parquet(
    getvariable('store_files')['masks'],
    hive_partitioning = true, hive_types_autocast = false
);

-- One row a pair x tensor x criterion x binary exponent of the base weight.
CREATE OR REPLACE TEMP VIEW strata AS
SELECT
    pair_id,            -- readable slug and hash of both revisions and the settings
    tensor,             -- canonical name: prefixes such as `model.` removed
    tensor_key,         -- canonical name and compared shape; the only key to join pairs on
    criterion,          -- rule that says `changed`: exact, abs:1e-5, rel:1e-3, ...
    exponent,           -- binary exponent of the base weight; lowest: subnormals and zero
    numel,              -- parameters in the stratum
    changed             -- parameters changed
FROM read_parquet(
    getvariable('store_files')['strata'],
    hive_partitioning = true, hive_types_autocast = false
);

-- One row a pair x tensor x criterion: the changed parameters of its rows and columns.
CREATE OR REPLACE TEMP VIEW margins AS
SELECT
    pair_id,            -- readable slug and hash of both revisions and the settings
    tensor,             -- canonical name: prefixes such as `model.` removed
    tensor_key,         -- canonical name and compared shape; the only key to join pairs on
    criterion,          -- rule that says `changed`: exact, abs:1e-5, rel:1e-3, ...
    changed_per_row,    -- changed in each row (all axes but the last)
    changed_per_column  -- changed in each column (the last axis)
FROM read_parquet(
    getvariable('store_files')['margins'],
    hive_partitioning = true, hive_types_autocast = false
);

-- One row a pair x tensor x bucket of signed steps: how far the parameters moved.
CREATE OR REPLACE TEMP VIEW steps AS
SELECT
    pair_id,            -- readable slug and hash of both revisions and the settings
    tensor,             -- canonical name: prefixes such as `model.` removed
    tensor_key,         -- canonical name and compared shape; the only key to join pairs on
    ulp_low,            -- smallest signed step of the bucket; null: from or to NaN or Inf
    ulp_high,           -- largest signed step of the bucket, in ULPs of the compare dtype
    numel               -- parameters that moved so far
FROM read_parquet(
    getvariable('store_files')['steps'],
    hive_partitioning = true, hive_types_autocast = false
);

-- Of what follows there may be no file: a pairs file, which lacks the column that is asked for, then
-- stands in for the files and gives no row.

-- One row a named mask, made from the masks of several pairs and kept under a name by `rlsparse
-- consensus` or `rlsparse mask`.
SET VARIABLE named_files = (
    SELECT list(getvariable('store') || '/' || path ORDER BY path)
    FROM (
        SELECT regexp_extract(file, '[^/]+/[^/]+/[^/]+$') AS path
        FROM glob(getvariable('store') || '/named_masks/*/named_masks.parquet')
    )
);
SET VARIABLE any_pair_file = (
    SELECT [getvariable('store') || '/' || regexp_extract(min(file), '[^/]+/[^/]+/[^/]+$')]
    FROM glob(getvariable('store') || '/pairs/*/pairs.parquet')
);

CREATE OR REPLACE TEMP TABLE named_masks AS
SELECT
    mask,               -- name of the mask
    kind,               -- how the mask was made: consensus or spectral
    rule,               -- which parameters are set, e.g. at least 3 of 5, principal:k=64,alpha=0.5
    at_least,           -- masks of members in which a set parameter changed, at the least; null if
                        -- spectral
    criterion,          -- rule that says `changed` in the masks of members; null if spectral
    members,            -- pair_id of every pair whose mask went in, sorted; if spectral, of the one
                        -- whose base did
    where_text,         -- condition that chose the members (over pairs), or the tensors (over
                        -- tensors) if spectral
    base_source,        -- where the base weights were read; null if consensus
    base_revision,      -- commit sha, or fingerprint of a folder; null if consensus
    tensors,            -- tensors that all members compared in the same shape
    numel,              -- parameters of these tensors
    changed,            -- bits set
    block,              -- parameters in a mask block
    schema_version,     -- version of these schemas
    software_version,   -- rlsparse_ray version that made the mask
    created_at,         -- when the mask was made
    parts               -- every file of the mask but this one
FROM (
    SELECT
        NULL::VARCHAR AS mask, NULL::VARCHAR AS kind, NULL::VARCHAR AS rule,
        NULL::INTEGER AS at_least, NULL::VARCHAR AS criterion, NULL::VARCHAR[] AS members,
        NULL::VARCHAR AS base_source, NULL::VARCHAR AS base_revision,
        NULL::VARCHAR AS where_text, NULL::INTEGER AS tensors, NULL::BIGINT AS changed
    UNION ALL BY NAME
    FROM read_parquet(
        coalesce(getvariable('named_files'), getvariable('any_pair_file')),
        hive_partitioning = true, hive_types_autocast = false, union_by_name = true
    )
)
WHERE mask IS NOT NULL;

SET VARIABLE named_bits_files = (
    SELECT list(getvariable('store') || '/' || part.path ORDER BY part.path)
    FROM (SELECT unnest(parts) AS part FROM named_masks)
);

-- One row a named mask x tensor x block: the columns of masks.
CREATE OR REPLACE TEMP VIEW named_mask_bits AS
SELECT
    mask,               -- name of the mask
    tensor_key,         -- canonical name and compared shape; the only key to join pairs on
    block,              -- number of the block in the flattened tensor (C order)
    numel,              -- parameters in the block
    changed,            -- bits set
    bits                -- bit i of byte j is parameter 8j+i; padding bits are 0
FROM (
    SELECT
        NULL::VARCHAR AS mask, NULL::VARCHAR AS tensor_key, NULL::INTEGER AS changed,
        NULL::BLOB AS bits
    UNION ALL BY NAME
    FROM read_parquet(
        coalesce(getvariable('named_bits_files'), getvariable('any_pair_file')),
        hive_partitioning = true, hive_types_autocast = false
    )
)
WHERE mask IS NOT NULL;

-- One row a pair x pair x tensor x criterion, as `rlsparse overlap` counted them: every tensor that
-- both compared in the same shape. A row tells what was found in the counted blocks, the expected
-- values included; overlap_summary scales it up.
SET VARIABLE overlap_files = (
    SELECT list(getvariable('store') || '/' || path ORDER BY path)
    FROM (
        SELECT regexp_extract(file, '[^/]+/[^/]+/[^/]+$') AS path
        FROM glob(getvariable('store') || '/overlaps/*/overlaps.parquet')
    )
);

CREATE OR REPLACE TEMP VIEW pair_overlaps AS
SELECT
    pair_b,             -- one pair
    pair_a,             -- the other pair; its text is smaller than that of pair_b
    criterion,          -- rule that says `changed`: exact, abs:1e-5, rel:1e-3, ...
    tensor_key,         -- canonical name and compared shape; the only key to join pairs on
    numel,              -- parameters in the counted blocks
    blocks,             -- blocks counted
    blocks_total,       -- blocks of the tensor; times this / blocks scales the row up
    changed_a,          -- changed in pair_a, in the counted blocks
    changed_b,          -- changed in pair_b, in the counted blocks
    shared,             -- changed in both, in the counted blocks
    shared_standard_error, -- standard error of shared scaled up; 0 if all were counted
    expected_tensor,    -- shared by chance given both densities of the whole tensor, times
                        -- blocks / blocks_total
    expected_magnitude, -- the same given both densities of each exponent; null if the bases differ
    expected_margins,   -- the same given the margins of both; expected_tensor for fewer than two
                        -- axes
    sample_fraction     -- share of the blocks that was asked for; 1: all
FROM (
    SELECT
        NULL::VARCHAR AS pair_b, NULL::VARCHAR AS pair_a, NULL::VARCHAR AS criterion,
        NULL::VARCHAR AS tensor_key, NULL::INTEGER AS blocks, NULL::INTEGER AS blocks_total,
        NULL::BIGINT AS changed_a, NULL::BIGINT AS changed_b, NULL::BIGINT AS shared,
        NULL::DOUBLE AS shared_standard_error, NULL::DOUBLE AS expected_tensor,
        NULL::DOUBLE AS expected_magnitude, NULL::DOUBLE AS expected_margins,
        NULL::DOUBLE AS sample_fraction
    UNION ALL BY NAME
    FROM read_parquet(
        coalesce(getvariable('overlap_files'), getvariable('any_pair_file')),
        hive_partitioning = true, hive_types_autocast = false
    )
)
WHERE pair_a IN (SELECT pair_id FROM pairs) AND pair_b IN (SELECT pair_id FROM pairs);

-- The same by the name of the table, which is a word of SQL and has to be quoted.
CREATE OR REPLACE TEMP VIEW "overlaps" AS FROM pair_overlaps;

-- One row a pair x tensor x matrix in it, as `rlsparse spectra` measured them: what was not asked for
-- has no row, what cannot be measured has one with its status.
SET VARIABLE spectra_files = (
    SELECT list(getvariable('store') || '/' || path ORDER BY path)
    FROM (
        SELECT regexp_extract(file, '[^/]+/[^/]+/[^/]+$') AS path
        FROM glob(getvariable('store') || '/spectra/*/spectra.parquet')
    )
);

CREATE OR REPLACE TEMP VIEW spectra AS
SELECT
    pair_id,            -- readable slug and hash of both revisions and the settings
    tensor,             -- canonical name: prefixes such as `model.` removed
    tensor_key,         -- canonical name and compared shape; the only key to join pairs on
    matrix,             -- which matrix of a stack of experts; 0 if the tensor is one itself
    status,             -- measured, unchanged, nonfinite, empty, not_a_matrix or not_a_float
    rows,               -- rows of the matrix; null if it is none
    columns,            -- columns of the matrix; null if it is none
    numel,              -- parameters of the matrix, or of the tensor if it is none
    changed,            -- parameters changed under criterion exact
    method,             -- exact or randomised; null unless measured
    rank_k,             -- dimension of the principal subspace that was asked for
    k,                  -- dimension of the principal subspace; null where a side is no longer than
                        -- rank_k, or the base has a lower rank
    update_norm,        -- Frobenius norm of the update D = tuned - base
    base_norm,          -- Frobenius norm of the base
    update_top,         -- largest singular value s_1 of D
    matrix_rank,        -- singular values of D above torch.linalg.matrix_rank's tolerance of
                        -- float32; null if randomised
    matrix_rank_at_least, -- those known to be above it; matrix_rank if exact
    rank_1e6,           -- singular values of D above 1e-6 s_1; null if randomised
    stable_rank,        -- ||D||_F^2 / s_1^2; null if unchanged
    effective_rank,     -- exp(entropy of singular values of D / their sum); null if unchanged or
                        -- randomised
    energy_rank_90,     -- fewest singular values of D with 90 % of ||D||_F^2; null if too few are
                        -- known
    energy_rank_99,     -- the same with 99 %
    top_energy_share,   -- share of ||D||_F^2 in the first rank_k of them
    nss,                -- ||s(tuned) - s(base)||_2 / ||s(base)||_2; null if randomised
    nss_at_least,       -- lower bound of nss; nss if exact
    nss_at_most,        -- upper bound of nss: ||D||_F / ||base||_F if randomised
    angles_left,        -- radians between the first k left singular vectors of base and tuned,
                        -- ascending
    angles_right,       -- the same of the right singular vectors
    gap,                -- (s_k - s_k+1) / s_k of the base: without a gap the largest angles say
                        -- little
    outside_share,      -- share of ||D||_F^2 outside the first k singular vectors of the base, both
                        -- sides; by chance 1 - k^2 / (rows columns)
    inside_left_share,  -- share of ||D||_F^2 in the span of the first k left ones; by chance k /
                        -- rows
    inside_right_share, -- the same on the right; by chance k / columns
    mask_overlaps,      -- of the principal and low-magnitude masks of the base at each alpha: size,
                        -- changed parameters in it, and how many by chance
    precision,          -- arithmetic of norms, ranks, nss, angles, shares, principal and
                        -- low_magnitude: float32 or float64, and how spectra were computed: gram,
                        -- svd or krylov
    errors              -- by column how far it may be off, absolute; none: rounding of float64; of
                        -- ranks: how many values lie too close to the tolerance; subspace: sine of
                        -- the largest angle of the principal subspace
FROM (
    SELECT
        NULL::VARCHAR AS tensor, NULL::VARCHAR AS tensor_key, NULL::INTEGER AS matrix,
        NULL::VARCHAR AS status, NULL::BIGINT AS rows, NULL::BIGINT AS columns,
        NULL::BIGINT AS numel, NULL::BIGINT AS changed, NULL::VARCHAR AS method,
        NULL::INTEGER AS rank_k, NULL::INTEGER AS k, NULL::DOUBLE AS update_norm,
        NULL::DOUBLE AS base_norm, NULL::DOUBLE AS update_top, NULL::BIGINT AS matrix_rank,
        NULL::BIGINT AS matrix_rank_at_least, NULL::BIGINT AS rank_1e6,
        NULL::DOUBLE AS stable_rank, NULL::DOUBLE AS effective_rank,
        NULL::BIGINT AS energy_rank_90, NULL::BIGINT AS energy_rank_99,
        NULL::DOUBLE AS top_energy_share, NULL::DOUBLE AS nss, NULL::DOUBLE AS nss_at_least,
        NULL::DOUBLE AS nss_at_most, NULL::DOUBLE[] AS angles_left, NULL::DOUBLE[] AS angles_right,
        NULL::DOUBLE AS gap, NULL::DOUBLE AS outside_share, NULL::DOUBLE AS inside_left_share,
        NULL::DOUBLE AS inside_right_share,
        NULL::STRUCT(
            kind VARCHAR, alpha DOUBLE, size BIGINT, shared BIGINT, expected_uniform DOUBLE,
            expected_magnitude DOUBLE
        )[] AS mask_overlaps,
        NULL::MAP(VARCHAR, VARCHAR) AS precision, NULL::MAP(VARCHAR, DOUBLE) AS errors
    UNION ALL BY NAME
    FROM read_parquet(
        coalesce(getvariable('spectra_files'), getvariable('any_pair_file')),
        hive_partitioning = true, hive_types_autocast = false
    )
)
WHERE status IS NOT NULL AND pair_id IN (SELECT pair_id FROM pairs);

-- One row a refresh of the store from a corpus.
SET VARIABLE refresh_files = (
    SELECT list(getvariable('store') || '/' || path ORDER BY path)
    FROM (
        SELECT regexp_extract(file, '[^/]+/[^/]+/[^/]+$') AS path
        FROM glob(getvariable('store') || '/refreshes/*/refreshes.parquet')
    )
);

CREATE OR REPLACE TEMP VIEW refreshes AS
SELECT
    refresh,            -- when it began, and a random part: sorts by time
    corpus,             -- corpus file, as it was called
    holder,             -- machine and process that did it
    started_at,         -- when it began
    seconds,            -- from its beginning to its end
    pairs,              -- pairs in the corpus
    added,              -- pairs extracted that the store had at no revision
    moved,              -- pairs that it had at other revisions, and the pair_id that was current
                        -- until then
    relabelled,         -- pairs of which only labels of the corpus had changed
    unchanged,          -- pairs that were there already
    failed,             -- pairs that were not extracted, and why; tried again next time
    doubts,             -- extracted pairs whose base may not be their base, and why
    bytes_read,         -- bytes of weights that were read
    overlap_criteria,   -- criteria whose overlaps were kept up to date
    sample_fraction,    -- share of the blocks in which overlaps are counted; 1: all
    overlaps_counted,   -- overlaps of two pairs that were counted
    audits,             -- audits that were run; 0: the store was as the refresh before had found
                        -- it, in order
    findings,           -- what they found, the first 1,000
    ok,                 -- no pair failed and no audit found anything
    state,              -- hash of the listing of the store, less its refreshes, at the end
    schema_version,     -- version of these schemas
    software_version    -- rlsparse_ray version that did it
FROM (
    SELECT
        NULL::VARCHAR AS refresh, NULL::VARCHAR AS corpus, NULL::VARCHAR AS holder,
        NULL::TIMESTAMPTZ AS started_at, NULL::BIGINT AS pairs,
        NULL::STRUCT(name VARCHAR, pair_id VARCHAR)[] AS added,
        NULL::STRUCT(name VARCHAR, pair_id VARCHAR, superseded VARCHAR)[] AS moved,
        NULL::STRUCT(name VARCHAR, pair_id VARCHAR)[] AS relabelled,
        NULL::BIGINT AS unchanged,
        NULL::STRUCT(name VARCHAR, message VARCHAR)[] AS failed,
        NULL::STRUCT(name VARCHAR, message VARCHAR)[] AS doubts,
        NULL::VARCHAR[] AS overlap_criteria, NULL::DOUBLE AS sample_fraction,
        NULL::BIGINT AS overlaps_counted, NULL::INTEGER AS audits,
        NULL::STRUCT("check" VARCHAR, pair_id VARCHAR, problem VARCHAR)[] AS findings,
        NULL::BOOLEAN AS ok, NULL::VARCHAR AS state
    UNION ALL BY NAME
    FROM read_parquet(
        coalesce(getvariable('refresh_files'), getvariable('any_pair_file')),
        hive_partitioning = true, hive_types_autocast = false
    )
)
WHERE refresh IS NOT NULL;


-- ---------------------------------------------------------------------------------------------
-- Names and criteria
-- ---------------------------------------------------------------------------------------------

-- The pair_id that a name or a pair_id stands for; NULL for NULL. Anything else is an error.
CREATE OR REPLACE TEMP MACRO pair_id_of(name_or_id) AS (
    SELECT CASE
        WHEN name_or_id IS NULL THEN NULL
        WHEN count(*) = 0
            THEN error('no pair named ' || name_or_id || '; FROM pairs lists them, the nearest is '
                || (SELECT arg_max(name, jaro_winkler_similarity(name, name_or_id)) FROM pairs))
        WHEN count(*) > 1
            THEN error('pair name ' || name_or_id || ' is ambiguous: ids '
                || string_agg(pair_id, ', ' ORDER BY pair_id))
        ELSE any_value(pair_id)
    END
    FROM pairs
    WHERE name_or_id IN (name, pair_id)
);

-- The criterion itself if at least one pair has it in `counts`, else an error.
CREATE OR REPLACE TEMP MACRO counted(criterion_) AS (
    SELECT CASE
        WHEN bool_or(list_contains(counted_criteria, criterion_)) THEN criterion_
        ELSE error('no pair counts criterion ' || criterion_ || '; counted are: '
            || array_to_string(list_sort(list_distinct(flatten(list(counted_criteria)))), ', '))
    END
    FROM pairs
);

-- The criterion itself if at least one pair keeps masks of it, else an error. Asked of the pairs,
-- not passed on to what reads masks: with a subquery in the place of the constant the 93 overlaps of
-- the demo and their rotations took 15 s and 8.9 GB instead of 0.8 s and 0.5 GB.
CREATE OR REPLACE TEMP MACRO kept(criterion_) AS (
    SELECT CASE
        WHEN bool_or(list_contains(criteria, criterion_)) THEN criterion_
        ELSE error('no pair keeps masks of ' || counted(criterion_) || ', only of '
            || array_to_string(list_sort(list_distinct(flatten(list(criteria)))), ', ')
            || ' (criteria under settings of the corpus)')
    END
    FROM pairs
);

-- The trajectory itself if there is one of that name, NULL for NULL, else an error.
CREATE OR REPLACE TEMP MACRO trajectory_of(trajectory_) AS (
    SELECT CASE
        WHEN trajectory_ IS NULL OR bool_or(trajectory = trajectory_) THEN trajectory_
        ELSE error('no trajectory named ' || trajectory_ || '; there are: '
            || coalesce(string_agg(DISTINCT trajectory, ', ' ORDER BY trajectory), 'none'))
    END
    FROM trajectory_pairs
);

-- The pairs that a parameter means: one by its name or id, or all of them for '*'.
CREATE OR REPLACE TEMP MACRO selected_pairs(pair) AS TABLE
FROM pairs
WHERE pair_id = coalesce((SELECT pair_id_of(nullif(pair, '*'))), pair_id);

-- The training runs of a family and an algorithm, or of any for '*'. None at all is an error.
CREATE OR REPLACE TEMP MACRO selected_runs(family_, algorithm_) AS TABLE
FROM training_runs
WHERE family_ IN ('*', family) AND algorithm_ IN ('*', algorithm)
    AND (
        SELECT CASE WHEN bool_or(family_ IN ('*', family) AND algorithm_ IN ('*', algorithm))
            THEN true
            ELSE error('no run of family ' || family_ || ' and algorithm ' || algorithm_
                || '; there are: ' || string_agg(DISTINCT concat(family, ' ', algorithm), ', '
                    ORDER BY concat(family, ' ', algorithm)))
        END
        FROM training_runs
    );

-- ---------------------------------------------------------------------------------------------
-- Formulas. Division by zero gives NULL. Sums are exact integers; products of two counts pass
-- 2^63 for large models and are therefore HUGEINT or DOUBLE.
-- ---------------------------------------------------------------------------------------------

CREATE OR REPLACE TEMP MACRO density(changed, numel) AS changed / nullif(numel, 0);
CREATE OR REPLACE TEMP MACRO sparsity(changed, numel) AS (numel - changed) / nullif(numel, 0);

-- Shared parameters of two masks over the same numel parameters, were they independent.
CREATE OR REPLACE TEMP MACRO expected_uniform(changed_a, changed_b, numel) AS
    changed_a::DOUBLE * changed_b / nullif(numel, 0);

-- How many times what is expected was observed.
CREATE OR REPLACE TEMP MACRO lift(observed, expected) AS observed / nullif(expected, 0);

CREATE OR REPLACE TEMP MACRO jaccard(shared, changed_a, changed_b) AS
    shared / nullif(changed_a + changed_b - shared, 0);

-- Correlation of the two masks as 0/1 variables; NULL where one of them is constant.
CREATE OR REPLACE TEMP MACRO phi(shared, changed_a, changed_b, numel) AS
    (numel::HUGEINT * shared - changed_a::HUGEINT * changed_b)::DOUBLE
    / nullif(sqrt(changed_a::DOUBLE * (numel - changed_a))
        * sqrt(changed_b::DOUBLE * (numel - changed_b)), 0);

-- The way from chance to complete overlap: 0 where chance explains it, 1 where the smaller mask lies
-- in the larger. NULL where chance alone would fill the smaller one.
CREATE OR REPLACE TEMP MACRO excess_share(shared, expected, smaller) AS
    CASE WHEN smaller > expected THEN (shared - expected) / (smaller - expected) END;

-- Parameters of a tensor of that shape; one for a scalar.
CREATE OR REPLACE TEMP MACRO cells(shape) AS coalesce(list_product(shape), 1)::BIGINT;

-- The stack of layers that a tensor is in: what stands before the layer number in its name, such as
-- `visual` or `encoder`. NULL for the one stack of a decoder, and outside the layers. Both layers 5
-- of a model with two stacks have the number 5, so what goes by layer goes by tower first.
CREATE OR REPLACE TEMP MACRO tower_of(tensor, layer) AS
    CASE WHEN layer IS NOT NULL THEN nullif(regexp_extract(
        tensor, '^(?:(.*?)\.)??(?:layers|layer|h|blocks|block|resblocks|blk)\.[0-9]+\.', 1
    ), '') END;

-- ---------------------------------------------------------------------------------------------
-- Sparsity
-- ---------------------------------------------------------------------------------------------

-- Counts with what the name of the tensor says and how it was compared.
CREATE OR REPLACE TEMP VIEW tensor_counts AS
SELECT
    c.pair_id, t.tensor, c.tensor_key, tower_of(t.tensor, t.layer) AS tower, t.layer, t.module,
    t.kind, t.status, t.base_xxh3, c.criterion, c.numel, c.changed
FROM counts AS c
JOIN tensors AS t ON t.pair_id = c.pair_id AND t.tensor_key = c.tensor_key;

-- ---------------------------------------------------------------------------------------------
-- Overlap of two pairs. `a` and `b` are names or ids, or '*' for every pair that keeps masks of
-- the criterion; overlap_total('*', '*') has each two pairs once.
-- ---------------------------------------------------------------------------------------------

-- The id of a pair that keeps masks of the criterion; NULL for NULL, an error for any other.
CREATE OR REPLACE TEMP MACRO masked_pair_id_of(name_or_id, criterion_) AS (
    SELECT CASE
        WHEN name_or_id IS NULL THEN NULL
        WHEN bool_or(list_contains(criteria, criterion_)) THEN any_value(pair_id)
        ELSE error('pair ' || name_or_id || ' keeps no masks of criterion ' || criterion_
            || '; it keeps: ' || array_to_string(any_value(criteria), ', '))
    END
    FROM pairs
    WHERE pair_id = (SELECT pair_id_of(name_or_id))
);

-- One row for every two pairs to compare.
CREATE OR REPLACE TEMP MACRO compared_pairs(a, b, criterion_) AS TABLE
SELECT x.pair_id AS pair_a, y.pair_id AS pair_b
FROM pairs AS x, pairs AS y
WHERE list_contains(x.criteria, kept(criterion_))
    AND list_contains(y.criteria, criterion_)
    AND x.pair_id = coalesce(
        (SELECT masked_pair_id_of(nullif(a, '*'), criterion_)), x.pair_id)
    AND y.pair_id = coalesce(
        (SELECT masked_pair_id_of(nullif(b, '*'), criterion_)), y.pair_id)
    AND CASE
        WHEN a = '*' AND b = '*' THEN x.pair_id < y.pair_id
        WHEN a = '*' OR b = '*' THEN x.pair_id <> y.pair_id
        ELSE true
    END;

-- One row for every tensor_key that at least one of the two compared. The side that has no such
-- tensor (another name, or another shape) has NULL in changed_a or changed_b.
CREATE OR REPLACE TEMP MACRO overlap_sides(a, b, criterion_) AS TABLE
SELECT
    pair_a, pair_b, tensor_key,
    any_value(tensor) AS tensor,
    any_value(layer) AS layer,
    any_value(module) AS module,
    any_value(kind) AS kind,
    any_value(numel) AS numel,
    any_value(changed) FILTER (pair_id = pair_a) AS changed_a,
    any_value(changed) FILTER (pair_id = pair_b) AS changed_b,
    min(base_xxh3) = max(base_xxh3) AS same_base
FROM (
    SELECT pair_a, pair_b, unnest(list_distinct([pair_a, pair_b])) AS pair_id
    FROM compared_pairs(a, b, criterion_)
)
JOIN (FROM tensor_counts WHERE criterion = criterion_) USING (pair_id)
GROUP BY ALL;

-- Shared bits of A's blocks with B's, block by block: as they lie (rotation 0: all blocks) and with
-- B's full blocks rotated within the tensor. Rotation r turns a tensor of f full blocks by
-- 1 + (turn - 1) % (f - 1) blocks, so that even a short tensor is turned in every rotation: block x
-- of A meets block (x + turned) % f of B.
CREATE OR REPLACE TEMP MACRO rotated_blocks(a, b, criterion_, rotate_) AS TABLE
WITH compared AS MATERIALIZED (FROM compared_pairs(a, b, criterion_)),
sizes AS (
    SELECT pair_id, tensor_key, numel // 65536 AS full_blocks
    FROM counts
    WHERE criterion = criterion_
),
facing AS (
    SELECT
        pair_a, pair_b, tensor_key, full_blocks, changed, bits,
        rotate_ AND full_blocks >= 2 AND block < full_blocks AS rotates,
        [block::BIGINT] || CASE WHEN rotates THEN [
            (block + full_blocks - 1 - (turn - 1) % (full_blocks - 1)) % full_blocks
            FOR turn IN [1, 2, 3, 5, 8]
        ] ELSE [] END AS blocks_a
    FROM masks
    JOIN compared ON pair_b = pair_id
    JOIN sizes USING (pair_id, tensor_key)
    WHERE criterion = criterion_
),
turned AS (
    -- the optimizer moves no join across an unnest; where it chose the order, the 93 overlaps of
    -- the demo took 1.4 s and 1.6 GB instead of 0.4 s and 0.3 GB
    SELECT * EXCLUDE (blocks_a), unnest(blocks_a) AS block, unnest(range(len(blocks_a))) AS rotation
    FROM facing
)
SELECT
    y.pair_a, y.pair_b, x.tensor_key, x.block, y.rotation, y.rotates,
    x.numel, x.changed AS changed_a, y.changed AS changed_b,
    bit_count(x.bits::BIT & y.bits::BIT) AS shared
FROM turned AS y
JOIN masks AS x
    ON x.criterion = criterion_ AND x.pair_id = y.pair_a
    AND x.tensor_key = y.tensor_key AND x.block = y.block;

-- Observed overlap: the bits set in both masks, and how many parameters were looked at.
CREATE OR REPLACE TEMP MACRO shared_bits(a, b, criterion_) AS TABLE
SELECT
    pair_a, pair_b, tensor_key,
    sum(numel)::BIGINT AS numel_seen,
    sum(shared)::BIGINT AS shared
FROM rotated_blocks(a, b, criterion_, false)
GROUP BY ALL;

-- Sides and observed overlap. Masks that lack a block would only make `shared` smaller, so that is
-- an error.
CREATE OR REPLACE TEMP MACRO overlap_tensors(a, b, criterion_) AS TABLE
SELECT
    s.*,
    CASE
        WHEN changed_a IS NULL OR changed_b IS NULL THEN NULL
        WHEN coalesce(numel_seen, 0) = numel THEN coalesce(o.shared, 0)
        ELSE error('masks of ' || tensor_key || ' lack blocks in ' || pair_a || ' or ' || pair_b
            || ': run rlsparse verify')
    END AS shared
FROM overlap_sides(a, b, criterion_) AS s
LEFT JOIN shared_bits(a, b, criterion_) AS o USING (pair_a, pair_b, tensor_key);

-- Overlap at every level: one row for two pairs (`total`), one for each tensor that both compared
-- in the same shape (`tensor`), and one for each that only one of them did (`unmatched`), which is
-- in no sum of the total. A baseline is an expected `shared`:
--   uniform: from the two densities over all parameters of the row;
--   tensor:  the sum of what is expected in each tensor, since some tensors are simply busier.
-- A further baseline is one more macro that gives (pair_a, pair_b, tensor_key, expected), joined
-- to overlap_tensors and summed here.
CREATE OR REPLACE TEMP MACRO overlap_levels(a, b, criterion_) AS TABLE
WITH sums AS (
    SELECT
        pair_a, pair_b,
        CASE
            WHEN grouping(tensor_key) = 1 THEN 'total'
            WHEN count(shared) = 1 THEN 'tensor'
            ELSE 'unmatched'
        END AS level,
        tensor_key, tensor, layer, module, kind,
        count(shared) AS tensors,
        coalesce(sum(numel) FILTER (shared IS NOT NULL), 0)::BIGINT AS numel,
        coalesce(sum(changed_a) FILTER (shared IS NOT NULL), 0)::BIGINT AS changed_a,
        coalesce(sum(changed_b) FILTER (shared IS NOT NULL), 0)::BIGINT AS changed_b,
        coalesce(sum(shared), 0)::BIGINT AS shared,
        sum(expected_uniform(changed_a, changed_b, numel)) AS expected_tensor,
        bool_and(same_base) FILTER (shared IS NOT NULL) AS same_base,
        count(*) - count(shared) AS tensors_unmatched,
        coalesce(sum(numel) FILTER (shared IS NULL), 0)::BIGINT AS numel_unmatched,
        any_value(changed_a) FILTER (shared IS NULL) AS unmatched_a,
        any_value(changed_b) FILTER (shared IS NULL) AS unmatched_b
    FROM overlap_tensors(a, b, criterion_)
    GROUP BY GROUPING SETS (
        (pair_a, pair_b), (pair_a, pair_b, tensor_key, tensor, layer, module, kind)
    )
)
SELECT
    pair_a, pair_b, level, tensor_key, tensor, layer, module, kind, tensors,
    numel, changed_a, changed_b, shared,
    shared / nullif(changed_a, 0) AS o1,
    shared / nullif(changed_b, 0) AS o2,
    jaccard(shared, changed_a, changed_b) AS jaccard,
    phi(shared, changed_a, changed_b, numel) AS phi,
    expected_uniform(changed_a, changed_b, numel) AS expected_uniform,
    lift(shared, expected_uniform(changed_a, changed_b, numel)) AS lift_uniform,
    expected_tensor,
    lift(shared, expected_tensor) AS lift_tensor,
    same_base, tensors_unmatched, numel_unmatched
FROM sums
WHERE level <> 'unmatched'
UNION ALL BY NAME
SELECT
    pair_a, pair_b, level, tensor_key, tensor, layer, module, kind,
    numel_unmatched AS numel, unmatched_a AS changed_a, unmatched_b AS changed_b
FROM sums
WHERE level = 'unmatched';

-- Overlap tensor by tensor, of the tensors that both compared in the same shape.
CREATE OR REPLACE TEMP MACRO overlap(a, b, criterion := 'exact') AS TABLE
SELECT
    pair_a, pair_b, tensor_key, tensor, layer, module, kind, numel,
    changed_a, changed_b, shared, o1, o2, jaccard, phi,
    expected_uniform, lift_uniform, same_base
FROM overlap_levels(a, b, criterion)
WHERE level = 'tensor';

-- Overlap in total, one row for two pairs.
CREATE OR REPLACE TEMP MACRO overlap_total(a, b, criterion := 'exact') AS TABLE
SELECT
    pair_a, pair_b, tensors, numel, changed_a, changed_b, shared, o1, o2, jaccard, phi,
    expected_uniform, lift_uniform, expected_tensor, lift_tensor,
    same_base, tensors_unmatched, numel_unmatched
FROM overlap_levels(a, b, criterion)
WHERE level = 'total';

-- ---------------------------------------------------------------------------------------------
-- Chance baselines of an overlap. Each says what `shared` would be if the two masks were
-- independent of one another given what it knows:
--   uniform:   the two densities of the row: |A||B|/n;
--   tensor:    the two densities of every tensor: sum of |A_t||B_t|/n_t;
--   magnitude: the two densities of every stratum (tensor and binary exponent of the base weight):
--              sum of |A_te||B_te|/n_te. A small bf16 weight has a small ULP and changes more
--              easily, in every run. Only where the base tensors have the same bytes;
--   margins:   the rows and columns of every tensor: sum of
--              (sum_i rA_i rB_i)(sum_j cA_j cB_j)/(|A_t||B_t|). Tensors of fewer than two axes
--              have no margins and enter with their `tensor` expectation;
--   shift:     the texture of B: mean `shared` over five rotations of B's blocks. Full blocks of
--              tensors that have at least two.
-- ---------------------------------------------------------------------------------------------


-- What the standard errors and the shift baseline need of the blocks, one row a tensor that both
-- compared. s: observed in a block. q: the block's share of what is expected in the tensor, in
-- proportion to changed_a changed_b / numel of the block, or to numel where that is 0 everywhere.
-- e: mean of the five rotations in a block.
CREATE OR REPLACE TEMP MACRO block_sums(a, b, criterion_, rotate_) AS TABLE
WITH bits AS MATERIALIZED (
    SELECT *, expected_uniform(changed_a, changed_b, numel) AS product
    FROM rotated_blocks(a, b, criterion_, rotate_)
),
observed AS (
    SELECT
        pair_a, pair_b, tensor_key,
        count(*) AS blocks,
        sum(shared * shared)::DOUBLE AS sum_ss,
        coalesce(sum(shared * product) / nullif(sum(product), 0),
            sum(shared * numel) / sum(numel)) AS sum_sq,
        coalesce(sum(product * product) / nullif(sum(product), 0) ^ 2,
            sum(numel::DOUBLE * numel) / sum(numel) ^ 2) AS sum_qq
    FROM bits
    WHERE rotation = 0
    GROUP BY ALL
),
rotated_block AS (
    SELECT
        pair_a, pair_b, tensor_key, block,
        any_value(numel) AS numel,
        any_value(changed_a) AS changed_a,
        any_value(changed_b) FILTER (rotation = 0) AS changed_b,
        any_value(shared) FILTER (rotation = 0) AS s,
        avg(shared) FILTER (rotation > 0) AS e,
        list(shared ORDER BY rotation) FILTER (rotation > 0) AS by_rotation
    FROM bits
    WHERE rotates
    GROUP BY ALL
),
rotated AS (
    SELECT
        pair_a, pair_b, tensor_key,
        count(*) AS full_blocks,
        sum(numel)::BIGINT AS full_numel,
        sum(changed_a)::BIGINT AS full_changed_a,
        sum(changed_b)::BIGINT AS full_changed_b,
        sum(s)::BIGINT AS full_shared,
        sum(e) AS expected_shift,
        sum(s * s)::DOUBLE AS full_ss,
        sum(s * e) AS sum_se,
        sum(e * e) AS sum_ee,
        [sum(by_rotation[1]), sum(by_rotation[2]), sum(by_rotation[3]), sum(by_rotation[4]),
            sum(by_rotation[5])]::DOUBLE[] AS by_rotation
    FROM rotated_block
    GROUP BY ALL
)
FROM observed LEFT JOIN rotated USING (pair_a, pair_b, tensor_key);

-- Expected `shared` of each tensor by the strata of its base. NULL where the two sides do not have
-- the same strata.
CREATE OR REPLACE TEMP MACRO expected_by_strata(a, b, criterion_) AS TABLE
SELECT
    pair_a, pair_b, x.tensor_key,
    sum(x.numel)::BIGINT AS numel_seen,
    CASE WHEN bool_and(x.numel = y.numel)
        THEN sum(expected_uniform(x.changed, y.changed, x.numel)) END AS expected
FROM compared_pairs(a, b, criterion_)
JOIN strata AS x ON x.pair_id = pair_a AND x.criterion = criterion_
JOIN strata AS y ON y.pair_id = pair_b AND y.criterion = criterion_
    AND y.tensor_key = x.tensor_key AND y.exponent = x.exponent
GROUP BY ALL;

-- Expected `shared` of each tensor with margins by its rows and columns.
CREATE OR REPLACE TEMP MACRO expected_by_margins(a, b, criterion_) AS TABLE
SELECT
    pair_a, pair_b, x.tensor_key,
    coalesce(
        list_dot_product(x.changed_per_row::DOUBLE[], y.changed_per_row::DOUBLE[])
        * list_dot_product(x.changed_per_column::DOUBLE[], y.changed_per_column::DOUBLE[])
        / nullif(list_sum(x.changed_per_row)::DOUBLE * list_sum(y.changed_per_row), 0),
        0
    ) AS expected
FROM compared_pairs(a, b, criterion_)
JOIN margins AS x ON x.pair_id = pair_a AND x.criterion = criterion_
JOIN margins AS y ON y.pair_id = pair_b AND y.criterion = criterion_
    AND y.tensor_key = x.tensor_key;

-- One row a tensor that both compared and a baseline. `weight` is the tensor's part of the row's
-- expectation: `expected`, but under `uniform`, where the row has one density for all of its
-- tensors, numel. sum_se and sum_ee: over its blocks, with e the block's part of `weight`.
CREATE OR REPLACE TEMP MACRO baseline_tensors(a, b, criterion_, rotate_) AS TABLE
WITH matched AS MATERIALIZED (
    SELECT
        o.*,
        coalesce(expected_uniform(changed_a, changed_b, o.numel), 0) AS expected_tensor,
        CASE WHEN same_base AND coalesce(s.numel_seen, 0) = o.numel
            THEN CASE WHEN o.numel = 0 THEN 0 ELSE s.expected END END AS expected_magnitude,
        m.expected AS expected_margins,
        b.* EXCLUDE (pair_a, pair_b, tensor_key),
        65536 % nullif(shape[-1], 0) = 0 AS aligned
    FROM overlap_tensors(a, b, criterion_) AS o
    LEFT JOIN expected_by_strata(a, b, criterion_) AS s USING (pair_a, pair_b, tensor_key)
    LEFT JOIN expected_by_margins(a, b, criterion_) AS m USING (pair_a, pair_b, tensor_key)
    LEFT JOIN block_sums(a, b, criterion_, rotate_) AS b USING (pair_a, pair_b, tensor_key)
    LEFT JOIN (SELECT pair_id AS pair_a, tensor_key, shape FROM tensors)
        USING (pair_a, tensor_key)
    WHERE o.shared IS NOT NULL
),
by_tensor AS (
    SELECT
        pair_a, pair_b, tensor, layer, kind, baseline, numel, changed_a, changed_b, shared,
        CASE baseline
            WHEN 'magnitude' THEN expected_magnitude
            WHEN 'margins' THEN coalesce(expected_margins, expected_tensor)
            ELSE expected_tensor
        END AS expected,
        CASE baseline WHEN 'uniform' THEN numel ELSE expected END::DOUBLE AS weight,
        coalesce(blocks, 0) AS blocks,
        sum_ss,
        weight * sum_sq AS sum_se,
        weight * weight * sum_qq AS sum_ee,
        NULL::DOUBLE[] AS by_rotation,
        CASE WHEN baseline = 'magnitude' AND expected IS NULL
            THEN CASE WHEN same_base THEN 'strata differ' ELSE 'bases differ' END
        END AS undefined,
        true AS aligned
    FROM matched, (VALUES ('uniform'), ('tensor'), ('magnitude'), ('margins')) AS v(baseline)
)
FROM by_tensor
UNION ALL BY NAME
SELECT
    pair_a, pair_b, tensor, layer, kind, 'shift' AS baseline,
    coalesce(full_numel, numel) AS numel,
    coalesce(full_changed_a, changed_a) AS changed_a,
    coalesce(full_changed_b, changed_b) AS changed_b,
    coalesce(full_shared, shared) AS shared,
    expected_shift AS expected, expected_shift AS weight,
    coalesce(full_blocks, blocks, 0) AS blocks,
    full_ss AS sum_ss, sum_se, sum_ee, by_rotation,
    CASE WHEN full_blocks IS NULL THEN if(rotate_, 'fewer than 2 full blocks', 'not asked for')
        END AS undefined,
    full_blocks IS NULL OR aligned AS aligned
FROM matched;

-- Overlap against every baseline, at every level. `a` and `b` as for overlap_total.
--   level, key: total; kind (attention, ...); layer (its number, behind its tower where there is one,
--     as in `visual 5`, or `none`); tensor (its name).
--   numel, changed_a, changed_b, shared: of the tensors for which the baseline is defined, so numel
--     says how much a row covers; where it is defined for none, of all of them, and expected is
--     NULL. `shift` counts full blocks only. `note` says what is left out, and why.
--   lift = shared / expected, excess = shared - expected.
--   standard_error: of the lift, with the blocks as clusters: what a bootstrap that draws blocks
--     would give, in closed form. In block b, s_b is observed and e_b expected (the sum of e_b
--     is `expected`); under Poisson weights w_b of mean and variance 1 the lift sum w_b s_b /
--     sum w_b e_b has to first order the variance sum (s_b - lift e_b)^2 / expected^2. Within a
--     tensor e_b goes with changed_a changed_b / numel of the block, so that it is the error of the
--     lift given how busy the blocks are; under `shift` it is the mean of the rotations in
--     that block. NULL for fewer than two blocks; with few of them it reads small.
--   spread: standard deviation of the five rotated counts.
-- shift := false leaves the rotations out, which are five sixths of the work.
CREATE OR REPLACE TEMP MACRO overlap_baselines(a, b, criterion := 'exact', shift := true) AS TABLE
WITH sums AS (
    SELECT
        pair_a, pair_b, baseline,
        CASE grouping(kind, layer, tensor)
            WHEN 7 THEN 'total' WHEN 3 THEN 'kind' WHEN 5 THEN 'layer' ELSE 'tensor'
        END AS level,
        CASE level
            WHEN 'total' THEN 'total'
            WHEN 'kind' THEN kind
            WHEN 'layer' THEN if(layer IS NULL, 'none', concat_ws(' ', tower, layer))
            ELSE tensor
        END AS key,
        count(*) AS tensors,
        count(expected) AS defined,
        coalesce(sum(numel) FILTER (expected IS NOT NULL), sum(numel))::BIGINT AS numel,
        coalesce(sum(changed_a) FILTER (expected IS NOT NULL), sum(changed_a))::BIGINT
            AS changed_a,
        coalesce(sum(changed_b) FILTER (expected IS NOT NULL), sum(changed_b))::BIGINT
            AS changed_b,
        coalesce(sum(shared) FILTER (expected IS NOT NULL), sum(shared))::BIGINT AS shared,
        coalesce(sum(blocks) FILTER (expected IS NOT NULL), sum(blocks))::BIGINT AS blocks,
        sum(expected) AS expected_sum,
        sum(weight) AS weight,
        sum(sum_ss) FILTER (expected IS NOT NULL) AS sum_ss,
        sum(sum_se) AS sum_se,
        sum(sum_ee) AS sum_ee,
        CASE WHEN max(blocks) FILTER (expected IS NOT NULL) > 2 THEN list_stddev_samp([
            sum(by_rotation[1]), sum(by_rotation[2]), sum(by_rotation[3]), sum(by_rotation[4]),
            sum(by_rotation[5])]) END AS spread,
        string_agg(DISTINCT undefined, ', ' ORDER BY undefined) AS undefined,
        count(*) FILTER (NOT aligned) AS misaligned
    FROM (
        SELECT *, tower_of(tensor, layer) AS tower
        FROM baseline_tensors(a, b, criterion, shift)
    )
    GROUP BY GROUPING SETS (
        (pair_a, pair_b, baseline),
        (pair_a, pair_b, baseline, kind),
        (pair_a, pair_b, baseline, tower, layer),
        (pair_a, pair_b, baseline, tensor)
    )
)
SELECT
    level, key, baseline, numel, changed_a, changed_b, shared,
    CASE baseline
        WHEN 'uniform' THEN coalesce(expected_uniform(changed_a, changed_b, numel), 0)
        ELSE expected_sum
    END AS expected,
    lift(shared, expected) AS lift,
    shared - expected AS excess,
    -- lift e_b = shared / weight (the block's part of weight)
    CASE WHEN blocks >= 2 THEN sqrt(greatest(0,
        sum_ss - 2 * shared / nullif(weight, 0) * sum_se + (shared / nullif(weight, 0)) ^ 2 * sum_ee
    )) / nullif(expected, 0) END AS standard_error,
    shared / nullif(changed_a, 0) AS o1,
    shared / nullif(changed_b, 0) AS o2,
    jaccard(shared, changed_a, changed_b) AS jaccard,
    phi(shared, changed_a, changed_b, numel) AS phi,
    pair_a, pair_b, blocks, spread,
    nullif(concat_ws('; ',
        undefined || CASE WHEN defined = 0 THEN ': not defined'
            ELSE ' in ' || (tensors - defined) || ' of ' || tensors || ' tensors: left out' END,
        CASE WHEN misaligned > 0 THEN CASE WHEN misaligned = defined THEN 'rows'
            ELSE 'rows of ' || misaligned || ' of ' || defined || ' tensors' END
            || ' do not divide a block: columns not aligned' END
    ), '') AS note
FROM sums;

-- The lifts of overlap_baselines in total, one row for two pairs. shared, o1 and o2 are of all
-- tensors that both compared; a lift covers what its baseline is defined for, as `note` says.
-- lift_shift is NULL without shift := true, since the rotations are most of the work.
CREATE OR REPLACE TEMP MACRO overlap_lifts(a, b, criterion := 'exact', shift := false) AS TABLE
SELECT
    pair_a, pair_b,
    max(numel) FILTER (baseline = 'uniform') AS numel,
    max(shared) FILTER (baseline = 'uniform') AS shared,
    max(o1) FILTER (baseline = 'uniform') AS o1,
    max(o2) FILTER (baseline = 'uniform') AS o2,
    max(lift) FILTER (baseline = 'uniform') AS lift_uniform,
    max(lift) FILTER (baseline = 'tensor') AS lift_tensor,
    max(lift) FILTER (baseline = 'margins') AS lift_margins,
    max(lift) FILTER (baseline = 'shift') AS lift_shift,
    max(lift) FILTER (baseline = 'magnitude') AS lift_magnitude,
    max(standard_error) FILTER (baseline = 'magnitude') AS standard_error_magnitude,
    string_agg(baseline || ': ' || note, '; ' ORDER BY baseline)
        FILTER (shift OR baseline <> 'shift') AS note
FROM overlap_baselines(a, b, criterion := criterion, shift := shift)
WHERE level = 'total'
GROUP BY ALL;

-- The view pair_overlaps in total, one row for two pairs, scaled up to all blocks: every sum is that
-- of the rows times blocks_total / blocks, so a sampled row counts for its whole tensor (shared,
-- changed_a, changed_b and numel are then estimates). standard_error is that of the estimated
-- shared, over blocks as clusters within tensors, and 0 if all blocks were counted.
-- lift_magnitude covers the tensors with the same base; all_magnitude says if those are all.
CREATE OR REPLACE TEMP MACRO overlap_summary(criterion_ := 'exact') AS TABLE
SELECT
    pair_a, pair_b, tensors, sample_fraction, numel, changed_a, changed_b, shared, standard_error,
    shared / nullif(changed_a, 0) AS o1,
    shared / nullif(changed_b, 0) AS o2,
    jaccard(shared, changed_a, changed_b) AS jaccard,
    phi(shared, changed_a, changed_b, numel) AS phi,
    expected_uniform(changed_a, changed_b, numel) AS expected_uniform,
    lift(shared, expected_uniform(changed_a, changed_b, numel)) AS lift_uniform,
    expected_tensor,
    lift(shared, expected_tensor) AS lift_tensor,
    expected_margins,
    lift(shared, expected_margins) AS lift_margins,
    expected_magnitude,
    lift(shared_magnitude, expected_magnitude) AS lift_magnitude,
    all_magnitude
FROM (
    SELECT
        pair_a, pair_b,
        count(*) AS tensors,
        min(sample_fraction) AS sample_fraction,
        round(sum(numel * scale))::BIGINT AS numel,
        round(sum(changed_a * scale))::BIGINT AS changed_a,
        round(sum(changed_b * scale))::BIGINT AS changed_b,
        round(sum(shared * scale))::BIGINT AS shared,
        sqrt(sum(shared_standard_error ^ 2)) AS standard_error,
        sum(expected_tensor * scale) AS expected_tensor,
        sum(expected_margins * scale) AS expected_margins,
        sum(expected_magnitude * scale) AS expected_magnitude,
        sum(shared * scale) FILTER (expected_magnitude IS NOT NULL) AS shared_magnitude,
        bool_and(expected_magnitude IS NOT NULL) AS all_magnitude
    FROM (
        SELECT *, coalesce(blocks_total / nullif(blocks, 0), 1) AS scale
        FROM pair_overlaps
        WHERE criterion = criterion_
    )
    GROUP BY pair_a, pair_b
);

-- ---------------------------------------------------------------------------------------------
-- Geometry of updates
-- ---------------------------------------------------------------------------------------------

-- Rows of spectra with what the name of the tensor says, and the rank that the matrix could have.
CREATE OR REPLACE TEMP VIEW spectra_tensors AS
SELECT
    s.*, t.layer, t.module, t.kind,
    least(s.rows, s.columns) AS full_rank
FROM spectra AS s
JOIN tensors AS t ON t.pair_id = s.pair_id AND t.tensor_key = s.tensor_key;

-- The same of a module, or of all for '*'. A module that has none is an error.
CREATE OR REPLACE TEMP MACRO selected_spectra(module_) AS TABLE
FROM spectra_tensors
WHERE module_ IN ('*', module)
    AND (
        SELECT CASE WHEN module_ = '*' OR bool_or(module = module_) THEN true
            ELSE error('no module ' || module_ || ' has spectra; there are: '
                || string_agg(DISTINCT module, ', ' ORDER BY module))
        END
        FROM spectra_tensors
    );

-- The mean of a value, each matrix counted like its parameters; of those that have the value.
CREATE OR REPLACE TEMP MACRO weighted_mean(value, numel) AS
    sum(value * numel) / nullif(sum(numel) FILTER (value IS NOT NULL), 0);

-- ---------------------------------------------------------------------------------------------
-- Trajectories. With I_k the mask of checkpoint k against the one before it, U_k the union of
-- I_1 .. I_k, and F_k the mask of checkpoint k against the start:
--   never touched      n - |U_k or F_k|
--   touched and back   |U_k| - |U_k and F_k|: changed on the way, equal to the start at k
--   kept               |F_k|
-- Under exact, F_k lies within U_k. Under a tolerance it need not: a parameter may drift away in
-- steps that are each too small to count; `drifted` = |F_k| - |U_k and F_k|, a part of `kept`.
-- ---------------------------------------------------------------------------------------------

-- A sum that is NULL where any of its values is.
CREATE OR REPLACE TEMP MACRO sum_of_all(counted_) AS
    CASE WHEN count(counted_) = count(*) THEN sum(counted_)::BIGINT END;

-- The bits of a block; the last one of a tensor is filled with zeros to the 8,192 bytes of the others.
CREATE OR REPLACE TEMP MACRO whole_block(bits_) AS
    CASE WHEN octet_length(bits_) = 8192 THEN bits_
        ELSE bits_ || repeat('\x00'::BLOB, 8192 - octet_length(bits_))
    END;

-- One row a trajectory x tensor x checkpoint after the first: those sets counted, from the masks.
-- The row is missing where an interval up to it has no mask, and what needs a mask against the start
-- is null where that is not there.
CREATE OR REPLACE TEMP MACRO trajectory_tensors(trajectory_, criterion_) AS TABLE
WITH wanted AS MATERIALIZED (
    SELECT t.*
    FROM trajectory_pairs AS t
    JOIN pairs AS p USING (pair_id)
    WHERE list_contains(p.criteria, criterion_)
        AND t.trajectory = coalesce(
            (SELECT trajectory_of(nullif(trajectory_, '*'))), t.trajectory)
),
blocks AS (
    -- all of one length: DuckDB 1.x combines the rows of several partitions of a window
    SELECT w.*, m.tensor_key, m.block, m.numel, m.changed, whole_block(m.bits)::BIT AS bits
    FROM masks AS m
    JOIN wanted AS w USING (pair_id)
    WHERE m.criterion = criterion_ AND (w.from_start OR w.consecutive)
        AND m.pair_id IN (SELECT pair_id FROM wanted)
),
touched AS (
    SELECT
        trajectory, tensor_key, block, place_to, step_to, numel, changed, bits,
        bit_or(bits) OVER so_far AS touched_bits,
        count(*) OVER so_far = place_to AS complete
    FROM blocks
    WHERE consecutive
    WINDOW so_far AS (PARTITION BY trajectory, tensor_key, block ORDER BY place_to)
),
ends AS (
    SELECT trajectory, max(place_to) AS place_to FROM trajectory_pairs GROUP BY trajectory
)
SELECT
    t.trajectory, t.tensor_key, t.place_to, t.step_to AS step,
    sum(t.numel)::BIGINT AS numel,
    sum(t.changed)::BIGINT AS moved,                                        -- |I_k|
    sum(bit_count(t.touched_bits))::BIGINT AS touched,                      -- |U_k|
    sum_of_all(f.changed) AS kept,                                          -- |F_k|
    sum_of_all(bit_count(t.touched_bits & f.bits)) AS touched_and_kept,     -- |U_k and F_k|
    sum_of_all(bit_count(t.bits & e.bits)) AS moved_in_final                -- |I_k and F_last|
FROM touched AS t
LEFT JOIN blocks AS f
    ON f.from_start AND f.trajectory = t.trajectory AND f.place_to = t.place_to
    AND f.tensor_key = t.tensor_key AND f.block = t.block
JOIN ends ON ends.trajectory = t.trajectory
LEFT JOIN blocks AS e
    ON e.from_start AND e.trajectory = t.trajectory AND e.place_to = ends.place_to
    AND e.tensor_key = t.tensor_key AND e.block = t.block
GROUP BY t.trajectory, t.tensor_key, t.place_to, t.step_to
HAVING bool_and(t.complete);

-- One row a pair of a trajectory x tensor: its counts, and whether every pair of the trajectory that
-- counts the criterion compared this tensor in this shape. What changes its shape along a run, such
-- as an embedding that gets rows, cannot be followed.
CREATE OR REPLACE TEMP MACRO trajectory_moves(trajectory_, criterion_) AS TABLE
SELECT
    t.*, c.tensor_key, c.numel, c.changed,
    count(*) OVER (PARTITION BY t.trajectory, c.tensor_key)
        = count(DISTINCT t.pair_id) OVER (PARTITION BY t.trajectory) AS in_all
FROM trajectory_pairs AS t
JOIN counts AS c USING (pair_id)
WHERE c.criterion = criterion_
    AND t.trajectory = coalesce((SELECT trajectory_of(nullif(trajectory_, '*'))), t.trajectory);

-- How many weights of a trajectory moved at checkpoint k (the set I_k), were touched up to it (the
-- union U_k of these sets), never, or touched and back; a row a trajectory and checkpoint, summed
-- over the tensors that every pair of the trajectory compared in the same shape, so that all rows are
-- of the same weights: numel_left_out counts the others in the interval. A row is missing where an
-- interval up to it has no masks of the criterion. moved_again = |I_k and U_(k-1)|: what moved at k
-- and had moved before, which the sizes of the unions give: |I_k| - (|U_k| - |U_(k-1)|).
CREATE OR REPLACE TEMP MACRO trajectory_sets(trajectory_, criterion_) AS TABLE
WITH moves AS MATERIALIZED (
    FROM trajectory_moves(trajectory_, criterion_) WHERE consecutive
),
compared AS (
    SELECT
        trajectory, place_to,
        coalesce(sum(numel) FILTER (NOT in_all), 0)::BIGINT AS numel_left_out
    FROM moves
    GROUP BY trajectory, place_to
),
summed AS (
    SELECT
        trajectory, place_to, step,
        sum(numel)::BIGINT AS numel,
        any_value(numel_left_out) AS numel_left_out,
        sum(moved)::BIGINT AS moved,
        sum(touched)::BIGINT AS touched,
        sum_of_all(kept) AS kept,
        sum_of_all(touched_and_kept) AS touched_and_kept,
        sum_of_all(moved_in_final) AS moved_in_final
    FROM trajectory_tensors(trajectory_, criterion_)
    SEMI JOIN (FROM moves WHERE in_all) USING (trajectory, tensor_key, place_to)
    JOIN compared USING (trajectory, place_to)
    GROUP BY trajectory, place_to, step
)
SELECT
    *,
    numel - touched - (kept - touched_and_kept) AS never_touched,
    touched - touched_and_kept AS touched_and_back,
    kept - touched_and_kept AS drifted,
    coalesce(lag(touched) OVER steps_in_order, 0) AS touched_before,
    moved - (touched - coalesce(lag(touched) OVER steps_in_order, 0)) AS moved_again
FROM summed
WINDOW steps_in_order AS (PARTITION BY trajectory ORDER BY place_to);

-- `every` stays as it is: DuckDB 1.x cannot bind the macro with the constants in its place.

-- The overlap of every two runs that keep masks of the criterion and have tensors in common: one
-- row for two runs. What `rlsparse overlap` has counted is taken from there (sample_fraction says
-- if from a sample), the rest from the masks. lift_magnitude covers the tensors with the same base
-- and is NULL if there are none; all_magnitude says whether those are all of them.
CREATE OR REPLACE TEMP MACRO overlap_of_runs(criterion_, every := '*') AS TABLE
WITH sides AS MATERIALIZED (
    FROM overlap_sides(every, every, criterion_)
    WHERE changed_a IS NOT NULL AND changed_b IS NOT NULL
        AND pair_a IN (SELECT pair_id FROM runs) AND pair_b IN (SELECT pair_id FROM runs)
),
stored AS MATERIALIZED (FROM overlap_summary(criterion_)),
missing AS MATERIALIZED (
    SELECT DISTINCT pair_a, pair_b FROM sides ANTI JOIN stored USING (pair_a, pair_b)
),
bits AS (
    SELECT
        pair_a, pair_b, x.tensor_key,
        sum(x.numel)::BIGINT AS numel_seen,
        sum(bit_count(x.bits::BIT & y.bits::BIT))::BIGINT AS shared
    FROM missing
    JOIN (
        FROM masks WHERE criterion = criterion_ AND pair_id IN (SELECT pair_a FROM missing)
    ) AS x ON x.pair_id = pair_a
    JOIN (
        FROM masks WHERE criterion = criterion_ AND pair_id IN (SELECT pair_b FROM missing)
    ) AS y ON y.pair_id = pair_b AND y.tensor_key = x.tensor_key AND y.block = x.block
    GROUP BY pair_a, pair_b, x.tensor_key
),
computed AS (
    SELECT
        s.*,
        CASE WHEN coalesce(b.numel_seen, 0) = s.numel THEN coalesce(b.shared, 0)
            ELSE error('masks of ' || tensor_key || ' lack blocks in ' || pair_a || ' or '
                || pair_b || ': run rlsparse verify')
        END AS shared,
        expected_uniform(changed_a, changed_b, s.numel) AS expected_tensor,
        CASE
            WHEN NOT same_base THEN NULL
            WHEN s.numel = 0 THEN 0
            WHEN e.numel_seen = s.numel THEN e.expected
        END AS expected_magnitude
    FROM sides AS s
    JOIN missing USING (pair_a, pair_b)
    LEFT JOIN bits AS b USING (pair_a, pair_b, tensor_key)
    LEFT JOIN expected_by_strata(every, every, criterion_) AS e USING (pair_a, pair_b, tensor_key)
),
sums AS (
    SELECT
        pair_a, pair_b,
        sum(numel)::BIGINT AS numel,
        sum(changed_a)::BIGINT AS changed_a,
        sum(changed_b)::BIGINT AS changed_b,
        sum(shared)::BIGINT AS shared,
        sum(expected_tensor) AS expected_tensor,
        sum(expected_magnitude) AS expected_magnitude,
        sum(shared) FILTER (expected_magnitude IS NOT NULL) AS shared_magnitude,
        bool_and(expected_magnitude IS NOT NULL) AS all_magnitude
    FROM computed
    GROUP BY pair_a, pair_b
),
every_two AS (
    SELECT
        pair_a, pair_b, numel, changed_a, changed_b, shared,
        shared / nullif(changed_a, 0) AS o1,
        shared / nullif(changed_b, 0) AS o2,
        jaccard(shared, changed_a, changed_b) AS jaccard,
        phi(shared, changed_a, changed_b, numel) AS phi,
        lift(shared, expected_uniform(changed_a, changed_b, numel)) AS lift_uniform,
        lift(shared, expected_tensor) AS lift_tensor,
        lift(shared_magnitude, expected_magnitude) AS lift_magnitude,
        all_magnitude,
        1.0::DOUBLE AS sample_fraction
    FROM sums
    UNION ALL
    SELECT
        pair_a, pair_b, numel, changed_a, changed_b, shared, o1, o2, jaccard, phi,
        lift_uniform, lift_tensor, lift_magnitude, all_magnitude, sample_fraction
    FROM stored
)
SELECT e.*, s.same_base
FROM every_two AS e
JOIN (SELECT pair_a, pair_b, bool_and(same_base) AS same_base FROM sides GROUP BY pair_a, pair_b)
    AS s USING (pair_a, pair_b);
