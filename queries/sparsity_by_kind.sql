-- Sparsity of embeddings, attention, MLPs, norms and so on, weighted by parameters.
--
-- criterion = exact: the rule that says "changed" (FROM counts shows which exist)
-- pair = *: name or id of one pair, or * for every pair
SELECT
    p.name, c.kind,
    count(*) AS tensors,
    sum(c.numel)::BIGINT AS numel,
    sum(c.changed)::BIGINT AS changed,
    density(sum(c.changed), sum(c.numel)) AS density,
    sparsity(sum(c.changed), sum(c.numel)) AS sparsity,
    median(sparsity(c.changed, c.numel)) AS median_sparsity_over_tensors_unweighted,
    p.pair_id
FROM selected_pairs(coalesce(getvariable('pair'), '*')) AS p
JOIN tensor_counts AS c USING (pair_id)
WHERE c.criterion = counted(coalesce(getvariable('criterion'), 'exact'))
GROUP BY p.name, p.pair_id, c.kind
ORDER BY p.name, p.pair_id, numel DESC, c.kind;
