-- Which runs, and which tensors of a run, have a sparsity far from that of their family?
--
-- criterion = exact: the rule that says "changed" (FROM counts shows which exist)
-- family = *: one model family, or * for every one
-- threshold = 3.5: smallest |robust_z| of an outlier
-- min_runs = 5: fewer runs have no outlier, as their spread is not known
--
-- robust_z = 0.6745 (sparsity - median) / MAD, with the median and the median absolute deviation
-- MAD over the runs of the family (level `run`), or over the same tensor in them (level `tensor`);
-- where MAD is 0, 0.7979 (sparsity - median) / mean absolute deviation. Both factors make it a z of
-- normal data. Every run is listed, tensors only if they are outliers. Each tuned model is one run:
-- see repeated_runs.
WITH found AS (
    SELECT
        grouping(tensor_key) = 0 AS is_tensor,
        r.family, r.name, r.pair_id, c.tensor_key,
        if(grouping(tensor_key) = 0, any_value(c.tensor), NULL) AS tensor,
        sum(c.numel)::BIGINT AS numel,
        sum(c.changed)::BIGINT AS changed,
        sparsity(sum(c.changed), sum(c.numel)) AS sparsity
    FROM selected_runs(coalesce(getvariable('family'), '*'), '*') AS r
    JOIN tensor_counts AS c USING (pair_id)
    WHERE c.criterion = counted(coalesce(getvariable('criterion'), 'exact')) AND c.numel > 0
    GROUP BY GROUPING SETS (
        (r.family, r.name, r.pair_id), (r.family, r.name, r.pair_id, c.tensor_key)
    )
),
middles AS (
    SELECT
        *,
        count(*) OVER kin AS runs,
        median(sparsity) OVER kin AS median_sparsity
    FROM found
    WINDOW kin AS (PARTITION BY is_tensor, family, tensor_key)
),
scored AS (
    SELECT
        *,
        median(abs(sparsity - median_sparsity)) OVER kin AS mad,
        avg(abs(sparsity - median_sparsity)) OVER kin AS mean_deviation,
        (sparsity - median_sparsity) * coalesce(
            0.6744897501960817 / nullif(mad, 0), 0.7978845608028654 / nullif(mean_deviation, 0), 0
        ) AS robust_z
    FROM middles
    WINDOW kin AS (PARTITION BY is_tensor, family, tensor_key)
)
SELECT
    if(is_tensor, 'tensor', 'run') AS level,
    family, name, tensor, numel, changed, sparsity,
    median_sparsity AS median_sparsity_of_family_unweighted,
    runs, robust_z,
    abs(robust_z) >= coalesce(getvariable('threshold'), '3.5')::DOUBLE
        AND runs >= coalesce(getvariable('min_runs'), '5')::INTEGER AS outlier,
    pair_id
FROM scored
WHERE outlier OR NOT is_tensor
ORDER BY is_tensor, outlier DESC, family, abs(robust_z) DESC, name, pair_id, tensor_key;
