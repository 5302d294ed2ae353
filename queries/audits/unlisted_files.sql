-- In the folders of a committed pair there are no files but those that its row in pairs lists.
--
-- Protects who reads the folders with a glob: parts that an earlier run with other slices left
-- behind would count twice. The views open listed files only, and fail if one is gone. Files of
-- uncommitted pairs are fine, and so are spectra, which a pass of their own writes and replaces.
WITH found AS (
    SELECT
        regexp_extract(file, '.*/([^/]+/pair_id=[^/]+/.*)', 1) AS path,
        regexp_extract(file, '.*/pair_id=([^/]+)/', 1) AS pair_id
    FROM glob(getvariable('store') || '/*/pair_id=*/**/*.parquet')
    WHERE path NOT LIKE 'pairs/%'
        AND path <> 'spectra/pair_id=' || pair_id || '/spectra.parquet'
)
SELECT
    'a file that the pair does not list' AS problem,
    pair_id, path
FROM found
WHERE pair_id IN (SELECT pair_id FROM all_pairs)
    AND path NOT IN (SELECT unnest(parts).path FROM all_pairs);
