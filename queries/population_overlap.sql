-- Overlap of every two pairs that `rlsparse overlap` has counted, in total, against chance.
--
-- criterion = exact: the rule that says "changed"
-- pair = *: name or id of a pair whose overlaps with the others are wanted; *: all
--
-- Reads the view pair_overlaps and no mask. sample_fraction below 1: shared, changed_a, changed_b and
-- numel are estimates from a sample of blocks, and standard_error is that of shared. lift = shared /
-- expected; lift_magnitude covers the tensors with the same base, all of them if all_magnitude.
--
-- No row: nothing was counted yet: `rlsparse overlap` does; with --criterion for another criterion,
-- of which masks have to be kept.
SELECT
    x.name AS name_a, y.name AS name_b,
    o.* EXCLUDE (pair_a, pair_b),
    o.pair_a, o.pair_b
FROM overlap_summary(counted(coalesce(getvariable('criterion'), 'exact'))) AS o
JOIN pairs AS x ON x.pair_id = o.pair_a
JOIN pairs AS y ON y.pair_id = o.pair_b
WHERE list_contains([o.pair_a, o.pair_b], coalesce(
    (SELECT pair_id_of(nullif(coalesce(getvariable('pair'), '*'), '*'))), o.pair_a))
ORDER BY name_a, name_b, o.pair_a, o.pair_b;
