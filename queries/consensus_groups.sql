-- Which runs belong together for a consensus: those of one algorithm on one base, three at least?
--
-- Runs that keep exact masks, the smallest group first; each tuned model is one run, see
-- repeated_runs. bits is what a consensus reads: parameters times runs. `rlsparse consensus --where
-- "..."` counts in how many of them each weight changed.
--
-- No row: no algorithm has three runs on one base.
SELECT
    concat_ws(
        ' ', coalesce(any_value(family), 'unnamed'), algorithm,
        'on', regexp_extract(base_source, '[^/]+$'), left(base_revision, 7)
    ) AS name,
    algorithm, base_source, base_revision,
    count(*) AS runs,
    sum(numel)::BIGINT AS bits,
    list(pair_id ORDER BY pair_id) AS members
FROM training_runs
WHERE algorithm IS NOT NULL AND list_contains(criteria, 'exact')
GROUP BY algorithm, base_source, base_revision
HAVING count(*) >= 3
ORDER BY bits, name;
