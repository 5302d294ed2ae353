-- What a pair says of its tensors is what stands in tensors.
--
-- Protects the denominators: a tensor that is lost from both tables of a run shows here.
WITH summed AS (
    SELECT
        pair_id,
        coalesce(sum(numel), 0)::BIGINT AS numel,
        sum(CASE status
            WHEN 'base_only' THEN cells(base_shape)
            WHEN 'partial_rows' THEN cells(base_shape) - numel
            ELSE 0 END)::BIGINT AS numel_base_only,
        sum(CASE status
            WHEN 'tuned_only' THEN cells(tuned_shape)
            WHEN 'partial_rows' THEN cells(tuned_shape) - numel
            ELSE 0 END)::BIGINT AS numel_tuned_only,
        sum(CASE status WHEN 'shape_mismatch' THEN cells(base_shape) ELSE 0 END)::BIGINT
            AS numel_mismatched,
        count(*) FILTER (status IN ('compared', 'identical')) AS tensors_compared,
        count(*) FILTER (status = 'identical') AS tensors_identical,
        count(*) FILTER (status = 'partial_rows') AS tensors_partial,
        count(*) FILTER (status = 'base_only') AS tensors_base_only,
        count(*) FILTER (status = 'tuned_only') AS tensors_tuned_only,
        count(*) FILTER (status = 'shape_mismatch') AS tensors_mismatched,
        count(*) FILTER (status = 'tied') AS tensors_tied
    FROM (SELECT pair_id FROM pairs)
    LEFT JOIN tensors USING (pair_id)
    GROUP BY pair_id
),
said AS (
    UNPIVOT (
        SELECT pair_id, COLUMNS('^(numel|tensors_)')::BIGINT FROM pairs
    ) ON COLUMNS(* EXCLUDE pair_id) INTO NAME of VALUE in_pairs
),
found AS (
    UNPIVOT (FROM summed) ON COLUMNS(* EXCLUDE pair_id) INTO NAME of VALUE in_tensors
)
SELECT
    'pairs.' || of || ' is not what tensors has' AS problem,
    pair_id, of, in_pairs, in_tensors
FROM found
LEFT JOIN said USING (pair_id, of)
WHERE in_pairs IS DISTINCT FROM in_tensors;
