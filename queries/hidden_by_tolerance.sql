-- Which share of the exact changes does a tolerance hide, in each pair and kind of tensor?
--
-- tolerance = abs:1e-5: the criterion to hold against exact (FROM counts shows which exist)
-- pair = *: name or id of one pair, or * for every pair
--
-- hidden = changed_exact - changed_visible. Density is changed / all, sparsity 1 - density;
-- sparsity_gained is what the tolerance alone adds to the sparsity of the same weights. Pairs that
-- do not count the tolerance are left out. level total: all kinds together.
WITH changes AS (
    SELECT
        pair_id, kind, numel,
        changed AS changed_exact,
        sum(changed) FILTER (criterion <> 'exact')
            OVER (PARTITION BY pair_id, tensor_key) AS changed_visible,
        criterion
    FROM tensor_counts
    WHERE criterion IN ('exact', counted(coalesce(getvariable('tolerance'), 'abs:1e-5')))
),
sums AS (
    SELECT
        pair_id,
        CASE WHEN grouping(kind) = 1 THEN 'total' ELSE 'kind' END AS level,
        kind,
        sum(numel)::BIGINT AS numel,
        sum(changed_exact)::BIGINT AS changed_exact,
        sum(changed_visible)::BIGINT AS changed_visible
    FROM changes
    WHERE criterion = 'exact' AND changed_visible IS NOT NULL
    GROUP BY GROUPING SETS ((pair_id), (pair_id, kind))
)
SELECT
    p.name, s.level, s.kind, s.numel, s.changed_exact, s.changed_visible,
    s.changed_exact - s.changed_visible AS hidden,
    (s.changed_exact - s.changed_visible) / nullif(s.changed_exact, 0) AS hidden_share,
    density(s.changed_exact, s.numel) AS density_exact,
    density(s.changed_visible, s.numel) AS density_visible,
    sparsity(s.changed_exact, s.numel) AS sparsity_exact,
    sparsity(s.changed_visible, s.numel) AS sparsity_visible,
    sparsity(s.changed_visible, s.numel) - sparsity(s.changed_exact, s.numel) AS sparsity_gained,
    p.pair_id
FROM selected_pairs(coalesce(getvariable('pair'), '*')) AS p
JOIN sums AS s USING (pair_id)
ORDER BY p.name, p.pair_id, s.level = 'total' DESC, s.kind;
