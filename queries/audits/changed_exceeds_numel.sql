-- No more parameters changed than there are, and no negative number of either.
--
-- Protects every density and sparsity from leaving 0 to 1.
WITH numbers AS (
    SELECT 'counts' AS in_table, pair_id, tensor_key, criterion, numel, changed FROM counts
    UNION ALL
    SELECT 'masks', pair_id, tensor_key, criterion, numel, changed FROM masks
    UNION ALL
    SELECT 'strata', pair_id, tensor_key, criterion, numel, changed FROM strata
    UNION ALL
    SELECT 'steps', pair_id, tensor_key, NULL, numel, 0 FROM steps
)
SELECT
    'changed is not within 0 and numel' AS problem,
    pair_id, in_table, tensor_key, criterion, numel, changed
FROM numbers
WHERE NOT coalesce(changed BETWEEN 0 AND numel, false);
