-- Do the layer norms stay untouched, and does rounding alone predict it?
--
-- criterion = exact: the rule that says "changed" (FROM counts shows which exist)
-- pair = *: name or id of one pair, or * for every pair
--
-- One row a norm tensor. A weight moves in the comparison dtype only when its update passes half a
-- ULP, and norms sit near 1.0, where a ULP is large: 0.0078 in bf16. half_ulp is taken at the
-- norm's own RMS. update_rms_elsewhere is the RMS of the update over all other tensors of the
-- pair; where elsewhere_in_half_ulps is far below 1, an update of that usual size leaves the norm
-- as it is.
WITH elsewhere AS (
    SELECT pair_id, sqrt(sum(update_l2 * update_l2) / nullif(sum(numel), 0)) AS update_rms
    FROM tensors
    WHERE kind <> 'norm' AND numel > 0
    GROUP BY pair_id
),
norms AS (
    SELECT
        t.*,
        t.base_l2 / nullif(sqrt(t.numel), 0) AS base_rms,
        0.5 * 2.0 ** floor(log2(nullif(t.base_l2, 0) / nullif(sqrt(t.numel), 0))) * CASE
            t.compare_dtype
            WHEN 'F64' THEN 2.0 ** -52
            WHEN 'F32' THEN 2.0 ** -23
            WHEN 'F16' THEN 2.0 ** -10
            WHEN 'BF16' THEN 2.0 ** -7
            WHEN 'F8_E4M3' THEN 2.0 ** -3
            WHEN 'F8_E5M2' THEN 2.0 ** -2
        END AS half_ulp
    FROM tensors AS t
    WHERE t.kind = 'norm' AND t.numel > 0
)
SELECT
    p.name, n.tensor, n.layer, n.compare_dtype, c.numel, c.changed,
    sparsity(c.changed, c.numel) AS sparsity,
    n.base_rms,
    n.half_ulp,
    n.update_max,
    n.update_max / n.half_ulp AS update_max_in_half_ulps,
    e.update_rms AS update_rms_elsewhere,
    e.update_rms / n.half_ulp AS elsewhere_in_half_ulps,
    p.pair_id
FROM selected_pairs(coalesce(getvariable('pair'), '*')) AS p
JOIN norms AS n USING (pair_id)
JOIN counts AS c USING (pair_id, tensor_key)
LEFT JOIN elsewhere AS e USING (pair_id)
WHERE c.criterion = counted(coalesce(getvariable('criterion'), 'exact'))
ORDER BY p.name, p.pair_id, n.layer NULLS LAST, n.tensor;
