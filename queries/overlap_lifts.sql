-- Lift of the overlap of every two pairs over each chance baseline, in total.
--
-- criterion = exact: the rule that says "changed"; pairs that keep no masks of it are left out
-- shift = no: yes for lift_shift too, which takes about five times as long
--
-- Two pairs with no tensor of the same name and shape are left out. `note` says for which tensors
-- a baseline is not defined. The strongest baseline that is defined tells what is really shared:
-- for one base that is magnitude.
SELECT
    x.name AS name_a, y.name AS name_b,
    o.* EXCLUDE (pair_a, pair_b),
    o.pair_a, o.pair_b
FROM overlap_lifts(
    '*', '*',
    criterion := counted(coalesce(getvariable('criterion'), 'exact')),
    shift := coalesce(getvariable('shift'), 'no') = 'yes'
) AS o
JOIN pairs AS x ON x.pair_id = o.pair_a
JOIN pairs AS y ON y.pair_id = o.pair_b
ORDER BY name_a, name_b, o.pair_a, o.pair_b;
