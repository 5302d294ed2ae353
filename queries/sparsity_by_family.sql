-- Sparsity of every model family, algorithm and stage, with its spread over the runs.
--
-- criterion = exact: the rule that says "changed" (FROM counts shows which exist)
--
-- sparsity takes all parameters of all runs together, so large models weigh more; the median counts
-- every run once. sparsity_low to sparsity_high is a 95 % percentile interval of the weighted
-- sparsity: 1,000 times as many runs are drawn with replacement as there are. The draws come from
-- MD5 and are always the same. The interval is NULL for one run, and too narrow for a few. Of a
-- trajectory only the last checkpoint against the first is a run, and each tuned model is one run, in
-- however many pairs it is: see repeated_runs. pairs_not_counted have no counts under the criterion
-- and are in no sum.
WITH sums AS (
    SELECT pair_id, sum(numel)::BIGINT AS numel, sum(changed)::BIGINT AS changed
    FROM counts
    WHERE criterion = counted(coalesce(getvariable('criterion'), 'exact'))
    GROUP BY pair_id
),
numbered AS (
    SELECT
        family, algorithm, stage, s.numel, s.changed,
        sparsity(s.changed, s.numel) AS sparsity,
        dense_rank() OVER (ORDER BY family, algorithm, stage) AS team,
        row_number() OVER (
            PARTITION BY family, algorithm, stage ORDER BY s.numel IS NULL, pair_id
        ) - 1 AS place
    FROM training_runs
    LEFT JOIN sums AS s USING (pair_id)
),
teams AS (
    SELECT
        team, family, algorithm, stage,
        count(*) AS pairs,
        count(numel) AS pairs_counted,
        sum(numel)::BIGINT AS numel,
        sum(changed)::BIGINT AS changed,
        density(sum(changed), sum(numel)) AS density,
        sparsity(sum(changed), sum(numel)) AS sparsity,
        median(sparsity) AS median_sparsity_over_pairs_unweighted,
        stddev_samp(sparsity) AS stddev_of_sparsity_over_pairs,
        min(sparsity) AS min_sparsity_of_a_pair,
        max(sparsity) AS max_sparsity_of_a_pair
    FROM numbered
    GROUP BY team, family, algorithm, stage
),
draws AS (
    SELECT
        team, replicate,
        md5_number_lower(replicate || ' ' || draw) % pairs_counted::UBIGINT AS place
    FROM (
        SELECT team, pairs_counted, unnest(range(pairs_counted)) AS draw
        FROM teams
        WHERE pairs_counted > 1
    )
    CROSS JOIN (SELECT unnest(range(1000)) AS replicate)
),
replicates AS (
    SELECT team, replicate, sparsity(sum(changed), sum(numel)) AS sparsity
    FROM draws
    JOIN numbered USING (team, place)
    GROUP BY team, replicate
),
intervals AS (
    SELECT
        team,
        quantile_cont(sparsity, 0.025) AS sparsity_low,
        quantile_cont(sparsity, 0.975) AS sparsity_high
    FROM replicates
    GROUP BY team
)
SELECT
    family, algorithm, stage, pairs, numel, changed, density, sparsity,
    sparsity_low, sparsity_high,
    median_sparsity_over_pairs_unweighted, stddev_of_sparsity_over_pairs,
    min_sparsity_of_a_pair, max_sparsity_of_a_pair,
    pairs - pairs_counted AS pairs_not_counted
FROM teams
LEFT JOIN intervals USING (team)
ORDER BY family, algorithm, stage;
