-- Which runs have overlaps with runs on the same base that were not counted?
--
-- criterion = exact: the rule that says "changed"; runs that keep no masks of it are left out
--
-- One row a run: with how many of the other runs on its base an overlap is counted, and with how many
-- not, as one of the two was extracted after `rlsparse overlap`. Run it again: it counts those only.
--
-- No row: all are counted, or no two runs have the same base and masks of the criterion.
WITH kept AS (
    FROM runs
    WHERE list_contains(criteria, counted(coalesce(getvariable('criterion'), 'exact')))
),
known AS (
    SELECT DISTINCT pair_a, pair_b FROM pair_overlaps
    WHERE criterion = counted(coalesce(getvariable('criterion'), 'exact'))
)
SELECT
    x.name,
    count(k.pair_a) AS counted,
    count(*) - count(k.pair_a) AS not_counted,
    x.base_source, x.base_revision, x.pair_id
FROM kept AS x
JOIN kept AS y
    ON y.base_source = x.base_source AND y.base_revision IS NOT DISTINCT FROM x.base_revision
    AND y.pair_id <> x.pair_id
LEFT JOIN known AS k
    ON k.pair_a = least(x.pair_id, y.pair_id) AND k.pair_b = greatest(x.pair_id, y.pair_id)
GROUP BY ALL
HAVING count(*) > count(k.pair_a)
ORDER BY x.name, x.pair_id;
