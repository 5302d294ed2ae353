-- Do runs overlap more when they share their algorithm, dataset or seed?
--
-- criterion = exact: the rule that says "changed"; pairs that keep no masks of it are left out
--
-- One row a relation, such as `same base, same algorithm, same dataset, different seed`, with means
-- over all pairs of runs in it, each counting once; each tuned model is one run, in however many
-- pairs it is: see repeated_runs. A label that one of the two lacks is unknown.
-- mean_share_of_changed is the mean of o1 and o2, since which run comes first means nothing. Only
-- lift_magnitude takes out that small weights change more easily in every run; it needs the same
-- base. What `rlsparse overlap` has counted is read from there, from a sample of blocks where
-- smallest_sample_fraction is below 1. overlap_permutation says whether a difference between
-- relations is more than chance.
--
-- No row: no two runs have a tensor in common.
WITH related AS (
    SELECT
        CASE WHEN o.same_base THEN 'same' ELSE 'different' END AS base,
        CASE x.family = y.family WHEN true THEN 'same' WHEN false THEN 'different'
            ELSE 'unknown' END AS family,
        CASE x.algorithm = y.algorithm WHEN true THEN 'same' WHEN false THEN 'different'
            ELSE 'unknown' END AS algorithm,
        CASE x.dataset = y.dataset WHEN true THEN 'same' WHEN false THEN 'different'
            ELSE 'unknown' END AS dataset,
        CASE x.seed = y.seed WHEN true THEN 'same' WHEN false THEN 'different'
            ELSE 'unknown' END AS seed,
        o.* EXCLUDE (same_base)
    FROM overlap_of_runs(coalesce(getvariable('criterion'), 'exact')) AS o
    JOIN training_runs AS x ON x.pair_id = o.pair_a
    JOIN training_runs AS y ON y.pair_id = o.pair_b
)
SELECT
    concat_ws(', ', base || ' base', if(base = 'different', family || ' family', NULL),
        algorithm || ' algorithm', dataset || ' dataset', seed || ' seed') AS relation,
    base, family, algorithm, dataset, seed,
    count(*) AS pairs_of_runs,
    avg((o1 + o2) / 2) AS mean_share_of_changed,
    avg(jaccard) AS mean_jaccard,
    avg(phi) AS mean_phi,
    avg(lift_uniform) AS lift_uniform_mean,
    avg(lift_tensor) AS lift_tensor_mean,
    avg(lift_magnitude) AS lift_magnitude_mean,
    stddev_samp(lift_magnitude) AS lift_magnitude_stddev,
    count(lift_magnitude) AS pairs_of_runs_with_magnitude,
    min(sample_fraction) AS smallest_sample_fraction
FROM related
GROUP BY base, family, algorithm, dataset, seed
ORDER BY base DESC, family DESC, algorithm DESC, dataset DESC, seed DESC;
