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
-- is 0 under exact. These need masks of the criterion for every interval and are null without.
--
-- No row: no trajectory is in the store: list checkpoints under `trajectories:` of the corpus.
WITH moves AS (
    SELECT
        t.trajectory, t.step_to, t.from_start, t.consecutive, t.span,
        sum(c.numel)::BIGINT AS numel,
        sum(c.changed)::BIGINT AS changed
    FROM trajectory_pairs AS t
    JOIN counts AS c USING (pair_id)
    WHERE c.criterion = counted(coalesce(getvariable('criterion'), 'exact'))
        AND t.trajectory = coalesce((
            SELECT trajectory_of(nullif(coalesce(getvariable('trajectory'), '*'), '*'))
        ), t.trajectory)
    GROUP BY ALL
),
spans AS (
    SELECT DISTINCT trajectory, span FROM moves WHERE NOT from_start OR consecutive
),
checkpoints AS (
    SELECT
        trajectory, step_to AS step,
        any_value(numel) AS numel,
        any_value(changed) FILTER (from_start) AS changed_from_start,
        sparsity(any_value(changed) FILTER (from_start), any_value(numel) FILTER (from_start))
            AS sparsity_from_start,
        any_value(changed) FILTER (consecutive) AS changed_consecutive,
        sparsity(any_value(changed) FILTER (consecutive), any_value(numel) FILTER (consecutive))
            AS sparsity_consecutive,
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
