-- Of each run's parameters, which were never touched, touched and gone back, or kept at its end?
--
-- criterion = exact: the rule that says "changed"; trajectories need masks of it
-- trajectory = *: name of one trajectory, or * for every trajectory
--
-- One row a trajectory that is complete, at its last checkpoint. The three shares are of numel, the
-- parameters of the tensors that every pair of the trajectory compared in the same shape, and add up
-- to 1 (kept includes what drifted in steps below a tolerance); numel_left_out: what else the last
-- interval compared, such as an embedding that got rows on the way. ever_touched:
-- changed between any two neighbouring checkpoints. ever_touched_outside_final_share: those of them
-- not in the mask of the last checkpoint against the first. updates_outside_final_share counts a
-- parameter once for every interval that changed it. mean_temporal_locality: see temporal_locality.
--
-- No row: no trajectory in the store is complete.
WITH sets AS (
    FROM trajectory_sets(
        coalesce(getvariable('trajectory'), '*'),
        kept(coalesce(getvariable('criterion'), 'exact'))
    )
),
over_all AS (
    SELECT
        trajectory,
        sum(moved)::BIGINT AS updates,
        sum(moved - moved_in_final)::BIGINT AS updates_outside_final,
        avg(moved / nullif(numel, 0)) AS mean_consecutive_density,
        avg(moved_again / nullif(moved, 0)) FILTER (place_to > 1) AS mean_temporal_locality
    FROM sets
    GROUP BY trajectory
),
ends AS (
    SELECT trajectory, max(place_to) AS place_to FROM trajectory_pairs GROUP BY trajectory
)
SELECT
    s.trajectory, s.step AS last_step, s.place_to AS intervals, s.numel, s.numel_left_out,
    s.never_touched, s.touched_and_back, s.kept, s.drifted,
    s.never_touched / nullif(s.numel, 0) AS never_touched_share,
    s.touched_and_back / nullif(s.numel, 0) AS touched_and_back_share,
    s.kept / nullif(s.numel, 0) AS kept_share,
    s.touched AS ever_touched,
    s.touched_and_back / nullif(s.touched, 0) AS ever_touched_outside_final_share,
    a.updates_outside_final / nullif(a.updates, 0) AS updates_outside_final_share,
    a.mean_consecutive_density,
    a.mean_temporal_locality
FROM sets AS s
JOIN ends USING (trajectory, place_to)
JOIN over_all AS a USING (trajectory)
ORDER BY s.trajectory;
