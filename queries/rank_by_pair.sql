-- Rank of the update of every pair: are sparse updates of full rank?
--
-- pair = *: name or id of one pair, or * for every pair
-- module = *: one module (mlp.down_proj, ...), or * for every one
--
-- Means are over changed matrices, as a share of the largest rank that there can be; `unweighted`
-- counts every matrix alike, as papers do, `weighted` like its parameters. matrix_rank takes what
-- torch.linalg.matrix_rank takes for a float32 matrix, and so says little by itself: rounding alone
-- gives nearly full rank. Read it beside the stable and the effective rank. `randomised` matrices
-- have no rank and are in no mean of one. `no_row` were never asked for.
--
-- No row: nothing was measured yet: `rlsparse spectra` does.
WITH wanted AS (
    SELECT p.*
    FROM selected_pairs(coalesce(getvariable('pair'), '*')) AS p
    WHERE p.pair_id IN (SELECT pair_id FROM spectra)
),
lacking AS (
    SELECT pair_id, count(*) AS no_row
    FROM tensors AS t
    ANTI JOIN spectra AS s ON s.pair_id = t.pair_id AND s.tensor_key = t.tensor_key
    WHERE t.numel > 0 AND len(t.shape) >= 2
        AND coalesce(getvariable('module'), '*') IN ('*', t.module)
    GROUP BY pair_id
),
sums AS (
    SELECT
        pair_id,
        count(*) FILTER (status = 'measured') AS measured,
        count(*) FILTER (status = 'measured' AND method = 'randomised') AS randomised,
        count(*) FILTER (status = 'unchanged') AS unchanged,
        count(*) FILTER (status IN ('nonfinite', 'not_a_float')
            OR status = 'not_a_matrix' AND tensor_key LIKE '% [%,%]') AS not_measurable,
        sum(numel) FILTER (status = 'measured')::BIGINT AS numel,
        density(sum(changed) FILTER (status = 'measured'), sum(numel) FILTER (status = 'measured'))
            AS density,
        avg(matrix_rank / full_rank) FILTER (status = 'measured')
            AS matrix_rank_share_unweighted,
        weighted_mean(if(status = 'measured', matrix_rank / full_rank, NULL), numel)
            AS matrix_rank_share_weighted,
        min(matrix_rank / full_rank) FILTER (status = 'measured') AS least_matrix_rank_share,
        avg(rank_1e6 / full_rank) FILTER (status = 'measured') AS rank_1e6_share_unweighted,
        avg(effective_rank / full_rank) AS effective_rank_share_unweighted,
        weighted_mean(effective_rank / full_rank, numel) AS effective_rank_share_weighted,
        avg(energy_rank_99 / full_rank) FILTER (status = 'measured')
            AS energy_rank_99_share_unweighted,
        avg(energy_rank_90 / full_rank) FILTER (status = 'measured')
            AS energy_rank_90_share_unweighted,
        avg(stable_rank) AS stable_rank_unweighted,
        median(stable_rank) AS median_stable_rank_unweighted
    FROM selected_spectra(coalesce(getvariable('module'), '*'))
    GROUP BY pair_id
)
SELECT
    w.name, w.algorithm, w.family,
    s.measured, s.randomised, s.unchanged, s.not_measurable,
    coalesce(l.no_row, 0) AS no_row,
    s.numel, s.density,
    s.matrix_rank_share_unweighted, s.matrix_rank_share_weighted, s.least_matrix_rank_share,
    s.rank_1e6_share_unweighted,
    s.effective_rank_share_unweighted, s.effective_rank_share_weighted,
    s.energy_rank_99_share_unweighted, s.energy_rank_90_share_unweighted,
    s.stable_rank_unweighted, s.median_stable_rank_unweighted,
    w.pair_id
FROM wanted AS w
LEFT JOIN sums AS s USING (pair_id)
LEFT JOIN lacking AS l USING (pair_id)
ORDER BY w.family, w.name, w.pair_id;
