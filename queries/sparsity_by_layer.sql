-- Sparsity of every layer of a pair, weighted by parameters.
--
-- criterion = exact: the rule that says "changed" (FROM counts shows which exist)
-- pair = *: name or id of one pair, or * for every pair
--
-- layer is null for what stands outside the layers: embeddings, the head, the last norm. tower names
-- the stack of layers in a model that has several, such as `visual` or `encoder`: what stands before
-- the number in the names of its tensors; null for the one stack of a decoder.
SELECT
    p.name, c.tower, c.layer,
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
GROUP BY p.name, p.pair_id, c.tower, c.layer
ORDER BY p.name, p.pair_id, c.layer IS NULL, c.tower NULLS FIRST, c.layer;
