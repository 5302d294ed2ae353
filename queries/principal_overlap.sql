-- Do updates avoid the principal weights of the base and seek its small ones, beyond chance?
--
-- pair = *: name or id of one pair, or * for every pair
-- module = *: one module (mlp.down_proj, ...), or * for every one
--
-- A mask holds the share alpha of each matrix: `principal` the largest |entries| of its rank-k SVD,
-- `low_magnitude` its smallest |entries|. share_of_update = shared / changed has the chance
-- size / numel; share_of_mask = shared / size, which some papers print, has the density. Both have
-- the same lift. expected_magnitude knows how often weights of each binary exponent change: small
-- weights have small rounding steps and change more often, whatever the update. Where lift_uniform
-- is far from 1 and lift_magnitude is not, bf16 rounding explains the overlap.
--
-- No row: nothing was measured yet: `rlsparse spectra` does.
SELECT
    p.name,
    o.kind AS mask, o.alpha,
    s.rank_k,
    count(*) AS matrices,
    sum(s.numel)::BIGINT AS numel,
    sum(s.changed)::BIGINT AS changed,
    sum(o.size)::BIGINT AS size,
    sum(o.shared)::BIGINT AS shared,
    sum(o.shared) / nullif(sum(s.changed), 0) AS share_of_update,
    sum(o.size) / nullif(sum(s.numel), 0) AS size_share,
    sum(o.shared) / nullif(sum(o.size), 0) AS share_of_mask,
    density(sum(s.changed), sum(s.numel)) AS density,
    sum(o.expected_uniform) AS expected_uniform,
    lift(sum(o.shared), sum(o.expected_uniform)) AS lift_uniform,
    sum(o.expected_magnitude) AS expected_magnitude,
    lift(sum(o.shared), sum(o.expected_magnitude)) AS lift_magnitude,
    p.pair_id
FROM selected_pairs(coalesce(getvariable('pair'), '*')) AS p
JOIN (
    SELECT pair_id, rank_k, numel, changed, unnest(mask_overlaps) AS o
    FROM selected_spectra(coalesce(getvariable('module'), '*'))
    WHERE status = 'measured'
) AS s USING (pair_id)
GROUP BY p.name, p.pair_id, o.kind, o.alpha, s.rank_k
ORDER BY p.name, p.pair_id, o.kind DESC, o.alpha, s.rank_k;
