-- How far did the spectrum and the principal directions of the weights move?
--
-- pair = *: name or id of one pair, or * for every pair
--
-- nss = ||s(tuned) - s(base)||_2 / ||s(base)||_2 is at most relative_norm = ||D||_F / ||base||_F, as
-- an update that only rotates changes no singular value. Angles are between the first k singular
-- vectors of base and tuned, in degrees. Where the base has no gap behind its k-th singular value
-- (median_gap near 0), the largest angle is that of a direction which the base does not define: read
-- the mean. Means count every matrix alike.
--
-- No row: nothing was measured yet: `rlsparse spectra` does.
SELECT
    p.name, s.module,
    s.rank_k,
    count(*) AS matrices,
    count(s.nss) AS matrices_with_nss,
    count(s.angles_left) AS matrices_with_angles,
    avg(s.nss) AS nss_unweighted,
    max(s.nss) AS largest_nss,
    avg(s.update_norm / nullif(s.base_norm, 0)) AS relative_norm_unweighted,
    avg(degrees(list_avg(s.angles_left))) AS mean_angle_left_unweighted,
    avg(degrees(list_avg(s.angles_right))) AS mean_angle_right_unweighted,
    max(degrees(list_max(s.angles_left))) AS largest_angle_left,
    max(degrees(list_max(s.angles_right))) AS largest_angle_right,
    median(s.gap) AS median_gap,
    avg(s.inside_left_share) AS inside_left_share_unweighted,
    avg(if(s.inside_left_share IS NULL, NULL, s.k / s.rows)) AS inside_left_share_by_chance,
    avg(s.inside_right_share) AS inside_right_share_unweighted,
    avg(if(s.inside_right_share IS NULL, NULL, s.k / s.columns)) AS inside_right_share_by_chance,
    p.pair_id
FROM selected_pairs(coalesce(getvariable('pair'), '*')) AS p
JOIN spectra_tensors AS s USING (pair_id)
WHERE s.status = 'measured'
GROUP BY p.name, p.pair_id, s.module, s.rank_k
ORDER BY p.name, p.pair_id, nss_unweighted DESC, s.module, s.rank_k;
