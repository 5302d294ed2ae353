-- Does the measured sparsity agree with the one that was published, at the same tolerance?
--
-- criterion = abs:1e-5: the rule behind reported_sparsity, unless label reported_criterion says it
--
-- One row a reported figure: reported_sparsity of the corpus, and each label reported_sparsity_TOL
-- (reported_sparsity_1e-8 means abs:1e-8). All sparsities are 1 - changed / all over the compared
-- parameters, weighted by parameters; sparsity_difference = measured - reported, null where the
-- pair does not count the criterion. sparsity_exact stands beside it because tolerances differ from
-- paper to paper.
--
-- No row: the corpus reports no figure (`reported_sparsity`).
WITH figures AS (
    SELECT
        pair_id,
        coalesce(
            labels['reported_criterion'],
            counted(coalesce(getvariable('criterion'), 'abs:1e-5'))
        ) AS criterion,
        reported_sparsity
    FROM runs
    WHERE reported_sparsity IS NOT NULL
    UNION ALL
    SELECT pair_id, 'abs:' || substr(label, 19), labels[label]::DOUBLE
    FROM (SELECT pair_id, labels, unnest(map_keys(labels)) AS label FROM runs)
    WHERE regexp_full_match(label, 'reported_sparsity_[0-9.]+e-[0-9]+')
),
measured AS (
    SELECT
        pair_id, criterion,
        sum(numel)::BIGINT AS numel,
        sparsity(sum(changed), sum(numel)) AS sparsity
    FROM counts
    GROUP BY pair_id, criterion
)
SELECT
    p.name, p.family, p.algorithm, p.source, f.criterion, f.reported_sparsity,
    m.sparsity AS measured_sparsity,
    m.sparsity - f.reported_sparsity AS sparsity_difference,
    e.sparsity AS sparsity_exact,
    e.numel, p.pair_id
FROM figures AS f
JOIN pairs AS p USING (pair_id)
LEFT JOIN measured AS m USING (pair_id, criterion)
LEFT JOIN measured AS e ON e.pair_id = f.pair_id AND e.criterion = 'exact'
ORDER BY p.family, p.name, p.pair_id, f.criterion;
