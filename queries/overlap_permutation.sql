-- Is the overlap of runs that share a label larger than that of runs that do not?
--
-- criterion = exact: the rule that says "changed"; pairs that keep no masks of it are left out
-- label = algorithm: what is shared: algorithm, dataset, seed or family
-- measure = lift_magnitude: what of it: lift_magnitude, lift_tensor, lift_uniform, phi or jaccard
--
-- A permutation test. difference = mean of the measure over pairs of runs on one base that share
-- the label, less the mean over those that do not. 999 times the labels change places among the
-- runs of each base, in the order of an MD5, so always in the same way. p_value = (1 + how many of
-- them give at least this difference) / 1000: one-sided. Runs without the label are left out; each
-- tuned model is one run, in however many pairs it is: see repeated_runs. A few runs have few
-- permutations: p_value cannot be below smallest_p_value. NULL where all share it, or none.
WITH labelled AS (
    FROM (
        SELECT
            pair_id, base_source || '@' || coalesce(base_revision, '') AS base,
            CASE coalesce(getvariable('label'), 'algorithm')
                WHEN 'algorithm' THEN algorithm
                WHEN 'dataset' THEN dataset
                WHEN 'seed' THEN seed::VARCHAR
                WHEN 'family' THEN family
                ELSE error('label is algorithm, dataset, seed or family')
            END AS label_value
        FROM training_runs
        WHERE list_contains(criteria, kept(coalesce(getvariable('criterion'), 'exact')))
    )
    WHERE label_value IS NOT NULL
),
compared AS (
    FROM (
        SELECT
            x.base, pair_a, pair_b,
            CASE coalesce(getvariable('measure'), 'lift_magnitude')
                WHEN 'lift_magnitude' THEN lift_magnitude
                WHEN 'lift_tensor' THEN lift_tensor
                WHEN 'lift_uniform' THEN lift_uniform
                WHEN 'phi' THEN phi
                WHEN 'jaccard' THEN jaccard
                ELSE error('measure is lift_magnitude, lift_tensor, lift_uniform, phi or jaccard')
            END AS measured
        FROM overlap_of_runs(coalesce(getvariable('criterion'), 'exact'))
        JOIN labelled AS x ON x.pair_id = pair_a
        JOIN labelled AS y ON y.pair_id = pair_b AND y.base = x.base
        WHERE same_base
    )
    WHERE measured IS NOT NULL
),
places AS (
    SELECT base, pair_id, row_number() OVER (PARTITION BY base ORDER BY pair_id) AS place
    FROM labelled
),
shuffled AS (
    -- permutation 0 is the one that was observed
    SELECT
        permutation, base, label_value,
        row_number() OVER (
            PARTITION BY permutation, base
            ORDER BY if(permutation = 0, '', md5(permutation || ' ' || pair_id)), pair_id
        ) AS place
    FROM labelled, (SELECT unnest(range(1000)) AS permutation)
),
assigned AS MATERIALIZED (
    SELECT permutation, pair_id, label_value FROM shuffled JOIN places USING (base, place)
),
statistics AS (
    SELECT
        x.permutation,
        count(*) FILTER (x.label_value = y.label_value) AS pairs_within,
        count(*) FILTER (x.label_value <> y.label_value) AS pairs_between,
        avg(measured) FILTER (x.label_value = y.label_value) AS mean_within,
        avg(measured) FILTER (x.label_value <> y.label_value) AS mean_between,
        mean_within - mean_between AS difference
    FROM compared
    JOIN assigned AS x ON x.pair_id = pair_a
    JOIN assigned AS y ON y.pair_id = pair_b AND y.permutation = x.permutation
    GROUP BY x.permutation
),
observed AS (
    SELECT
        difference, mean_within, mean_between,
        -- the same partition in another order of summing differs in the last digits
        1e-9 * greatest(abs(mean_within), abs(mean_between)) AS tie
    FROM statistics
    WHERE permutation = 0
)
SELECT
    coalesce(getvariable('label'), 'algorithm') AS label,
    coalesce(getvariable('measure'), 'lift_magnitude') AS measure,
    (SELECT count(*) FROM labelled) AS runs,
    (SELECT count(DISTINCT label_value) FROM labelled) AS labels,
    (SELECT count(DISTINCT base) FROM labelled) AS bases,
    coalesce(max(s.pairs_within) FILTER (permutation = 0), 0) AS pairs_of_runs_within,
    coalesce(max(s.pairs_between) FILTER (permutation = 0), 0) AS pairs_of_runs_between,
    any_value(o.mean_within) AS mean_within,
    any_value(o.mean_between) AS mean_between,
    any_value(o.difference) AS difference,
    (count(*) FILTER (s.difference >= o.difference - tie)) / nullif(count(s.difference), 0)
        AS p_value,
    -- how often the largest difference of all occurs, itself included
    (count(*) FILTER (s.difference >= largest - tie)) / nullif(count(s.difference), 0)
        AS smallest_p_value
FROM statistics AS s, observed AS o, (SELECT max(difference) AS largest FROM statistics);
