-- How far from chance to complete is the overlap of every two runs?
--
-- criterion = exact: the rule that says "changed"; `rlsparse overlap` must have counted it
--
-- excess_share under a baseline = (shared - expected) / (min(changed_a, changed_b) - expected): 0 if
-- the two masks share what chance makes them share, 1 if the smaller one lies in the larger, null if
-- chance expects more than the smaller one has, as margins may of a few busy rows and columns. Unlike
-- a lift, which cannot pass 1 / density, it is comparable between sparse and dense masks.
-- magnitude is the baseline that knows rounding; its share and lift are null unless all tensors
-- that both compared have the same base. differs names what is not the same in the two runs,
-- algorithm, dataset, seed, and then as `unknown seed` each that one of them does not say. study is
-- that of the labels where both runs have the same. Each tuned model is one run, in however many
-- pairs it is: see repeated_runs; population_overlap has every two pairs.
--
-- No row: nothing was counted yet: `rlsparse overlap` does; with --criterion for another criterion,
-- of which masks have to be kept.
WITH totals AS (
    SELECT o.*, least(changed_a, changed_b) AS smaller
    FROM overlap_summary(counted(coalesce(getvariable('criterion'), 'exact'))) AS o
)
SELECT
    x.name AS name_a, y.name AS name_b,
    concat_ws(', ',
        CASE WHEN x.algorithm <> y.algorithm THEN 'algorithm' END,
        CASE WHEN x.dataset <> y.dataset THEN 'dataset' END,
        CASE WHEN x.seed <> y.seed THEN 'seed' END,
        CASE WHEN x.algorithm IS NULL OR y.algorithm IS NULL THEN 'unknown algorithm' END,
        CASE WHEN x.dataset IS NULL OR y.dataset IS NULL THEN 'unknown dataset' END,
        CASE WHEN x.seed IS NULL OR y.seed IS NULL THEN 'unknown seed' END
    ) AS differs,
    CASE WHEN x.labels['study'] = y.labels['study'] THEN x.labels['study'] END AS study,
    x.stage AS stage_a, y.stage AS stage_b,
    o.numel, o.changed_a, o.changed_b, o.shared, o.o1, o.o2,
    o.lift_uniform, o.lift_tensor, o.lift_margins,
    if(o.all_magnitude, o.lift_magnitude, NULL) AS lift_magnitude,
    excess_share(o.shared, o.expected_uniform, o.smaller) AS excess_share_uniform,
    excess_share(o.shared, o.expected_tensor, o.smaller) AS excess_share_tensor,
    excess_share(o.shared, o.expected_margins, o.smaller) AS excess_share_margins,
    if(o.all_magnitude, excess_share(o.shared, o.expected_magnitude, o.smaller), NULL)
        AS excess_share_magnitude,
    o.sample_fraction, o.pair_a, o.pair_b
FROM totals AS o
JOIN training_runs AS x ON x.pair_id = o.pair_a
JOIN training_runs AS y ON y.pair_id = o.pair_b
ORDER BY name_a, name_b, o.pair_a, o.pair_b;
