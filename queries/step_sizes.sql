-- How far do the changed parameters move, in ULPs of the comparison dtype?
--
-- pair = *: name or id of one pair, or * for every pair
--
-- One row a pair and bucket of signed steps, from ulp_low to ulp_high; both null: from or to NaN or
-- Inf. share_of_changed is null for step 0, the parameters that did not change.
SELECT
    p.name, s.ulp_low, s.ulp_high,
    sum(s.numel)::BIGINT AS numel,
    CASE WHEN s.ulp_low IS DISTINCT FROM 0 THEN
        sum(s.numel) / nullif(
            sum(sum(s.numel)) FILTER (s.ulp_low IS DISTINCT FROM 0) OVER (PARTITION BY p.pair_id), 0
        )
    END AS share_of_changed,
    p.pair_id
FROM selected_pairs(coalesce(getvariable('pair'), '*')) AS p
JOIN steps AS s USING (pair_id)
GROUP BY p.name, p.pair_id, s.ulp_low, s.ulp_high
ORDER BY p.name, p.pair_id, s.ulp_low NULLS LAST;
