-- Overlap of the masks of two pairs, in total and tensor by tensor, against chance.
--
-- a: name or id of the first pair
-- b: name or id of the second pair
-- criterion = exact: the rule that says "changed"; both pairs must keep masks of it
--
-- level total: all matched tensors together. level tensor: one of them. level unmatched: a tensor
-- that only one of the pairs has in that shape; it is in no sum. o1 = shared / changed_a,
-- o2 = shared / changed_b. expected_uniform knows the two densities only; expected_tensor is the
-- sum of what is expected tensor by tensor. lift = shared / expected.
SELECT
    level, coalesce(tensor, 'TOTAL') AS tensor, layer, module, kind,
    numel, changed_a, changed_b, shared, o1, o2, jaccard, phi,
    expected_uniform, lift_uniform, expected_tensor, lift_tensor,
    same_base, tensors_unmatched, numel_unmatched
FROM overlap_levels(
    coalesce(getvariable('a'), error('SET VARIABLE a = ''name or id of the first pair''')),
    coalesce(getvariable('b'), error('SET VARIABLE b = ''name or id of the second pair''')),
    coalesce(getvariable('criterion'), 'exact')
)
ORDER BY level = 'total' DESC, level, layer NULLS LAST, tensor, numel;
