-- How large are the core (changed in every run) and the union (in any) of a family or an algorithm?
--
-- criterion = exact: the rule that says "changed"; runs that keep no masks of it are left out
-- family = *: one model family, or * for any
-- algorithm = *: one training algorithm, or * for any
--
-- One row for the total and one a kind, over the tensors that all of these runs compared in the
-- same shape; tensors_left_out counts the others. The runs are one group: * mixes families or
-- algorithms, but each tuned model is in it once: see repeated_runs. `rlsparse consensus` gives the
-- whole histogram, and what of it is chance.
WITH members AS MATERIALIZED (
    SELECT pair_id
    FROM selected_runs(
        coalesce(getvariable('family'), '*'), coalesce(getvariable('algorithm'), '*')
    )
    WHERE list_contains(criteria, kept(coalesce(getvariable('criterion'), 'exact')))
),
compared AS (
    SELECT
        tensor_key,
        any_value(kind) AS kind,
        any_value(numel) AS numel,
        sum(changed)::BIGINT AS changed,
        count(*) = (SELECT count(*) FROM members) AS in_all
    FROM tensor_counts
    WHERE criterion = coalesce(getvariable('criterion'), 'exact') AND numel > 0
        AND pair_id IN (FROM members)
    GROUP BY tensor_key
),
blocks AS (
    SELECT
        tensor_key, block,
        any_value(numel) AS numel,
        count(*) AS runs,
        bit_count(bit_and(bits::BIT)) AS core_changed,
        bit_count(bit_or(bits::BIT)) AS union_changed
    FROM masks
    WHERE criterion = coalesce(getvariable('criterion'), 'exact') AND pair_id IN (FROM members)
        AND tensor_key IN (SELECT tensor_key FROM compared WHERE in_all)
    GROUP BY tensor_key, block
),
by_tensor AS (
    SELECT
        tensor_key,
        sum(numel)::BIGINT AS numel_seen,
        min(runs) AS runs,
        sum(core_changed)::BIGINT AS core_changed,
        sum(union_changed)::BIGINT AS union_changed
    FROM blocks
    GROUP BY tensor_key
),
checked AS (
    SELECT
        c.*,
        b.core_changed, b.union_changed,
        CASE WHEN in_all AND (coalesce(b.numel_seen, 0) <> c.numel
                OR b.runs <> (SELECT count(*) FROM members))
            THEN error('masks of ' || tensor_key || ' lack blocks: run rlsparse verify')
            ELSE c.numel
        END AS numel_checked
    FROM compared AS c
    LEFT JOIN by_tensor AS b USING (tensor_key)
)
SELECT
    CASE WHEN grouping(kind) = 1 THEN 'total' ELSE kind END AS kind,
    (SELECT count(*) FROM members) AS runs,
    count(*) FILTER (in_all) AS tensors,
    coalesce(sum(numel_checked) FILTER (in_all), 0)::BIGINT AS numel,
    coalesce(sum(core_changed), 0)::BIGINT AS core_changed,
    coalesce(sum(union_changed), 0)::BIGINT AS union_changed,
    density(sum(core_changed), sum(numel) FILTER (in_all)) AS density_of_core,
    density(sum(union_changed), sum(numel) FILTER (in_all)) AS density_of_union,
    density(sum(changed) FILTER (in_all), sum(numel) FILTER (in_all))
        / nullif((SELECT count(*) FROM members), 0) AS mean_density_of_a_run,
    sum(core_changed) / nullif(sum(union_changed), 0) AS core_share_of_union,
    count(*) FILTER (NOT in_all) AS tensors_left_out,
    coalesce(sum(numel) FILTER (NOT in_all), 0)::BIGINT AS numel_left_out
FROM checked
GROUP BY GROUPING SETS ((), (kind))
ORDER BY grouping(kind) DESC, kind;
