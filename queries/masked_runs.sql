-- What did training only some of the weights give, beside training all of them?
--
-- One row a run whose labels say `mask` (subnetwork, random or complement) and `mask_of`, the name or
-- pair_id of the run that trained everything; of several of that name it is the one on the same base,
-- and more than one of those is an error. equal_share_X: parameters with the same value in both tuned
-- models / all, under the criterion X, from the pair of the two (full as base) that is in the store
-- too. leaked is what a subnetwork run changed outside the mask of the full run, and a complement
-- run inside it: 0 if training touched only what it was told to; null for random masks, which are
-- not kept. gain_share = (reward_after - reward_before) / (full's reward_after - reward_before).
--
-- No row: no run has these labels.
WITH masked AS (
    FROM runs WHERE labels['mask'] IS NOT NULL AND labels['mask_of'] IS NOT NULL
),
named AS (
    SELECT m.pair_id, m.name, m.labels['mask_of'] AS mask_of, f.pair_id AS full_id
    FROM masked AS m
    JOIN runs AS f ON m.labels['mask_of'] IN (f.name, f.pair_id)
    QUALIFY rank() OVER (
        PARTITION BY m.pair_id
        ORDER BY f.base_source = m.base_source
            AND f.base_revision IS NOT DISTINCT FROM m.base_revision DESC
    ) = 1
),
fulls AS (
    SELECT
        pair_id,
        CASE WHEN count(*) = 1 THEN any_value(full_id)
            ELSE error('mask_of of ' || any_value(name) || ': run name ' || any_value(mask_of)
                || ' is ambiguous: ids ' || string_agg(full_id, ', ' ORDER BY full_id))
        END AS full_id
    FROM named
    GROUP BY pair_id
),
equal AS (
    SELECT
        p.base_source, p.base_revision, p.tuned_source, p.tuned_revision, c.criterion,
        sparsity(sum(c.changed), sum(c.numel)) AS equal_share
    FROM pairs AS p
    JOIN counts AS c USING (pair_id)
    WHERE c.criterion IN ('exact', 'abs:1e-5', 'abs:1e-4')
    GROUP BY ALL
),
bits AS (
    SELECT
        m.pair_id, m.labels['mask'] AS mask,
        sum(bit_count(x.bits::BIT)) AS changed,
        sum(bit_count(x.bits::BIT & y.bits::BIT)) AS shared
    FROM masked AS m
    JOIN fulls USING (pair_id)
    JOIN masks AS x ON x.pair_id = m.pair_id
    JOIN masks AS y ON y.pair_id = full_id
        AND y.criterion = x.criterion AND y.tensor_key = x.tensor_key AND y.block = x.block
    WHERE x.criterion = 'exact'
    GROUP BY ALL
)
SELECT
    m.name, m.labels['mask'] AS mask, f.name AS name_full,
    m.algorithm, m.dataset, m.seed,
    m.labels['reward_before']::DOUBLE AS reward_before,
    m.labels['reward_after']::DOUBLE AS reward_after,
    f.labels['reward_after']::DOUBLE AS reward_after_full,
    (m.labels['reward_after']::DOUBLE - m.labels['reward_before']::DOUBLE)
        / nullif(f.labels['reward_after']::DOUBLE - f.labels['reward_before']::DOUBLE, 0)
        AS gain_share,
    any_value(e.equal_share) FILTER (WHERE e.criterion = 'exact') AS equal_share_exact,
    any_value(e.equal_share) FILTER (WHERE e.criterion = 'abs:1e-5') AS equal_share_1e5,
    any_value(e.equal_share) FILTER (WHERE e.criterion = 'abs:1e-4') AS equal_share_1e4,
    any_value(CASE b.mask
        WHEN 'subnetwork' THEN b.changed - b.shared
        WHEN 'complement' THEN b.shared
    END)::BIGINT AS leaked,
    m.pair_id
FROM masked AS m
JOIN fulls USING (pair_id)
JOIN runs AS f ON f.pair_id = full_id
LEFT JOIN equal AS e
    ON e.base_source = f.tuned_source AND e.base_revision IS NOT DISTINCT FROM f.tuned_revision
    AND e.tuned_source = m.tuned_source AND e.tuned_revision IS NOT DISTINCT FROM m.tuned_revision
LEFT JOIN bits AS b ON b.pair_id = m.pair_id
GROUP BY ALL
ORDER BY name_full, mask, m.name, m.pair_id;
