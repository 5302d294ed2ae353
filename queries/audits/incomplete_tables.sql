-- Every compared tensor has all its rows: counts of every counted criterion, and masks, strata and
-- margins of every kept one, and steps.
--
-- Protects against a part that was never written: its tensors would leave the sums in silence.
WITH compared AS (
    SELECT
        t.pair_id, t.tensor_key, t.numel,
        t.compare_dtype LIKE 'F%' OR t.compare_dtype = 'BF16' AS is_float,
        len(t.shape) >= 2 AS has_rows,
        p.criteria, p.counted_criteria
    FROM tensors AS t
    JOIN pairs AS p USING (pair_id)
    WHERE t.status IN ('compared', 'identical', 'partial_rows')
),
wanted AS (
    SELECT 'counts' AS in_table, pair_id, tensor_key, unnest(counted_criteria) AS criterion
    FROM compared
    UNION ALL
    SELECT 'masks', pair_id, tensor_key, unnest(criteria) FROM compared WHERE numel > 0
    UNION ALL
    SELECT 'strata', pair_id, tensor_key, unnest(criteria) FROM compared
    WHERE numel > 0 AND is_float
    UNION ALL
    SELECT 'margins', pair_id, tensor_key, unnest(criteria) FROM compared
    WHERE numel > 0 AND has_rows
    UNION ALL
    SELECT 'steps', pair_id, tensor_key, NULL FROM compared WHERE numel > 0 AND is_float
),
found AS (
    SELECT 'counts' AS in_table, pair_id, tensor_key, criterion FROM counts
    UNION
    SELECT 'masks', pair_id, tensor_key, criterion FROM masks
    UNION
    SELECT 'strata', pair_id, tensor_key, criterion FROM strata
    UNION
    SELECT 'margins', pair_id, tensor_key, criterion FROM margins
    UNION
    SELECT 'steps', pair_id, tensor_key, NULL FROM steps
)
SELECT
    'a compared tensor has no rows' AS problem,
    w.pair_id, w.in_table, w.tensor_key, w.criterion
FROM wanted AS w
WHERE NOT EXISTS (
    FROM found AS f
    WHERE f.in_table = w.in_table
        AND f.pair_id = w.pair_id
        AND f.tensor_key = w.tensor_key
        AND f.criterion IS NOT DISTINCT FROM w.criterion
);
