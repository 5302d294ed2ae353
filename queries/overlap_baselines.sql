-- Overlap of the masks of two pairs against every chance baseline, with standard errors.
--
-- a: name or id of the first pair
-- b: name or id of the second pair
-- criterion = exact: the rule that says "changed"; both pairs must keep masks of it
-- level = total: total, kind, layer or tensor, or * for all of these
--
-- baseline: what "by chance" is told, from nothing but the density (uniform) to the strata of the
-- base weights (magnitude), the rows and columns (margins) and the texture of B (shift). Tensors
-- that only one of the pairs has are in no row. numel says how much a row covers. lift = shared /
-- expected; standard_error is that of the lift, with blocks as clusters.
SELECT *
FROM overlap_baselines(
    coalesce(getvariable('a'), error('SET VARIABLE a = ''name or id of the first pair''')),
    coalesce(getvariable('b'), error('SET VARIABLE b = ''name or id of the second pair''')),
    criterion := coalesce(getvariable('criterion'), 'exact')
)
WHERE coalesce(getvariable('level'), 'total') IN (level, '*')
ORDER BY
    list_position(['total', 'kind', 'layer', 'tensor'], level),
    try_cast(key AS INTEGER) NULLS LAST, key,
    list_position(['uniform', 'tensor', 'margins', 'shift', 'magnitude'], baseline);
