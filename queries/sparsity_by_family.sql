-- Sparsity of every model family and training algorithm, weighted by parameters.
--
-- criterion = exact: the rule that says "changed" (FROM counts shows which exist)
--
-- sparsity takes all parameters of all pairs together, so large models weigh more; the spread over
-- the pairs stands beside it, and its median counts every pair once. Of a trajectory only the last
-- checkpoint against the first is counted.
WITH sums AS (
    SELECT pair_id, sum(numel)::BIGINT AS numel, sum(changed)::BIGINT AS changed
    FROM counts
    WHERE criterion = counted(coalesce(getvariable('criterion'), 'exact'))
    GROUP BY pair_id
)
SELECT
    p.family, p.algorithm,
    count(*) AS pairs,
    sum(s.numel)::BIGINT AS numel,
    sum(s.changed)::BIGINT AS changed,
    density(sum(s.changed), sum(s.numel)) AS density,
    sparsity(sum(s.changed), sum(s.numel)) AS sparsity,
    min(sparsity(s.changed, s.numel)) AS min_sparsity_of_a_pair,
    max(sparsity(s.changed, s.numel)) AS max_sparsity_of_a_pair,
    median(sparsity(s.changed, s.numel)) AS median_sparsity_over_pairs_unweighted,
    count(*) FILTER (s.pair_id IS NULL) AS pairs_not_counted
FROM runs AS p
LEFT JOIN sums AS s USING (pair_id)
GROUP BY p.family, p.algorithm
ORDER BY p.family, p.algorithm;
