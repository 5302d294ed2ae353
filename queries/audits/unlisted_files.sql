-- The files of a committed pair are those that its row in pairs lists.
--
-- Protects against parts that an earlier run with other slices left behind: the views would read
-- them, and lost ones would not be missed. Files of uncommitted pairs are never read, and are fine.
WITH found AS (
    SELECT
        regexp_extract(file, '.*/([^/]+/pair_id=[^/]+/.*)', 1) AS path,
        regexp_extract(file, '.*/pair_id=([^/]+)/', 1) AS pair_id
    FROM glob(getvariable('store') || '/*/pair_id=*/**/*.parquet')
    WHERE path NOT LIKE 'pairs/%'
),
listed AS (
    SELECT pair_id, unnest(parts).path AS path FROM pairs
)
SELECT
    CASE WHEN l.path IS NULL THEN 'a file that the pair does not list'
        ELSE 'a file that the pair lists is not there' END AS problem,
    coalesce(l.pair_id, f.pair_id) AS pair_id,
    coalesce(l.path, f.path) AS path
FROM listed AS l
FULL JOIN (FROM found WHERE pair_id IN (SELECT pair_id FROM pairs)) AS f USING (path)
WHERE l.path IS NULL OR f.path IS NULL;
