-- Sparsity of every run under every counted criterion, one row each, with the reported figure.
--
-- Weighted by parameters. Of a trajectory only the last checkpoint against the first is a run. run
-- is the name, or the pair_id where several runs have that name. tolerance_sweep has the same
-- numbers of every pair, side by side.
WITH summed AS (
    SELECT
        pair_id, criterion,
        sum(numel)::BIGINT AS numel,
        sum(changed)::BIGINT AS changed
    FROM counts
    GROUP BY pair_id, criterion
)
SELECT
    if(count(DISTINCT r.pair_id) OVER (PARTITION BY r.name) > 1, r.pair_id, r.name) AS run,
    r.name, r.family, r.algorithm, r.stage, r.dataset, r.seed,
    s.criterion, s.numel, s.changed,
    density(s.changed, s.numel) AS density,
    sparsity(s.changed, s.numel) AS sparsity,
    r.reported_sparsity,
    r.pair_id
FROM runs AS r
JOIN summed AS s USING (pair_id)
ORDER BY r.family, r.algorithm, r.dataset, r.seed, r.name, r.pair_id,
    s.criterion <> 'exact', s.criterion LIKE 'rel:%', try_cast(split_part(s.criterion, ':', 2) AS DOUBLE);
