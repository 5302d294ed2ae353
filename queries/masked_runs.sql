-- What did training only some of the weights give, beside training all of them?
--
-- One row a run whose labels say `mask` (subnetwork, random or complement) and `mask_of`, the name of
-- the run that trained everything. equal_share_X: parameters with the same value in both tuned
-- models / all, under the criterion X, from the pair of the two (full as base) that is in the store
-- too. leaked is what a subnetwork run changed outside the mask of the full run, and a complement
-- run inside it: 0 if training touched only what it was told to; null for random masks, which are
-- not kept. gain_share = (reward_after - reward_before) / (full's reward_after - reward_before).
--
-- No row: no run has these labels.
WITH masked AS (
    FROM runs WHERE labels['mask'] IS NOT NULL AND labels['mask_of'] IS NOT NULL
),
equal AS (
    SELECT
        p.base_source, p.tuned_source, c.criterion,
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
    JOIN runs AS f ON f.name = m.labels['mask_of']
    JOIN masks AS x ON x.pair_id = m.pair_id
    JOIN masks AS y ON y.pair_id = f.pair_id
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
JOIN runs AS f ON f.name = m.labels['mask_of']
LEFT JOIN equal AS e ON e.base_source = f.tuned_source AND e.tuned_source = m.tuned_source
LEFT JOIN bits AS b ON b.pair_id = m.pair_id
GROUP BY ALL
ORDER BY name_full, mask, m.name, m.pair_id;
