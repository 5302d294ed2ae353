-- The numbers to quote first: how sparse the runs are, and what their overlap is beyond chance.
--
-- criterion = exact: the rule that says "changed"; overlaps need `rlsparse overlap` to have counted
--
-- Means over training runs, or over pairs of them for which every baseline is defined, so that lifts
-- are comparable; those of lifts are geometric, without the pairs_without that share nothing, which
-- makes them larger. A share has pairs_without where chance already gives complete overlap. Each
-- tuned model is one run, in however many pairs it is: see repeated_runs. low to high is a 95 %
-- interval: jackknife standard errors, each run left out with all its pairs, as pairs of runs are
-- not independent, times the t quantile for runs - 1 degrees of freedom, cut where no value can be;
-- null for fewer than three runs. sample_fraction below 1: some overlaps are from a sample of blocks.
--
-- No row: no pair that counts the criterion is a run.
WITH criterion AS MATERIALIZED (
    SELECT counted(coalesce(getvariable('criterion'), 'exact')) AS criterion
),
every_two AS MATERIALIZED (
    SELECT
        o.pair_a, o.pair_b, o.lift_uniform, o.lift_magnitude, o.sample_fraction,
        excess_share(shared, expected_uniform, least(changed_a, changed_b))
            AS excess_share_uniform,
        excess_share(shared, expected_magnitude, least(changed_a, changed_b))
            AS excess_share_magnitude
    FROM overlap_summary((SELECT criterion FROM criterion)) AS o
    WHERE o.all_magnitude
        AND o.pair_a IN (SELECT pair_id FROM training_runs)
        AND o.pair_b IN (SELECT pair_id FROM training_runs)
),
of_runs AS (
    SELECT
        'sparsity' AS measure, 'runs' AS over, pair_id AS a, NULL AS b,
        sparsity(sum(changed), sum(numel)) AS x
    FROM counts
    WHERE criterion = (SELECT criterion FROM criterion)
        AND pair_id IN (SELECT pair_id FROM training_runs)
    GROUP BY pair_id
),
of_pairs AS (
    UNPIVOT (
        SELECT
            pair_a AS a, pair_b AS b,
            if(lift_uniform > 0, ln(lift_uniform), NULL) AS lift_uniform,
            if(lift_magnitude > 0, ln(lift_magnitude), NULL) AS lift_magnitude,
            excess_share_uniform, excess_share_magnitude
        FROM every_two
    )
    ON lift_uniform, lift_magnitude, excess_share_uniform, excess_share_magnitude
    INTO NAME measure VALUE x
),
everything AS MATERIALIZED (
    FROM of_runs WHERE x IS NOT NULL
    UNION ALL BY NAME
    SELECT measure, 'pairs of runs' AS over, a, b, x FROM of_pairs
),
totals AS (
    SELECT measure, over, count(*) AS n, sum(x) AS total FROM everything GROUP BY measure, over
),
left_out AS (
    SELECT measure, run, count(*) AS n, sum(x) AS total
    FROM (
        SELECT measure, a AS run, x FROM everything
        UNION ALL
        SELECT measure, b, x FROM everything WHERE b IS NOT NULL
    )
    GROUP BY measure, run
),
replicates AS (
    SELECT
        measure,
        count(*) AS runs,
        -- null where one run is in every pair, as nothing is left without it
        if(count(*) > 2 AND bool_and(t.n > l.n),
            sqrt((count(*) - 1) * var_pop((t.total - l.total) / nullif(t.n - l.n, 0))), NULL)
            AS standard_error
    FROM left_out AS l
    JOIN totals AS t USING (measure)
    GROUP BY measure
),
t_quantiles AS (
    -- 97.5 % quantiles of Student's t; beyond 30 degrees of freedom they are those of the normal
    -- distribution but for 4 %
    SELECT unnest(range(1, 31)) AS degrees, unnest([
        12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
        2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
        2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423
    ]) AS quantile
),
results AS (
    SELECT
        measure, over, n, r.runs,
        total / n AS x,
        coalesce(t.quantile, 1.96) * standard_error AS half_width
    FROM totals
    JOIN replicates AS r USING (measure)
    LEFT JOIN t_quantiles AS t ON t.degrees = r.runs - 1
)
SELECT
    measure, over, runs, n,
    if(over = 'runs', 0, (SELECT count(*) FROM every_two) - n) AS pairs_without,
    if(starts_with(measure, 'lift'), exp(x), x) AS value,
    CASE
        WHEN starts_with(measure, 'lift') THEN exp(x - half_width)
        WHEN measure = 'sparsity' AND x < half_width THEN 0
        ELSE x - half_width
    END AS low,
    CASE
        WHEN starts_with(measure, 'lift') THEN exp(x + half_width)
        WHEN x + half_width > 1 THEN 1
        ELSE x + half_width
    END AS high,
    if(over = 'runs', NULL, (SELECT min(sample_fraction) FROM every_two)) AS sample_fraction
FROM results
ORDER BY list_position(
    ['sparsity', 'lift_uniform', 'lift_magnitude', 'excess_share_uniform', 'excess_share_magnitude'],
    measure
);
