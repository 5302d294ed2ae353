-- How far do the changed parameters of each kind of tensor move, in ULPs of the comparison dtype?
--
-- pair = *: name or id of one pair, or * for every pair
--
-- One row a pair and kind; shares are of the changed parameters, steps are counted without their
-- sign, and share_up is of those with a finite step. not_finite: from or to NaN or Inf.
-- median_step_at_most is the end of the bucket (1, 2, 3-4, 5-8, ...) in which the median falls.
WITH moved AS (
    SELECT
        s.pair_id, t.kind, s.numel, s.ulp_low > 0 AS up,
        least(abs(s.ulp_low::HUGEINT), abs(s.ulp_high::HUGEINT)) AS low,
        greatest(abs(s.ulp_low::HUGEINT), abs(s.ulp_high::HUGEINT)) AS high
    FROM selected_pairs(coalesce(getvariable('pair'), '*'))
    JOIN steps AS s USING (pair_id)
    JOIN tensors AS t ON t.pair_id = s.pair_id AND t.tensor_key = s.tensor_key
    WHERE s.ulp_low IS DISTINCT FROM 0
),
buckets AS (
    SELECT pair_id, kind, high, sum(numel) AS numel
    FROM moved
    WHERE high IS NOT NULL
    GROUP BY pair_id, kind, high
),
medians AS (
    SELECT pair_id, kind, min(high) AS median_step_at_most
    FROM (
        SELECT
            pair_id, kind, high,
            2 * sum(numel) OVER (PARTITION BY pair_id, kind ORDER BY high)
                >= sum(numel) OVER (PARTITION BY pair_id, kind) AS reached
        FROM buckets
    )
    WHERE reached
    GROUP BY pair_id, kind
)
SELECT
    p.name, m.kind,
    sum(m.numel)::BIGINT AS changed,
    coalesce(sum(m.numel) FILTER (low = 1), 0) / nullif(sum(m.numel), 0) AS share_1_ulp,
    coalesce(sum(m.numel) FILTER (low = 2), 0) / nullif(sum(m.numel), 0) AS share_2_ulps,
    coalesce(sum(m.numel) FILTER (low = 3), 0) / nullif(sum(m.numel), 0) AS share_3_to_4_ulps,
    coalesce(sum(m.numel) FILTER (low > 4), 0) / nullif(sum(m.numel), 0) AS share_over_4_ulps,
    coalesce(sum(m.numel) FILTER (low IS NULL), 0) / nullif(sum(m.numel), 0) AS share_not_finite,
    coalesce(sum(m.numel) FILTER (up), 0)
        / nullif(sum(m.numel) FILTER (low IS NOT NULL), 0) AS share_up,
    any_value(median_step_at_most)::DOUBLE AS median_step_at_most,
    p.pair_id
FROM moved AS m
JOIN pairs AS p USING (pair_id)
LEFT JOIN medians USING (pair_id, kind)
GROUP BY p.name, p.pair_id, m.kind
ORDER BY p.name, p.pair_id, m.kind;
