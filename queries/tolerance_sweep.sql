-- Sparsity of every pair under every counted criterion, weighted by parameters.
--
-- pair = *: name or id of one pair, or * for every pair
--
-- A published figure means little without its tolerance: exact and abs:1e-5 differ by up to 30
-- points on one pair. Criteria other than the usual eight are in sparsity_other.
WITH swept AS (
    SELECT
        pair_id, criterion,
        sum(numel)::BIGINT AS numel,
        sparsity(sum(changed), sum(numel)) AS sparsity
    FROM counts
    WHERE pair_id IN (
        SELECT pair_id FROM selected_pairs(coalesce(getvariable('pair'), '*'))
    )
    GROUP BY pair_id, criterion
)
SELECT
    any_value(name) AS name,
    any_value(family) AS family,
    any_value(algorithm) AS algorithm,
    any_value(s.numel) AS numel,
    any_value(sparsity) FILTER (criterion = 'exact') AS sparsity_exact,
    any_value(sparsity) FILTER (criterion = 'abs:1e-8') AS sparsity_abs_1e_8,
    any_value(sparsity) FILTER (criterion = 'abs:1e-7') AS sparsity_abs_1e_7,
    any_value(sparsity) FILTER (criterion = 'abs:1e-6') AS sparsity_abs_1e_6,
    any_value(sparsity) FILTER (criterion = 'abs:1e-5') AS sparsity_abs_1e_5,
    any_value(sparsity) FILTER (criterion = 'abs:1e-4') AS sparsity_abs_1e_4,
    any_value(sparsity) FILTER (criterion = 'abs:1e-3') AS sparsity_abs_1e_3,
    any_value(sparsity) FILTER (criterion = 'rel:1e-3') AS sparsity_rel_1e_3,
    any_value(reported_sparsity) AS reported_sparsity,
    map_from_entries(list((criterion, sparsity) ORDER BY criterion) FILTER (
        criterion NOT IN (
            'exact', 'abs:1e-8', 'abs:1e-7', 'abs:1e-6',
            'abs:1e-5', 'abs:1e-4', 'abs:1e-3', 'rel:1e-3'
        )
    )) AS sparsity_other,
    pair_id
FROM pairs
JOIN swept AS s USING (pair_id)
GROUP BY pair_id
ORDER BY family, name, pair_id;
