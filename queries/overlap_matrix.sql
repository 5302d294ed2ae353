-- Overlap of every two pairs in the store, in total, against chance.
--
-- criterion = exact: the rule that says "changed"; pairs that keep no masks of it are left out
--
-- o1 is the share of a's changes that b made too, o2 the share of b's changes that a made too.
-- Two pairs with no tensor of the same name and shape are left out. What only one of two pairs has
-- is in no sum; tensors_unmatched and numel_unmatched say how much that is.
SELECT
    x.name AS name_a, y.name AS name_b,
    o.* EXCLUDE (pair_a, pair_b),
    o.pair_a, o.pair_b
FROM overlap_total('*', '*', criterion := coalesce(getvariable('criterion'), 'exact')) AS o
JOIN pairs AS x ON x.pair_id = o.pair_a
JOIN pairs AS y ON y.pair_id = o.pair_b
WHERE o.tensors > 0
ORDER BY name_a, name_b, o.pair_a, o.pair_b;
