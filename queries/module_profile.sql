-- Which modules of a family change most, and how alike are its runs in that?
--
-- criterion = exact: the rule that says "changed" (FROM counts shows which exist)
-- family = *: one model family, or * for every one
--
-- One row a module, over all layers. sparsity is weighted by parameters over all runs together; the
-- mean and standard deviation over runs count every run once, and each tuned model is one run: see
-- repeated_runs.
WITH by_run AS (
    SELECT
        r.family, c.kind, c.module, r.pair_id,
        count(*) AS tensors,
        sum(c.numel)::BIGINT AS numel,
        sum(c.changed)::BIGINT AS changed,
        sparsity(sum(c.changed), sum(c.numel)) AS sparsity
    FROM selected_runs(coalesce(getvariable('family'), '*'), '*') AS r
    JOIN tensor_counts AS c USING (pair_id)
    WHERE c.criterion = counted(coalesce(getvariable('criterion'), 'exact'))
    GROUP BY ALL
)
SELECT
    family, kind, module,
    count(*) AS runs,
    sum(tensors)::BIGINT AS tensors,
    sum(numel)::BIGINT AS numel,
    sum(changed)::BIGINT AS changed,
    density(sum(changed), sum(numel)) AS density,
    sparsity(sum(changed), sum(numel)) AS sparsity,
    avg(sparsity) AS mean_sparsity_over_runs_unweighted,
    stddev_samp(sparsity) AS stddev_of_sparsity_over_runs,
    min(sparsity) AS min_sparsity_of_a_run,
    max(sparsity) AS max_sparsity_of_a_run
FROM by_run
GROUP BY family, kind, module
ORDER BY family, kind, module;
