-- Which runs have a tuned model that another run has too, so that both are the same run?
--
-- The same weights under two names, or against two bases. One row a run that does not count, beside
-- counts_as, the one of its tuned model that does: the one whose base is no tuned model of the
-- store, then the one committed first. Statistics over runs and over pairs of them count each tuned
-- model once; queries that list or describe single runs show every one. The overlap of two of one
-- tuned model says nothing about chance.
--
-- No row: every run has a tuned model of its own.
SELECT
    r.name, c.name AS counts_as,
    r.base_source, r.tuned_source, r.tuned_revision, r.pair_id
FROM runs AS r
JOIN training_runs AS c
    ON c.tuned_source = r.tuned_source AND c.tuned_revision IS NOT DISTINCT FROM r.tuned_revision
WHERE c.pair_id <> r.pair_id
ORDER BY counts_as, r.name, r.pair_id;
