-- The strata of a tensor add up to its counts.
--
-- Protects the magnitude baseline: a lost stratum would lower what is expected by chance.
WITH summed AS (
    SELECT pair_id, criterion, tensor_key,
        sum(numel)::BIGINT AS numel, sum(changed)::BIGINT AS changed
    FROM strata
    GROUP BY ALL
)
SELECT
    'strata do not add up to counts' AS problem,
    pair_id, criterion, tensor_key,
    s.numel AS numel_in_strata, c.numel AS numel_in_counts,
    s.changed AS changed_in_strata, c.changed AS changed_in_counts
FROM summed AS s
LEFT JOIN counts AS c USING (pair_id, criterion, tensor_key)
WHERE s.numel IS DISTINCT FROM c.numel OR s.changed IS DISTINCT FROM c.changed;
