-- The numbers to quote first: how sparse the runs are, and what their overlap is beyond chance.
--
-- criterion = exact: the rule that says "changed"; overlaps need `rlsparse overlap` to have counted
--
-- Means over runs, or over pairs of runs for which every baseline is defined, so that lifts are
-- comparable; those of lifts are geometric, without the pairs_without that share nothing or have no
-- such value. low to high is 1.96 jackknife standard errors on either side, each run left out with
-- all its pairs, as pairs of runs are not independent; null for fewer than three runs.
WITH criterion AS MATERIALIZED (
    SELECT coalesce(getvariable('criterion'), 'exact') AS criterion
),
every_two AS MATERIALIZED (
    SELECT
        o.pair_a, o.pair_b, o.lift_uniform, o.lift_magnitude,
        (shared - expected_uniform) / nullif(least(changed_a, changed_b) - expected_uniform, 0)
            AS excess_share_uniform,
        (shared - expected_magnitude) / nullif(least(changed_a, changed_b) - expected_magnitude, 0)
            AS excess_share_magnitude
    FROM overlap_summary((SELECT criterion FROM criterion)) AS o
    WHERE o.all_magnitude
        AND o.pair_a IN (SELECT pair_id FROM runs) AND o.pair_b IN (SELECT pair_id FROM runs)
),
of_runs AS (
    SELECT
        'sparsity' AS measure, 'runs' AS over, pair_id AS a, NULL AS b,
        sparsity(sum(changed), sum(numel)) AS x
    FROM counts
    WHERE criterion = (SELECT criterion FROM criterion)
        AND pair_id IN (SELECT pair_id FROM runs)
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
results AS (
    SELECT
        measure, over, n, r.runs,
        total / n AS x,
        1.96 * standard_error AS half_width
    FROM totals
    JOIN replicates AS r USING (measure)
)
SELECT
    measure, over, runs, n,
    if(over = 'runs', 0, (SELECT count(*) FROM every_two) - n) AS pairs_without,
    if(starts_with(measure, 'lift'), exp(x), x) AS value,
    if(starts_with(measure, 'lift'), exp(x - half_width), x - half_width) AS low,
    if(starts_with(measure, 'lift'), exp(x + half_width), x + half_width) AS high
FROM results
ORDER BY list_position(
    ['sparsity', 'lift_uniform', 'lift_magnitude', 'excess_share_uniform', 'excess_share_magnitude'],
    measure
);
