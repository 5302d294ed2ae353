-- What each refresh did, the last one first: pairs added, moved on, failed, and what audits found.
--
-- corpus = *: refreshes from this corpus file, as it was called; * for all
--
-- No row: `rlsparse refresh` never ran on this store.
WITH settings AS (
    SELECT coalesce(getvariable('corpus'), '*') AS corpus
)
SELECT
    refresh, r.corpus, started_at,
    pairs,
    len(added) AS added,
    len(moved) AS moved,
    len(relabelled) AS relabelled,
    unchanged,
    len(failed) AS failed,
    bytes_read, seconds, overlaps_counted,
    audits,                                             -- 0: the store was as it had been audited
    len(findings) AS findings,
    ok,
    list_transform(failed, lambda f: f.name) AS failed_pairs
FROM refreshes AS r, settings
WHERE settings.corpus IN ('*', r.corpus)
ORDER BY started_at DESC, refresh DESC;
