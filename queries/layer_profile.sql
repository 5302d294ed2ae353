-- How does sparsity run through the layers of a family, and how alike are its runs in that?
--
-- criterion = exact: the rule that says "changed" (FROM counts shows which exist)
-- family = *: one model family, or * for every one
--
-- One row a layer of models with the same number of layers. sparsity is weighted by parameters over
-- all runs together; the mean and standard deviation over runs count every run once, and each tuned
-- model is one run: see repeated_runs. relative_depth is 0 for the first layer and 1 for the last;
-- layer is null for what stands outside the layers, and layers then of the deepest tower. tower names
-- the stack of layers in a model that has several, such as `visual` or `encoder`: what stands before
-- the number in the names of its tensors; null for the one stack of a decoder.
WITH towers AS (
    SELECT
        pair_id, layer IS NULL AS outside, tower_of(tensor, layer) AS tower,
        max(layer) + 1 AS layers
    FROM tensors
    GROUP BY ALL
),
depths AS (
    SELECT
        pair_id, outside, tower,
        if(outside, max(layers) OVER (PARTITION BY pair_id), layers) AS layers
    FROM towers
),
by_run AS (
    SELECT
        r.family, c.tower, d.layers, c.layer, r.pair_id,
        sum(c.numel)::BIGINT AS numel,
        sum(c.changed)::BIGINT AS changed,
        sparsity(sum(c.changed), sum(c.numel)) AS sparsity
    FROM selected_runs(coalesce(getvariable('family'), '*'), '*') AS r
    JOIN tensor_counts AS c USING (pair_id)
    JOIN depths AS d ON d.pair_id = r.pair_id
        AND d.outside = (c.layer IS NULL) AND d.tower IS NOT DISTINCT FROM c.tower
    WHERE c.criterion = counted(coalesce(getvariable('criterion'), 'exact'))
    GROUP BY ALL
)
SELECT
    family, tower, layers, layer,
    layer / nullif(layers - 1, 0) AS relative_depth,
    count(*) AS runs,
    sum(numel)::BIGINT AS numel,
    sum(changed)::BIGINT AS changed,
    density(sum(changed), sum(numel)) AS density,
    sparsity(sum(changed), sum(numel)) AS sparsity,
    avg(sparsity) AS mean_sparsity_over_runs_unweighted,
    stddev_samp(sparsity) AS stddev_of_sparsity_over_runs,
    min(sparsity) AS min_sparsity_of_a_run,
    max(sparsity) AS max_sparsity_of_a_run
FROM by_run
GROUP BY family, tower, layers, layer
ORDER BY family, layers, layer IS NULL, tower NULLS FIRST, layer;
