-- Sparsity of every pair (rows) by module kind (columns), weighted by parameters.
--
-- criterion = exact: the rule that says "changed" (FROM counts shows which exist)
--
-- A kind that the model does not have is NULL. `sparsity` is that of the whole pair.
SELECT
    p.name,
    p.algorithm,
    sparsity(sum(c.changed), sum(c.numel)) AS sparsity,
    sparsity(sum(c.changed) FILTER (WHERE t.kind = 'embedding'),
        sum(c.numel) FILTER (WHERE t.kind = 'embedding')) AS sparsity_embedding,
    sparsity(sum(c.changed) FILTER (WHERE t.kind = 'attention'),
        sum(c.numel) FILTER (WHERE t.kind = 'attention')) AS sparsity_attention,
    sparsity(sum(c.changed) FILTER (WHERE t.kind = 'mlp'),
        sum(c.numel) FILTER (WHERE t.kind = 'mlp')) AS sparsity_mlp,
    sparsity(sum(c.changed) FILTER (WHERE t.kind = 'router'),
        sum(c.numel) FILTER (WHERE t.kind = 'router')) AS sparsity_router,
    sparsity(sum(c.changed) FILTER (WHERE t.kind = 'expert'),
        sum(c.numel) FILTER (WHERE t.kind = 'expert')) AS sparsity_expert,
    sparsity(sum(c.changed) FILTER (WHERE t.kind = 'norm'),
        sum(c.numel) FILTER (WHERE t.kind = 'norm')) AS sparsity_norm,
    sparsity(sum(c.changed) FILTER (WHERE t.kind = 'head'),
        sum(c.numel) FILTER (WHERE t.kind = 'head')) AS sparsity_head,
    sparsity(sum(c.changed) FILTER (WHERE t.kind = 'other'),
        sum(c.numel) FILTER (WHERE t.kind = 'other')) AS sparsity_other,
    p.pair_id
FROM counts AS c
JOIN tensors AS t USING (pair_id, tensor_key)
JOIN pairs AS p USING (pair_id)
WHERE c.criterion = counted(coalesce(getvariable('criterion'), 'exact'))
GROUP BY p.name, p.algorithm, p.pair_id
ORDER BY p.name, p.pair_id;
