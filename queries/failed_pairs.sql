-- Which pairs failed in the last refresh of each corpus, and what does the message say?
--
-- A pair that failed has no row in any other table: what is missing here is missing everywhere.
-- No row: no refresh ran, or nothing failed in the last one.
WITH last AS (
    FROM refreshes
    QUALIFY row_number() OVER (PARTITION BY corpus ORDER BY started_at DESC, refresh DESC) = 1
)
SELECT corpus, started_at, failure.name, failure.message
FROM (SELECT corpus, started_at, unnest(failed) AS failure FROM last)
ORDER BY corpus, failure.name;
