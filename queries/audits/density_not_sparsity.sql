-- What a paper reports as sparsity is a share between 0 and 1, and not the density.
--
-- Protects the tables of reported against measured values: the two words are easily swapped, and a
-- reported value is typed by hand. A paper may have used any of the counted criteria, so the
-- nearest of them counts, for the measured sparsity as for the measured density.
WITH measured AS (
    SELECT
        pair_id, criterion,
        density(sum(changed), sum(numel)) AS density,
        sparsity(sum(changed), sum(numel)) AS sparsity
    FROM counts
    GROUP BY pair_id, criterion
),
nearest AS (
    SELECT
        pair_id, any_value(name) AS name, any_value(reported_sparsity) AS reported_sparsity,
        min(abs(reported_sparsity - sparsity)) AS from_sparsity,
        min(abs(reported_sparsity - density)) AS from_density,
        arg_min(sparsity, abs(reported_sparsity - sparsity)) AS nearest_sparsity,
        arg_min(density, abs(reported_sparsity - density)) AS nearest_density
    FROM pairs
    LEFT JOIN measured USING (pair_id)
    WHERE reported_sparsity IS NOT NULL
    GROUP BY pair_id
)
SELECT
    CASE WHEN reported_sparsity BETWEEN 0 AND 1 THEN 'reported_sparsity looks like the density'
        ELSE 'reported_sparsity is no share from 0 to 1'
    END AS problem,
    pair_id, name, reported_sparsity, nearest_sparsity, nearest_density
FROM nearest
WHERE from_sparsity - from_density > 0.2 OR NOT reported_sparsity BETWEEN 0 AND 1;
