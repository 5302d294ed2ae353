-- Density of every run by layer and module: the heat map of where the changes are.
--
-- criterion = exact: the rule that says "changed" (FROM counts shows which exist)
--
-- Weighted by parameters: a cell takes all tensors of that layer and module together, such as a
-- weight and its bias. layer is null for what stands outside the layers. run is the name, or the
-- pair_id where several runs have that name.
SELECT
    if(count(DISTINCT r.pair_id) OVER (PARTITION BY r.name) > 1, r.pair_id, r.name) AS run,
    c.layer, c.module,
    any_value(c.kind) AS kind,
    sum(c.numel)::BIGINT AS numel,
    sum(c.changed)::BIGINT AS changed,
    density(sum(c.changed), sum(c.numel)) AS density,
    r.pair_id
FROM runs AS r
JOIN tensor_counts AS c USING (pair_id)
WHERE c.criterion = counted(coalesce(getvariable('criterion'), 'exact')) AND c.numel > 0
GROUP BY r.name, r.pair_id, c.layer, c.module
ORDER BY r.name, r.pair_id, c.layer NULLS FIRST, numel DESC, c.module;
