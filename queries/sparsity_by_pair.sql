-- Sparsity of every pair under one criterion, weighted by parameters.
--
-- criterion = exact: the rule that says "changed" (FROM counts shows which exist)
--
-- numel_not_compared is outside numel, and so outside the sparsity: parameters that only one side
-- has or whose shapes differ. The unweighted median counts a norm like an MLP matrix.
WITH sums AS (
    SELECT
        pair_id,
        count(*) AS tensors,
        sum(numel)::BIGINT AS numel,
        sum(changed)::BIGINT AS changed,
        median(sparsity(changed, numel)) AS median_sparsity_over_tensors_unweighted
    FROM counts
    WHERE criterion = counted(coalesce(getvariable('criterion'), 'exact'))
    GROUP BY pair_id
)
SELECT
    p.name, p.family, p.algorithm, p.stage,
    coalesce(getvariable('criterion'), 'exact') AS criterion,
    s.tensors, s.numel, s.changed,
    density(s.changed, s.numel) AS density,
    sparsity(s.changed, s.numel) AS sparsity,
    p.reported_sparsity,
    s.median_sparsity_over_tensors_unweighted,
    p.tensors_identical,
    p.tensors_partial,
    p.tensors_base_only + p.tensors_tuned_only + p.tensors_mismatched AS tensors_not_compared,
    p.numel_base_only + p.numel_tuned_only + p.numel_mismatched AS numel_not_compared,
    p.pair_id
FROM pairs AS p
LEFT JOIN sums AS s USING (pair_id)
ORDER BY p.family, p.name, p.pair_id;
