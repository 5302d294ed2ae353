-- The rows of spectra lie within their bounds, and agree with tensors and counts.
--
-- Protects the geometry of updates: a row belongs to a compared tensor, all matrices of a tensor
-- have the parameters and the changes that counts has, no rank is above the shorter side, no share
-- above 1, no mask shares more than it holds, and what is unchanged has no update.
WITH judged AS (
    SELECT
        CASE
            WHEN status = 'measured' AND (
                NOT coalesce(rows * columns = numel AND changed BETWEEN 1 AND numel, false)
                OR method NOT IN ('exact', 'randomised') OR method IS NULL
            ) THEN 'a measured matrix without its facts'
            WHEN status = 'unchanged' AND (changed <> 0 OR update_norm <> 0 OR matrix_rank <> 0)
                THEN 'unchanged, but with an update'
            WHEN greatest(matrix_rank, matrix_rank_at_least, rank_1e6, energy_rank_90,
                energy_rank_99) > least(rows, columns) THEN 'a rank above the shorter side'
            -- the tolerance of matrix_rank is above 1e-6 from 9 rows or columns on
            WHEN matrix_rank_at_least > matrix_rank OR energy_rank_90 > energy_rank_99
                OR matrix_rank > rank_1e6 AND greatest(rows, columns) > 8
                THEN 'ranks out of order'
            WHEN greatest(stable_rank, effective_rank) > least(rows, columns) * (1 + 1e-9)
                OR least(stable_rank, effective_rank) < 1 - 1e-9
                THEN 'a stable or effective rank that cannot be'
            WHEN greatest(outside_share, inside_left_share, inside_right_share, top_energy_share)
                > 1 + 1e-9 OR least(outside_share, inside_left_share, inside_right_share,
                top_energy_share) < -1e-9 THEN 'a share that is not within 0 and 1'
            WHEN nss > nss_at_most * (1 + 1e-9) OR nss < nss_at_least * (1 - 1e-9)
                THEN 'nss outside its bounds'
            WHEN len(angles_left) <> k OR len(angles_right) <> k
                OR greatest(list_max(angles_left), list_max(angles_right)) > pi() / 2 + 1e-6
                THEN 'angles that cannot be'
            WHEN len(list_filter(mask_overlaps, lambda o: NOT coalesce(
                o.shared BETWEEN greatest(0, o.size + changed - numel) AND least(o.size, changed),
                false))) > 0 THEN 'a mask that shares more, or less, than it can'
        END AS problem,
        pair_id, tensor_key, matrix, status
    FROM spectra
),
sums AS (
    SELECT
        pair_id, tensor_key,
        sum(numel)::BIGINT AS numel,
        sum(changed)::BIGINT AS changed,
        max(matrix) + 1 = count(*) AS complete
    FROM spectra
    GROUP BY pair_id, tensor_key
)
FROM judged WHERE problem IS NOT NULL
UNION ALL
SELECT
    CASE WHEN NOT s.complete THEN 'a matrix of the stack is missing'
        ELSE 'not the parameters and changes that counts has' END,
    s.pair_id, s.tensor_key, NULL, NULL
FROM sums AS s
LEFT JOIN counts AS c ON c.pair_id = s.pair_id AND c.tensor_key = s.tensor_key
    AND c.criterion = 'exact'
WHERE NOT s.complete OR c.numel IS NULL OR (c.numel, c.changed) <> (s.numel, s.changed);
