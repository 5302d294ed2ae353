-- o1 (1 - s1) = o2 (1 - s2), and shared is at least changed_a + changed_b - numel and at most both,
-- and what `overlaps` says if all blocks were counted there.
--
-- Protects the overlaps: o1 and o2 rest on bits and blocks, s1 and s2 on counts. Each pair is held
-- against the next one that keeps the same criterion, so the masks are read twice and not once for
-- every two pairs.
WITH kept AS (
    SELECT pair_id, unnest(criteria) AS criterion FROM pairs
),
neighbours AS (
    SELECT
        criterion, pair_id AS pair_a,
        lead(pair_id) OVER (PARTITION BY criterion ORDER BY pair_id) AS pair_b
    FROM kept
    QUALIFY pair_b IS NOT NULL
),
bits AS (
    SELECT
        pair_a, pair_b, n.criterion, x.tensor_key,
        sum(x.changed)::BIGINT AS bits_a,
        sum(y.changed)::BIGINT AS bits_b,
        sum(CASE WHEN octet_length(x.bits) > 0 AND octet_length(x.bits) = octet_length(y.bits)
            THEN bit_count(x.bits::BIT & y.bits::BIT) ELSE 0 END)::BIGINT AS shared
    FROM neighbours AS n
    JOIN masks AS x ON x.pair_id = n.pair_a AND x.criterion = n.criterion
    JOIN masks AS y ON y.pair_id = n.pair_b AND y.criterion = n.criterion
        AND y.tensor_key = x.tensor_key AND y.block = x.block
    GROUP BY ALL
),
both_sides AS (
    SELECT
        b.*,
        b.shared / nullif(bits_a, 0) * density(p.changed, p.numel) AS o1_density_a,
        b.shared / nullif(bits_b, 0) * density(q.changed, q.numel) AS o2_density_b,
        p.changed AS changed_a, q.changed AS changed_b, p.numel,
        o.shared AS shared_in_overlaps
    FROM bits AS b
    JOIN counts AS p ON p.pair_id = pair_a AND p.tensor_key = b.tensor_key
        AND p.criterion = b.criterion
    JOIN counts AS q ON q.pair_id = pair_b AND q.tensor_key = b.tensor_key
        AND q.criterion = b.criterion
    LEFT JOIN pair_overlaps AS o ON o.pair_a = b.pair_a AND o.pair_b = b.pair_b
        AND o.tensor_key = b.tensor_key AND o.criterion = b.criterion AND o.blocks = o.blocks_total
)
SELECT
    'overlap and sparsity contradict each other' AS problem,
    pair_a AS pair_id, pair_b, criterion, tensor_key, shared, changed_a, changed_b, numel,
    o1_density_a, o2_density_b, shared_in_overlaps
FROM both_sides
WHERE abs(o1_density_a - o2_density_b) > 1e-9 * greatest(o1_density_a, o2_density_b)
    OR shared > least(changed_a, changed_b)
    OR shared < changed_a + changed_b - numel
    OR shared <> shared_in_overlaps;
