-- The rows of `overlaps` lie within their bounds, and agree with counts where no block was left out.
--
-- Protects the population tables: shared is at least changed_a + changed_b - numel and at most the
-- smaller of both; a row for every tensor that both pairs compared in the same shape, and no other;
-- a sample has at least two blocks and no full count a standard error.
WITH sides AS (
    SELECT
        o.*,
        a.numel AS numel_of_a, b.numel AS numel_of_b,
        a.changed AS counted_a, b.changed AS counted_b
    FROM pair_overlaps AS o
    LEFT JOIN counts AS a ON a.pair_id = o.pair_a AND a.criterion = o.criterion
        AND a.tensor_key = o.tensor_key
    LEFT JOIN counts AS b ON b.pair_id = o.pair_b AND b.criterion = o.criterion
        AND b.tensor_key = o.tensor_key
),
judged AS (
    SELECT
        CASE
            WHEN counted_a IS NULL OR counted_b IS NULL OR numel_of_a <> numel_of_b
                THEN 'not a tensor that both pairs compared'
            WHEN pair_a >= pair_b THEN 'pair_a is not before pair_b'
            WHEN NOT coalesce(shared BETWEEN greatest(0, changed_a + changed_b - numel)
                AND least(changed_a, changed_b), false)
                THEN 'shared is out of its bounds'
            WHEN NOT coalesce(sample_fraction > 0 AND sample_fraction <= 1, false)
                THEN 'sample_fraction is not within 0 and 1'
            WHEN blocks_total <> ceil(numel_of_a / 65536) OR NOT coalesce(
                blocks = least(blocks_total, greatest(2, ceil(sample_fraction * blocks_total))),
                false)
                THEN 'not the number of blocks that the sample should have'
            WHEN blocks = blocks_total
                AND (numel, changed_a, changed_b) <> (numel_of_a, counted_a, counted_b)
                THEN 'all blocks counted, but not what counts has'
            WHEN changed_a > counted_a OR changed_b > counted_b OR numel > numel_of_a
                THEN 'more in a sample than in all'
            WHEN NOT coalesce(shared_standard_error >= 0, false)
                OR (blocks = blocks_total AND shared_standard_error <> 0)
                THEN 'a standard error that cannot be'
            WHEN abs(expected_tensor * blocks_total / nullif(blocks, 0)
                - expected_uniform(counted_a, counted_b, numel_of_a)) > 1e-9 * (1 + expected_tensor)
                THEN 'expected_tensor contradicts counts'
        END AS problem,
        pair_b AS pair_id, pair_a, criterion, tensor_key, numel, changed_a, changed_b, shared
    FROM sides
),
lost AS (
    SELECT
        'a tensor of two compared pairs has no row' AS problem,
        p.pair_b AS pair_id, p.pair_a, p.criterion, a.tensor_key, a.numel,
        a.changed AS changed_a, b.changed AS changed_b, NULL::BIGINT AS shared
    FROM (SELECT DISTINCT pair_a, pair_b, criterion FROM pair_overlaps) AS p
    JOIN counts AS a ON a.pair_id = p.pair_a AND a.criterion = p.criterion
    JOIN counts AS b ON b.pair_id = p.pair_b AND b.criterion = p.criterion
        AND b.tensor_key = a.tensor_key
    ANTI JOIN pair_overlaps AS o ON o.pair_a = p.pair_a AND o.pair_b = p.pair_b
        AND o.criterion = p.criterion AND o.tensor_key = a.tensor_key
)
FROM judged WHERE problem IS NOT NULL
UNION ALL
FROM lost;
