-- Overlap of every two runs of one family as papers print it, and beside it what rounding explains.
--
-- criterion = exact: the rule that says "changed"; runs that keep no masks of it are left out
--
-- o1 = shared / changed_a, o2 = shared / changed_b. sparsity_a and sparsity_b are over the tensors
-- that both compared. Papers give as chance o1_by_chance_share = density of b and
-- o2_by_chance_share = density of a, which knows only how many parameters changed: lift_uniform =
-- o1 / o1_by_chance_share. lift_magnitude is against two independent runs that round the same base
-- weights; it covers the tensors with the same base and is null if there are none. differs names
-- what is not the same in the two runs: base, stage, algorithm, dataset, seed. Intermediate
-- checkpoints of a trajectory are no runs. What `rlsparse overlap` has counted is read from there,
-- from a sample of blocks where sample_fraction is below 1.
SELECT
    x.family,
    x.name AS name_a, y.name AS name_b,
    concat_ws(', ',
        CASE WHEN x.base_source IS DISTINCT FROM y.base_source
            OR x.base_revision IS DISTINCT FROM y.base_revision THEN 'base' END,
        CASE WHEN x.stage IS DISTINCT FROM y.stage THEN 'stage' END,
        CASE WHEN x.algorithm IS DISTINCT FROM y.algorithm THEN 'algorithm' END,
        CASE WHEN x.dataset IS DISTINCT FROM y.dataset THEN 'dataset' END,
        CASE WHEN x.seed IS DISTINCT FROM y.seed THEN 'seed' END
    ) AS differs,
    sparsity(o.changed_a, o.numel) AS sparsity_a,
    sparsity(o.changed_b, o.numel) AS sparsity_b,
    o.o1, density(o.changed_b, o.numel) AS o1_by_chance_share,
    o.o2, density(o.changed_a, o.numel) AS o2_by_chance_share,
    o.lift_uniform, o.lift_tensor, o.lift_magnitude,
    o.numel, o.shared, o.sample_fraction, o.pair_a, o.pair_b
FROM overlap_of_runs(coalesce(getvariable('criterion'), 'exact')) AS o
JOIN runs AS x ON x.pair_id = o.pair_a
JOIN runs AS y ON y.pair_id = o.pair_b
WHERE x.family IS NOT DISTINCT FROM y.family
ORDER BY x.family, name_a, name_b, o.pair_a, o.pair_b;
