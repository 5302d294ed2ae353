-- The blocks of a mask add up to the numel and changed that `counts` gives for the tensor.
--
-- Protects against lost blocks and against masks and counts of two different runs.
WITH summed AS (
    SELECT pair_id, criterion, tensor_key,
        sum(numel)::BIGINT AS numel, sum(changed)::BIGINT AS changed
    FROM masks
    GROUP BY ALL
)
SELECT
    'masks do not add up to counts' AS problem,
    pair_id, criterion, tensor_key,
    m.numel AS numel_in_masks, c.numel AS numel_in_counts,
    m.changed AS changed_in_masks, c.changed AS changed_in_counts
FROM summed AS m
LEFT JOIN counts AS c USING (pair_id, criterion, tensor_key)
WHERE m.numel IS DISTINCT FROM c.numel OR m.changed IS DISTINCT FROM c.changed;
