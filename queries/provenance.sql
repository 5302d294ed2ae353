-- Where every pair comes from: models, revisions, dtypes, versions, and when it was committed.
--
-- revision: a commit sha, or a fingerprint of the files of a folder. compare_dtype is null where
-- nothing was declared; then each tensor was compared in the narrower dtype of its two sides.
SELECT
    name, base_source, base_revision, base_dtype, tuned_source, tuned_revision, tuned_dtype,
    compare_dtype, numel, bytes_read, seconds,
    software_version, schema_version, created_at, source, pair_id
FROM pairs
ORDER BY name, pair_id;
