-- Every pair of a corpus has one outcome in each of its refreshes, and `ok` says what they say.
--
-- Protects who is told by `refreshes`, and by the exit code of a refresh, that all is well.
WITH outcomes AS (
    SELECT *, list_concat(
        list_transform(added, lambda p: p.name), list_transform(moved, lambda p: p.name),
        list_transform(relabelled, lambda p: p.name), list_transform(failed, lambda p: p.name)
    ) AS names
    FROM refreshes
)
SELECT
    CASE
        WHEN len(names) + unchanged <> pairs THEN 'not one outcome a pair'
        WHEN len(list_distinct(names)) <> len(names) THEN 'a pair with two outcomes'
        WHEN NOT coalesce(ok = (len(failed) + len(findings) = 0), false)
            THEN 'ok contradicts failed and findings'
        WHEN len(added) + len(moved) + len(failed) = 0 AND bytes_read <> 0
            THEN 'weights were read for nothing'
        WHEN NOT coalesce(least(unchanged, bytes_read, overlaps_counted, audits, seconds) >= 0, false)
            THEN 'a negative count'
    END AS problem,
    NULL::VARCHAR AS pair_id, refresh, corpus
FROM outcomes
WHERE problem IS NOT NULL;
