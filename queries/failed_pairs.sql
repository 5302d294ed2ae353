-- Which pairs failed in the last refresh of each corpus, and what does the message say?
--
-- shown: what the store has of a pair of that name all the same. `nothing`: it is missing from every
-- other table; `an older revision`: what was committed before that refresh is still there; `there
-- now`: it was extracted since.
--
-- No row: no refresh ran, or nothing failed in the last one.
WITH last AS (
    FROM refreshes
    QUALIFY row_number() OVER (PARTITION BY corpus ORDER BY started_at DESC, refresh DESC) = 1
),
failures AS (
    SELECT corpus, started_at, unnest(failed) AS failure FROM last
)
SELECT
    f.corpus, f.started_at, f.failure.name, f.failure.message,
    CASE
        WHEN p.committed IS NULL THEN 'nothing'
        WHEN p.committed < f.started_at THEN 'an older revision'
        ELSE 'there now'
    END AS shown
FROM failures AS f
LEFT JOIN (SELECT name, max(created_at) AS committed FROM pairs GROUP BY name) AS p
    ON p.name = f.failure.name
ORDER BY f.corpus, f.failure.name;
