-- Which pairs are perhaps no pairs: another base, another revision, or twice the same weights?
--
-- threshold = 0.75: lineage_score below which a pair is suspect
--
-- lineage_score is the mean cosine between base and tuned in a few sampled matrices: above 0.97 for
-- any training that was measured, from RL to 150 steps of pretraining, and below 0.05 for models
-- that were trained apart. It is unknown where nothing could be sampled: adapters, and weights
-- stored with scales. relative_distance is ||tuned - base|| / ||base|| over every compared matrix
-- outside the norms: below 0.1 for usual fine-tuning, about 1.4 for unrelated models. An earlier
-- checkpoint of the right base is not found in this way. No row: every pair was sampled, and all
-- look like pairs.
WITH distances AS (
    SELECT
        pair_id,
        sqrt(sum(update_l2 * update_l2)) / nullif(sqrt(sum(base_l2 * base_l2)), 0)
            AS relative_distance
    FROM tensors
    WHERE kind <> 'norm' AND numel > 0 AND len(shape) >= 2
    GROUP BY pair_id
),
judged AS (
    SELECT
        *,
        CASE
            WHEN tensors_compared > 0 AND tensors_identical = tensors_compared
                AND tensors_partial = 0 THEN 'same weights'
            WHEN lineage_score < coalesce(getvariable('threshold'), '0.75')::DOUBLE
                THEN 'unrelated'
            WHEN lineage_score IS NULL THEN 'unknown'
        END AS suspicion
    FROM pairs
)
SELECT
    j.name, j.suspicion, j.lineage_score, d.relative_distance,
    j.tensors_compared, j.tensors_identical,
    j.base_source, j.base_revision, j.tuned_source, j.tuned_revision, j.pair_id
FROM judged AS j
LEFT JOIN distances AS d USING (pair_id)
WHERE j.suspicion IS NOT NULL
ORDER BY j.suspicion = 'unknown', j.lineage_score NULLS LAST, j.name, j.pair_id;
