-- All steps of a tensor add up to its numel, and the steps other than 0 to its changed (exact).
--
-- Protects step_sizes, and through it the claim that a change is one ULP or many.
WITH summed AS (
    SELECT
        pair_id, tensor_key,
        sum(numel)::BIGINT AS numel,
        coalesce(sum(numel) FILTER (ulp_low IS DISTINCT FROM 0), 0)::BIGINT AS changed,
        bool_or(coalesce(ulp_low > ulp_high, (ulp_low IS NULL) <> (ulp_high IS NULL)))
            AS upside_down
    FROM steps
    GROUP BY ALL
)
SELECT
    'steps do not add up to counts' AS problem,
    pair_id, tensor_key,
    s.numel AS numel_in_steps, c.numel AS numel_in_counts,
    s.changed AS changed_in_steps, c.changed AS changed_in_counts
FROM summed AS s
LEFT JOIN (FROM counts WHERE criterion = 'exact') AS c USING (pair_id, tensor_key)
WHERE s.numel IS DISTINCT FROM c.numel OR s.changed IS DISTINCT FROM c.changed OR s.upside_down;
