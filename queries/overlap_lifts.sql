-- Lift of the overlap of every two pairs over each chance baseline, in total.
--
-- criterion = exact: the rule that says "changed"; pairs that keep no masks of it are left out
-- shift = no: yes for lift_shift too, which counts every mask six times over
--
-- o1 is the share of a's changes that b made too, o2 the share of b's changes that a made too. Two
-- pairs with no tensor of the same name and shape are left out. `note` says for which tensors a
-- baseline is not defined. A lift above 1 says that what its baseline knows does not explain the
-- overlap alone: rounding for magnitude, busy rows and columns for margins. Read the two beside each
-- other, and neither as proof: where both reasons act, synthetic runs that share nothing keep lifts
-- of 1.57 over magnitude and 2.26 over margins.
SELECT
    x.name AS name_a, y.name AS name_b,
    o.* EXCLUDE (pair_a, pair_b),
    o.pair_a, o.pair_b
FROM overlap_lifts(
    '*', '*',
    criterion := coalesce(getvariable('criterion'), 'exact'),
    shift := coalesce(getvariable('shift'), 'no') = 'yes'
) AS o
JOIN pairs AS x ON x.pair_id = o.pair_a
JOIN pairs AS y ON y.pair_id = o.pair_b
ORDER BY name_a, name_b, o.pair_a, o.pair_b;
