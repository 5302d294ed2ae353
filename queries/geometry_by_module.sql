-- Ranks and directions of the updates of every module (q_proj, down_proj, ...) over all layers.
--
-- pair = *: name or id of one pair, or * for every pair
--
-- Over changed matrices. `unweighted` counts every matrix alike; an energy share counts each like
-- ||D||_F^2 of its update D, so that it is the share of the module's whole update. outside: what
-- of it lies outside the first k singular directions of the base on both sides; by chance nearly
-- all of it does, and outside_share_by_chance says how much.
--
-- No row: nothing was measured yet: `rlsparse spectra` does.
SELECT
    p.name, s.module,
    count(*) AS matrices,
    sum(s.numel)::BIGINT AS numel,
    density(sum(s.changed), sum(s.numel)) AS density,
    avg(s.matrix_rank / s.full_rank) AS matrix_rank_share_unweighted,
    avg(s.effective_rank / s.full_rank) AS effective_rank_share_unweighted,
    avg(s.energy_rank_99 / s.full_rank) AS energy_rank_99_share_unweighted,
    avg(s.stable_rank) AS stable_rank_unweighted,
    s.rank_k,
    weighted_mean(s.top_energy_share, s.update_norm ^ 2) AS top_energy_share,
    weighted_mean(s.outside_share, s.update_norm ^ 2) AS outside_share,
    weighted_mean(
        if(s.outside_share IS NULL, NULL, 1 - s.k::DOUBLE ^ 2 / s.numel), s.update_norm ^ 2
    ) AS outside_share_by_chance,
    avg(s.nss) AS nss_unweighted,
    sqrt(sum(s.update_norm ^ 2)) / nullif(sqrt(sum(s.base_norm ^ 2)), 0) AS relative_norm,
    p.pair_id
FROM selected_pairs(coalesce(getvariable('pair'), '*')) AS p
JOIN spectra_tensors AS s USING (pair_id)
WHERE s.status = 'measured'
GROUP BY p.name, p.pair_id, s.module, s.rank_k
ORDER BY p.name, p.pair_id, numel DESC, s.module, s.rank_k;
