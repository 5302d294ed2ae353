-- Row sums and column sums of a mask both add up to its changed, and rows x columns is numel.
--
-- Protects the margins baseline, which divides by these sums.
WITH summed AS (
    SELECT
        pair_id, criterion, tensor_key,
        coalesce(list_sum(changed_per_row), 0) AS sum_of_rows,
        coalesce(list_sum(changed_per_column), 0) AS sum_of_columns,
        len(changed_per_row) * len(changed_per_column) AS cells,
        coalesce(list_max(changed_per_row) > len(changed_per_column), false)
            OR coalesce(list_max(changed_per_column) > len(changed_per_row), false)
            OR coalesce(list_min(changed_per_row) < 0, false)
            OR coalesce(list_min(changed_per_column) < 0, false) AS out_of_range
    FROM margins
)
SELECT
    'margins do not add up to counts' AS problem,
    pair_id, criterion, tensor_key,
    m.sum_of_rows, m.sum_of_columns, c.changed, m.cells, c.numel, m.out_of_range
FROM summed AS m
JOIN tensors AS t USING (pair_id, tensor_key)
LEFT JOIN counts AS c USING (pair_id, criterion, tensor_key)
WHERE len(t.shape) >= 2
    AND (
        m.sum_of_rows IS DISTINCT FROM c.changed
        OR m.sum_of_columns IS DISTINCT FROM c.changed
        OR m.cells IS DISTINCT FROM c.numel
        OR m.out_of_range
    );
