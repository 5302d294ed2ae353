-- Every row of the other tables belongs to a row of tensors that was compared, with its numel.
--
-- Protects the tables by layer, module and kind, which join on tensors: no parameter drops out.
WITH used AS (
    SELECT 'counts' AS in_table, pair_id, tensor_key, numel FROM counts
    UNION
    SELECT 'masks', pair_id, tensor_key, NULL FROM masks
    UNION
    SELECT 'strata', pair_id, tensor_key, NULL FROM strata
    UNION
    SELECT 'margins', pair_id, tensor_key, NULL FROM margins
    UNION
    SELECT 'steps', pair_id, tensor_key, NULL FROM steps
)
SELECT
    'no compared tensor of that key and numel' AS problem,
    u.pair_id, u.in_table, u.tensor_key, u.numel
FROM used AS u
WHERE NOT EXISTS (
    FROM tensors AS t
    WHERE t.pair_id = u.pair_id
        AND t.tensor_key = u.tensor_key
        AND t.numel = coalesce(u.numel, t.numel)
        AND t.status IN ('compared', 'identical', 'partial_rows')
);
