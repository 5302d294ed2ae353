-- Do later updates of a run fall on parameters that earlier ones touched, and more than by chance?
--
-- criterion = exact: the rule that says "changed"; trajectories need masks of it
-- trajectory = *: name of one trajectory, or * for every trajectory
--
-- One row a trajectory and interval from the second one on. moved: changed between the two
-- neighbouring checkpoints; touched_before: changed in at least one earlier interval; moved_again:
-- in both. temporal_locality = moved_again / moved. By chance it is the density of touched_before
-- (uniform: nothing is known but how many there are; all intervals share the base weights, so
-- bf16 rounding alone lifts it above that). lift = temporal_locality / density of touched_before.
-- numel: of the tensors that every pair of the trajectory compared in the same shape;
-- numel_left_out: what else the interval compared.
--
-- No row: no trajectory has masks of three checkpoints.
SELECT
    trajectory, step, numel, numel_left_out, moved, touched_before, moved_again,
    moved_again / nullif(moved, 0) AS temporal_locality,
    touched_before / nullif(numel, 0) AS density_of_touched_before,
    lift(moved_again, expected_uniform(moved, touched_before, numel)) AS lift_uniform
FROM trajectory_sets(
    coalesce(getvariable('trajectory'), '*'), kept(coalesce(getvariable('criterion'), 'exact'))
)
WHERE place_to > 1
ORDER BY trajectory, step;
