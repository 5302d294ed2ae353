-- How do the weights of one run change from checkpoint to checkpoint, and which change back?
--
-- criterion = exact: the rule that says "changed" (FROM counts shows which exist)
-- trajectory = *: name of one trajectory, or * for every trajectory
--
-- One row a trajectory and checkpoint after the first. from_start: against the first checkpoint.
-- consecutive: against the one before it, so per-interval and not per-run sparsity; never mix the
-- two. sparsity_by_span: against the checkpoint so many places before it, for the spans that the
-- corpus asks for. Of all parameters up to this checkpoint: never_touched in any interval;
-- touched_and_back, which an interval changed and which now equal the start; kept, which differ
-- from the start. kept includes drifted, what no single interval changed beyond the tolerance; it
-- is 0 under exact. These need masks of the criterion for every interval and are null without. All
-- of a trajectory is over the same numel parameters, those of the tensors that each of its pairs
-- compared in the same shape; numel_left_out: what else a pair of this checkpoint compared, at most.
--
-- No row: no trajectory is in the store: list checkpoints under `trajectories:` of the corpus.
WITH moves AS (
    SELECT
        trajectory, step_to, from_start, consecutive, span,
        coalesce(sum(numel) FILTER (in_all), 0)::BIGINT AS numel,
        coalesce(sum(numel) FILTER (NOT in_all), 0)::BIGINT AS numel_left_out,
        coalesce(sum(changed) FILTER (in_all), 0)::BIGINT AS changed
    FROM trajectory_moves(
        coalesce(getvariable('trajectory'), '*'),
        counted(coalesce(getvariable('criterion'), 'exact'))
    )
    GROUP BY ALL
),
spans AS (
    SELECT DISTINCT trajectory, span FROM moves WHERE NOT from_start OR consecutive
),
checkpoints AS (
    SELECT
        trajectory, step_to AS step,
        any_value(numel) AS numel,  -- that of every pair
        max(numel_left_out) AS numel_left_out,
        any_value(changed) FILTER (from_start) AS changed_from_start,
        sparsity(any_value(changed) FILTER (from_start), any_value(numel)) AS sparsity_from_start,
        any_value(changed) FILTER (consecutive) AS changed_consecutive,
        sparsity(any_value(changed) FILTER (consecutive), any_value(numel)) AS sparsity_consecutive,
        map_from_entries(
            list((span, sparsity(changed, numel)) ORDER BY span) FILTER (spans.span IS NOT NULL)
        ) AS sparsity_by_span
    FROM moves
    LEFT JOIN spans USING (trajectory, span)
    GROUP BY trajectory, step_to
)
SELECT
    c.*,
    s.never_touched, s.touched_and_back, s.kept, s.drifted,
    s.never_touched / nullif(s.numel, 0) AS never_touched_share,
    s.touched_and_back / nullif(s.numel, 0) AS touched_and_back_share,
    s.kept / nullif(s.numel, 0) AS kept_share
FROM checkpoints AS c
LEFT JOIN trajectory_sets(
    coalesce(getvariable('trajectory'), '*'), coalesce(getvariable('criterion'), 'exact')
) AS s USING (trajectory, step)
ORDER BY c.trajectory, c.step;
