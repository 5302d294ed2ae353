-- A wider tolerance never has more changed parameters, and no criterion has more than exact.
--
-- Protects the tolerance sweep from criteria that are computed on different values.
WITH numbered AS (
    SELECT
        pair_id, tensor_key, criterion, changed,
        CASE WHEN criterion = 'exact' THEN 'exact' ELSE split_part(criterion, ':', 1) END AS rule,
        CASE WHEN criterion <> 'exact' THEN split_part(criterion, ':', 2)::DOUBLE END AS tolerance
    FROM counts
)
SELECT
    'a wider criterion has more changed parameters' AS problem,
    pair_id, tensor_key,
    narrow.criterion, narrow.changed, wide.criterion AS wider_criterion,
    wide.changed AS wider_changed
FROM numbered AS narrow
JOIN numbered AS wide USING (pair_id, tensor_key)
WHERE wide.changed > narrow.changed
    AND (
        (narrow.rule = 'exact' AND wide.rule <> 'exact')
        OR (narrow.rule = wide.rule AND narrow.tolerance < wide.tolerance)
    );
