-- What did each run learn, and how many weights did that change?
--
-- margin = 0: a run has learned if its reward rose by more than this
--
-- Runs whose labels say reward_before and reward_after, which is what `rlsparse reproduce` writes.
-- One row a run: sparsity under exact, abs:1e-5 and abs:1e-4, and of the norms alone under exact.
-- Labels are texts; null where a run has none of that name.
--
-- No row: no run has these labels.
WITH sums AS (
    SELECT
        c.pair_id,
        sum(c.numel) FILTER (WHERE c.criterion = 'exact')::BIGINT AS numel,
        sum(c.changed) FILTER (WHERE c.criterion = 'exact')::BIGINT AS changed,
        sum(c.changed) FILTER (WHERE c.criterion = 'abs:1e-5')::BIGINT AS changed_1e5,
        sum(c.changed) FILTER (WHERE c.criterion = 'abs:1e-4')::BIGINT AS changed_1e4,
        sum(c.numel) FILTER (WHERE c.criterion = 'exact' AND t.kind = 'norm')::BIGINT AS norms,
        sum(c.changed) FILTER (WHERE c.criterion = 'exact' AND t.kind = 'norm')::BIGINT
            AS norms_changed
    FROM counts AS c
    JOIN tensors AS t USING (pair_id, tensor_key)
    GROUP BY c.pair_id
)
SELECT
    r.name, r.family, r.algorithm, r.stage, r.dataset, r.seed, r.learning_rate, r.steps,
    r.base_source, r.tuned_source,
    r.labels['study'] AS study,
    r.labels['precision'] AS precision,
    r.labels['reward_before']::DOUBLE AS reward_before,
    r.labels['reward_after']::DOUBLE AS reward_after,
    r.labels['reward_after']::DOUBLE - r.labels['reward_before']::DOUBLE
        > coalesce(getvariable('margin'), '0')::DOUBLE AS learned,
    s.numel, s.changed,
    density(s.changed, s.numel) AS density,
    sparsity(s.changed, s.numel) AS sparsity,
    sparsity(s.changed_1e5, s.numel) AS sparsity_1e5,
    sparsity(s.changed_1e4, s.numel) AS sparsity_1e4,
    sparsity(s.norms_changed, s.norms) AS sparsity_norms,
    r.pair_id
FROM runs AS r
JOIN sums AS s USING (pair_id)
WHERE r.labels['reward_after'] IS NOT NULL
ORDER BY r.name, r.pair_id;
