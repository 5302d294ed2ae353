-- No key stands twice in a table.
--
-- Protects every sum and every join from counting a parameter two times.
WITH keys AS (
    SELECT 'pairs' AS in_table, pair_id, NULL AS tensor_key, NULL AS detail FROM all_pairs
    UNION ALL
    SELECT 'tensors', pair_id, tensor, concat_ws(' ', status, tensor_key) FROM tensors
    UNION ALL
    SELECT 'tensors compared', pair_id, tensor_key, NULL FROM tensors WHERE numel > 0
    UNION ALL
    SELECT 'counts', pair_id, tensor_key, criterion FROM counts
    UNION ALL
    SELECT 'masks', pair_id, tensor_key, criterion || ' block ' || block FROM masks
    UNION ALL
    SELECT 'strata', pair_id, tensor_key, criterion || ' exponent ' || exponent FROM strata
    UNION ALL
    SELECT 'margins', pair_id, tensor_key, criterion FROM margins
    UNION ALL
    SELECT 'steps', pair_id, tensor_key, 'from ' || coalesce(ulp_low::VARCHAR, 'null') FROM steps
    UNION ALL
    SELECT 'overlaps', pair_b, tensor_key, criterion || ' with ' || pair_a FROM pair_overlaps
    UNION ALL
    SELECT 'spectra', pair_id, tensor_key, 'matrix ' || matrix FROM spectra
)
SELECT
    'a key stands more than once' AS problem,
    pair_id, in_table, tensor_key, detail, count(*) AS times
FROM keys
GROUP BY ALL
HAVING count(*) > 1;
